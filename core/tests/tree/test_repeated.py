"""Chains that a tree has many of are built once while it waits for weights, and then copied."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from inarch.tree import Chain, Edit, Let, Residual, repeated
from inarch.weights import blank

CALLS: list[tuple[Any, ...]] = []


@repeated
def block(width: int, *, out: int | None = None) -> Chain:
    CALLS.append((width, out))
    inner = Chain(("to_out.0", nn.Linear(width, width)), norm=nn.LayerNorm(width))
    return Chain(Residual(inner=inner), last=nn.Linear(width, out or width, bias=False))


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def blocks(count: int) -> Chain:
    return Chain(*(block(4) for _ in range(count)))


def filled(tree: Chain, seed: int = 0) -> Chain:
    generator = torch.Generator().manual_seed(seed)
    made = {n: torch.randn(t.shape, generator=generator) for n, t in tree.state_dict().items()}
    tree.load_state_dict(made, assign=True)
    return tree


def test_a_block_is_built_once_for_equal_arguments_while_blank() -> None:
    with blank():
        blocks(3)
        block(4, out=8)
        block(8)
    assert CALLS == [(4, None), (4, 8), (8, None)]
    with blank():
        blocks(2)
    assert CALLS[3:] == [(4, None)]


def test_what_is_equal_and_of_another_type_is_another_argument() -> None:
    @repeated
    def grown(by: float) -> Chain:
        return Chain(layer=nn.Linear(2, 2), grow=partial(torch.mul, other=by))

    with blank():
        whole, real = grown(1), grown(1.0)
    assert whole.form is not real.form


def test_elsewhere_every_block_is_built_and_draws_its_own_weights() -> None:
    tree = blocks(3)
    assert len(CALLS) == 3
    first, second = (tree.get_submodule(n).last.weight for n in "01")
    assert not torch.equal(first, second)


def test_a_copy_is_what_building_gives() -> None:
    built = blocks(3)
    with blank():
        copied = blocks(3)
    assert repr(copied) == repr(built)
    assert copied.form is built.form
    assert list(copied.state_dict()) == list(built.state_dict())
    filled(copied).load_state_dict(filled(built).state_dict())
    x = torch.randn(2, 4)
    assert torch.equal(copied(x), built(x))


def test_no_copy_shares_a_module_or_a_parameter_with_another() -> None:
    with blank():
        tree = blocks(4)
    modules, parameters = list(tree.modules()), list(tree.parameters())
    assert len(modules) == 1 + 4 * 6
    assert len({id(m.__dict__[name]) for m in modules for name in ("_parameters", "_modules")}) == (
        2 * len(modules)
    )
    assert len(parameters) == 4 * 5
    assert all(p.is_meta and p.requires_grad for p in parameters)
    filled(tree)
    hooked = list[str]()
    tree.get_submodule("1").inner.register_forward_hook(lambda *_: hooked.append("1"))
    tree(torch.randn(2, 4))
    assert hooked == ["1"]


def test_a_copy_runs_its_own_children() -> None:
    with blank():
        tree = blocks(3)
    x, parts = torch.randn(2, 4), filled(tree)
    expected = x
    for name in "012":
        one = parts.get_submodule(name)
        norm, linear = one.inner.norm, one.inner.to_out[0]
        expected = one.last(expected + norm(linear(expected)))
    assert torch.equal(tree(x), expected)


def test_a_copy_is_edited_without_the_others() -> None:
    with blank():
        tree = blocks(2)
    tree, x = filled(tree), torch.randn(2, 4)
    edited = tree.edit([Edit.add("1.last", nn.Linear(4, 4), "a")])
    assert edited.get_submodule("0") is tree.get_submodule("0")
    assert "last__a" not in tree.get_submodule("1").source
    assert not torch.equal(edited(x), tree(x))


def test_ties_buffers_and_parameters_of_a_chain_are_copied() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.device("cpu"):
                self.register_buffer("waves", torch.arange(4.0), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.get_buffer("waves")

    @repeated
    def tied() -> Chain:
        chain = Chain(
            one=nn.Linear(4, 4, bias=False),
            two=nn.Linear(4, 4, bias=False),
            shift=nn.Parameter(torch.zeros(4)),
            counted=Counted(),
        )
        return chain.tie("two.weight", "one.weight")

    with blank():
        tree = Chain(tied(), tied(), tied())
    for one in tree:
        assert one.two.weight is one.one.weight
        assert one.ties == (("two.weight", "one.weight"),)
        assert torch.equal(one.counted.waves, torch.arange(4.0))
    assert len({id(p) for p in tree.parameters()}) == 6
    assert len({id(one.counted.waves) for one in tree}) == 3


def holding() -> nn.Module:
    module = nn.Linear(4, 4)
    module.__dict__["beside"] = nn.Linear(4, 4)
    return module


def hooked() -> nn.Module:
    module = nn.Linear(4, 4)
    module.register_forward_hook(lambda *_: None)
    return module


def valued() -> nn.Module:
    with torch.device("cpu"):
        return nn.Linear(4, 4)


@pytest.mark.parametrize("make", [holding, hooked, valued, lambda: nn.LazyLinear(4)])
def test_what_is_more_than_its_names_is_built_each_time(make: Callable[[], nn.Module]) -> None:
    built = list[nn.Module]()

    @repeated
    def made() -> Chain:
        built.append(make())
        return Chain(Let("seen"), layer=built[-1])

    with blank():
        chains = [made() for _ in range(3)]
    assert [chain.layer for chain in chains] == built
    assert len(built) == 3
