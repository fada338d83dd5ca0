"""Small random Llamas and Mistrals, in transformers and in inarch, of equal weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import inarch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    """A function from settings to transformers' model and the one inarch loads from its folder."""
    transformers = pytest.importorskip("transformers")

    def build(kind: str = "llama", seed: int = 0, **settings: Any) -> tuple[Any, Any]:
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(kind, **{**SIZES, **settings})
        theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        theirs.save_pretrained(tmp_path, safe_serialization=True)
        return theirs, inarch.load(tmp_path)

    return build
