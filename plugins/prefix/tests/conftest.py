"""The same small random models for PEFT and for inarch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inarch

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
KINDS = {
    "grouped": ("llama", {"num_key_value_heads": 2}),
    "biased": (
        "llama",
        {"num_key_value_heads": 1, "head_dim": 6, "attention_bias": True, "mlp_bias": True},
    ),
    "windowed": ("mistral", {"num_key_value_heads": 2, "sliding_window": 6}),
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def built(kind: str, folder: Path) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    family, settings = KINDS[kind]
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **settings})
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    theirs.generation_config.eos_token_id = None
    theirs.save_pretrained(folder / "base")
    return theirs, inarch.load(folder / "base")


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """transformers' model and inarch's, of equal random weights, of each kind."""
    return built(request.param, tmp_path)


@pytest.fixture
def llamas(tmp_path: Path) -> tuple[Any, Any]:
    """The same of one kind."""
    return built("grouped", tmp_path)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 61, (3, 9), generator=torch.Generator().manual_seed(1))
