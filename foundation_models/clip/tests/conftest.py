"""Small random CLIPs, in transformers and in inarch, of equal weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
    "projection_dim": 16,
    "bos_token_id": 97,
    "eos_token_id": 98,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 30,
    "patch_size": 10,
    "projection_dim": 16,
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def randomised(model: Any, seed: int) -> Any:
    """A model of transformers in evaluation mode, with weights that show every mistake."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.fixture
def theirs() -> Any:
    """A function that makes a model of transformers by its class name."""
    transformers = pytest.importorskip("transformers")

    def build(kind: str, seed: int = 0, **settings: Any) -> Any:
        if kind == "CLIPModel":
            parts = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16}
            for name in ("text_config", "vision_config"):
                settings[name] = parts[name] | settings.get(name, {})
            config = transformers.CLIPConfig(**{**parts, **settings})
        elif "Text" in kind:
            config = transformers.CLIPTextConfig(**{**TEXT, **settings})
        else:
            config = transformers.CLIPVisionConfig(**{**VISION, **settings})
        return randomised(getattr(transformers, kind)(config), seed)

    return build


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """A function that saves a model of transformers and gives the folder."""

    def save(model: Any) -> Path:
        model.save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.fixture
def sentences() -> Any:
    """A function that makes token ids which begin with 97 and end at places of their own."""

    def make(batch: int, time: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 97, (batch, time), generator=generator)
        ids[:, 0] = 97
        for row in range(batch):
            ids[row, time - 1 - row % (time - 1) :] = 98
        return ids

    return make
