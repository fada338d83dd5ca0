"""A tiny Llama of random weights, and a few sequences of token ids for it to learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inarch_llama.model import Llama
from inarch_training import Example


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def base() -> Llama:
    config = {
        "model_type": "llama",
        "vocab_size": 23,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    parsed = Llama.parse_config(config)
    trees = Llama.build(parsed)
    for tree in trees.values():
        tree.requires_grad_(False).eval()
    roles: dict[str, Any] = {
        "attention.query": "model.layers.*.self_attn.q_proj",
        "mlp.up": "model.layers.*.mlp.up_proj",
    }
    return Llama(trees, parsed, roles=roles, family="llama")


@pytest.fixture
def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 23, (n,), generator=generator).tolist() for n in (5, 9, 7, 6, 8)]
    return [Example(tuple(row), tuple(row)) for row in rows]
