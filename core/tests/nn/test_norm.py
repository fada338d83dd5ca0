"""Normalisations equal torch's, also where what they compute with is no parameter of theirs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from inarch.nn import GroupNorm, LayerNorm, RMSNorm

PAIRS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: LayerNorm(8), lambda: nn.LayerNorm(8), (2, 5, 8)),
    "layers": (lambda: LayerNorm((5, 8), 1e-3), lambda: nn.LayerNorm((5, 8), 1e-3), (2, 5, 8)),
    "biasless": (lambda: LayerNorm(8, bias=False), lambda: nn.LayerNorm(8, bias=False), (3, 8)),
    "bare": (
        lambda: LayerNorm(8, elementwise_affine=False),
        lambda: nn.LayerNorm(8, elementwise_affine=False),
        (3, 8),
    ),
    "group": (lambda: GroupNorm(2, 8, 1e-6), lambda: nn.GroupNorm(2, 8, 1e-6), (2, 8, 3, 5)),
    "groups": (
        lambda: GroupNorm(4, 8, affine=False),
        lambda: nn.GroupNorm(4, 8, affine=False),
        (2, 8, 3),
    ),
}


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Tensor]:
    ours, theirs, shape = PAIRS[request.param]
    made = ours(), theirs()
    for parameter in made[0].parameters():
        nn.init.normal_(parameter)
    made[1].load_state_dict(made[0].state_dict(), strict=True)
    return *made, torch.randn(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_normalisation_equals_torch_s(pair: Any, dtype: torch.dtype) -> None:
    ours, theirs = (module.to(dtype) for module in pair[:2])
    one, other = (pair[2].to(dtype, copy=True).requires_grad_() for _ in range(2))
    torch.testing.assert_close(ours(one), theirs(other), rtol=0, atol=0)
    ours(one).square().sum().backward()
    theirs(other).square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)
    assert repr(ours) == repr(theirs)


def test_a_parametrised_or_pruned_weight_is_the_one_that_counts() -> None:
    for ours, theirs, shape in (PAIRS["layer"], PAIRS["group"]):
        x = torch.randn(shape)
        for change in (
            lambda module: parametrize.register_parametrization(module, "weight", Doubled()),
            lambda module: prune.l1_unstructured(module, "bias", amount=3),
        ):
            made, expected = ours(), theirs()
            nn.init.normal_(made.get_parameter("bias"))
            expected.load_state_dict(made.state_dict())
            plain = made(x)
            change(made)
            change(expected)
            assert torch.equal(made(x), expected(x))
            assert not torch.equal(made(x), plain)


def test_a_parametrised_weight_of_a_root_mean_square_counts() -> None:
    module, x = RMSNorm(8, 1e-6), torch.randn(3, 8)
    plain = module(x)
    parametrize.register_parametrization(module, "weight", Doubled())
    torch.testing.assert_close(module(x), 2 * plain)


@pytest.mark.parametrize("name", ["layer", "group", "root mean square"])
def test_a_normalisation_is_one_python_call(name: str) -> None:
    known = {**PAIRS, "root mean square": (lambda: RMSNorm(8, 1e-6), None, (2, 8))}
    module, x, seen = known[name][0](), torch.randn(known[name][2]), list[str]()

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            seen.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        module.forward(x)
    finally:
        sys.setprofile(None)
    assert seen == ["forward"]


def test_a_normalisation_compiles_whole(pair: Any) -> None:
    ours, theirs, x = pair
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), theirs(x))
