"""The same small nets for PEFT and for inarch: Llamas, and one of each layer (IA)^3 scales."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import inarch
from inarch.adapters import Model
from inarch.nn import TransposedLinear
from inarch.tree import Chain

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
KINDS = {
    "grouped": {"num_key_value_heads": 2},
    "biased": {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=KINDS)
def llamas(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """transformers' model and inarch's, of equal random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, **KINDS[request.param])
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    theirs.generation_config.eos_token_id = None
    theirs.save_pretrained(tmp_path / "base")
    return theirs, inarch.load(tmp_path / "base")


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 61, (3, 9), generator=torch.Generator().manual_seed(1))


LAYERS = {
    "linear": (lambda: nn.Linear(4, 6), (3, 5, 4)),
    "transposed": (lambda: TransposedLinear(4, 6), (3, 5, 4)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2), (2, 4, 7, 8)),
    "square_conv2d": (lambda: nn.Conv2d(4, 4, 3), (2, 4, 7, 8)),
    "grouped_conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 4, 3, 5)),
}


class Layered(nn.Module):
    """The net as PEFT takes it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer(x))


@pytest.fixture(params=LAYERS)
def layered(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Model, Tensor]:
    """A layer's name, PEFT's net and inarch's around it, and an input for both."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    make, shape = LAYERS[request.param]
    layer = make()
    theirs = copy.deepcopy(layer)
    if isinstance(layer, TransposedLinear):
        theirs = transformers.pytorch_utils.Conv1D(6, 4)
        theirs.load_state_dict(layer.state_dict())
    chain = Chain(layer=layer, act=F.gelu).requires_grad_(False).eval()
    return request.param, Layered(theirs), Model({"": chain}), torch.randn(shape)
