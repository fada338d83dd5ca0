"""The same small nets for PEFT and for inarch: a Llama, and one of each layer LoRA adapts."""

from __future__ import annotations

import copy
import sys
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

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def llamas(tmp_path: Path) -> tuple[Any, Any]:
    """transformers' model and inarch's, of equal random weights, with biases."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_bias=True,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path / "base")
    return theirs, inarch.load(tmp_path / "base")


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))


LAYERS = {
    "linear": (lambda: nn.Linear(6, 6), (4, 6)),
    "transposed": (lambda: TransposedLinear(6, 6), (4, 6)),
    "embedding": (lambda: nn.Embedding(9, 6), None),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2), (2, 4, 7, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 4, 3, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 8)),
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
        theirs = transformers.pytorch_utils.Conv1D(6, 6)
        theirs.load_state_dict(layer.state_dict())
    chain = Chain(layer=layer, act=F.gelu).requires_grad_(False).eval()
    x = torch.randint(0, 9, (3, 5)) if shape is None else torch.randn(shape)
    return request.param, Layered(theirs), Model({"": chain}, roles={"mlp.up": "layer"}), x
