"""A stack that grows and shrinks is the stack made at once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import inarch
import inarch.adapters.model
from inarch.adapters import Model
from inarch.tree import Chain


def forms(model: Model) -> dict[str, Any]:
    tree = model.tree
    return {name: m.form for name, m in tree.named_modules() if isinstance(m, Chain)}


def same_stack(one: Model, other: Model) -> bool:
    """Whether two models of adapters of their own have one structure and one order."""
    assert one.order.names == other.order.names
    assert one.order.layers == other.order.layers
    assert [v.as_dict() for v in one.order.verdicts] == [v.as_dict() for v in other.order.verdicts]
    assert list(one.state_dict()) == list(other.state_dict())
    return forms(one) == forms(other)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a model by a function, of the pristine trees alone."""

    def made(make: Any) -> Model:
        with monkeypatch.context() as patch:
            patch.setattr(inarch.adapters.model, "stepped", lambda *_: None)
            model: Model = make()
            return model

    return made


@pytest.mark.parametrize("names", list(itertools.permutations(["p", "a", "z"])))
def test_adapters_put_in_one_by_one_and_taken_out_are_as_made_at_once(
    base: Model, names: tuple[str, ...], x: Tensor, anew: Any
) -> None:
    one_by_one = base
    for name in names:
        one_by_one = one_by_one.adapt(inarch.adapter("lowrank", name=name))
    at_once = anew(lambda: base.adapt(*(inarch.adapter("lowrank", name=n) for n in names)))
    assert same_stack(one_by_one, at_once)
    for gone in (*names, *itertools.combinations(names, 2), names):
        dropped = [gone] if isinstance(gone, str) else gone
        left = one_by_one.without(*dropped)
        assert same_stack(left, anew(lambda gone=dropped: one_by_one.without(*gone)))
        assert torch.equal(left.tree(x), anew(lambda g=dropped: one_by_one.without(*g)).tree(x))
    assert one_by_one.without(*names).tree is base.tree


def test_kinds_that_do_not_commute_are_as_made_at_once(base: Model, x: Tensor, anew: Any) -> None:
    first = base.adapt(inarch.adapter("factor", name="m"))
    specs = [
        inarch.adapter("lowrank", name="a", before=["m"]),
        inarch.adapter("lowrank", name="z", after=["m"]),
        inarch.adapter("factor", name="n", after=["m"]),
    ]
    for spec in specs:
        grown = first.adapt(spec)
        again = anew(lambda grown=grown: grown.unpacked()._with(grown.adapters, grown.order))
        assert forms(grown) == forms(again)
        for name in grown.adapters.names:
            left = grown.without(name)
            assert forms(left) == forms(anew(lambda n=name, g=grown: g.without(n)))
            assert torch.equal(left.tree(x), anew(lambda n=name, g=grown: g.without(n)).tree(x))


def test_trees_that_were_put_into_a_model_by_hand_are_no_beginning(base: Model, x: Tensor) -> None:
    model = base.adapt(inarch.adapter("lowrank", name="a"))
    model.trees[""] = base.tree
    grown = model.adapt(inarch.adapter("lowrank", name="b"))
    assert any("__a" in name for name in grown.state_dict())
    assert any("__b" in name for name in grown.state_dict())


def test_merged_and_packed_models_are_made_anew(base: Model, x: Tensor) -> None:
    model = base.adapt(inarch.adapter("lowrank", name="a"), inarch.adapter("lowrank", name="b"))
    for module in model.adapters["a"].modules.values():
        module.up.data.fill_(0.5)
    merged = model.merge("a")
    torch.testing.assert_close(merged.without("b").tree(x), model.without("b").tree(x))
    assert merged.without("a").tree(x).equal(model.without("a").tree(x))
    packed = model.packed()
    torch.testing.assert_close(packed.without("b").tree(x), model.without("b").tree(x))
