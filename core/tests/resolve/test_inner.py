"""Adapters of a tree that an adapter brings: arranged as in a model, refused with the reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
import torch
from stacks import WIDTH, Made, made
from torch import Tensor, nn

import inarch
from inarch.adapters import Adapter, Model, OwnTree, SiteView
from inarch.errors import InarchError
from inarch.resolve.plan import resolve
from inarch.tree import Chain, Edit, Use


class Brings(Adapter):
    """Adds what a tree of its own makes of the model's input."""

    class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
        pass

    def edits(self, sites: SiteView, weights: Any) -> Iterable[Edit]:
        self.own = Chain(fc=nn.Linear(WIDTH, WIDTH), act=torch.tanh)
        yield Edit.provide(f"{self.name}_seen", self.own, self.name, label="tower")
        yield Edit.add("head", Use(f"{self.name}_seen"), self.name)

    def own_tree(self) -> OwnTree:
        return OwnTree(self.own, {"layer": "fc"})


@pytest.fixture(autouse=True)
def brings(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(brings={})
    kinds = {"brings": Brings}
    monkeypatch.setattr(
        inarch.adapters.graft, "load_object", lambda _group, name: kinds.get(name, Made)
    )


def tower(*inner: Any, **more: Any) -> inarch.AdapterSpec:
    return inarch.adapter("brings", name="tower", adapters=inner, **more)


def with_zeros(model: Model) -> Model:
    """Every fresh layer of the tree with the same numbers."""
    for parameter in model.adapter_parameters("tower").values():
        parameter.data.copy_(torch.full_like(parameter, 0.1))
    return model


def test_every_order_of_them_is_one_digest_and_one_output(base: Model, x: Tensor) -> None:
    inner = [made("a", "add fc"), made("b", "add fc"), made("c", "scale act")]
    first = with_zeros(base.adapt(tower(*inner)))
    expected = first.tree(x)
    assert not torch.equal(expected, with_zeros(base.adapt(tower())).tree(x))
    for order in itertools.permutations(inner):
        model = with_zeros(base.adapt(tower(*order)))
        assert model.digest == first.digest == resolve(base, tower(*order)).digest
        assert torch.equal(model.tree(x), expected)
    assert base.adapt(tower(*inner[:2])).digest != first.digest
    assert first.without("tower").tree.form == base.tree.form


def test_an_order_that_nobody_told_is_refused_inside_too(base: Model) -> None:
    with pytest.raises(InarchError) as raised:
        base.adapt(tower(made("a", "wrap fc"), made("b", "wrap fc")))
    assert raised.value.code == "IA407"
    told = base.adapt(tower(made("a", "wrap fc"), made("b", "wrap fc", after="a")))
    inner = told.adapters["tower"].inner
    assert inner is not None
    assert inner.order.names == ("a", "b")


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (made("a", "use fc cue"), "it asks for `cue`"),
        (made("a", "tap fc as seen export"), "it lets values out of the tree"),
        (made("tower", "add fc"), "its name is that of the adapter around it"),
    ],
)
def test_what_belongs_to_the_whole_model_is_refused_inside(
    base: Model, spec: Any, why: str
) -> None:
    with pytest.raises(InarchError) as raised:
        base.adapt(tower(spec))
    assert raised.value.code == "IA429"
    assert raised.value.why == why


def test_an_adapter_that_brings_no_tree_takes_none(base: Model) -> None:
    with pytest.raises(InarchError) as raised:
        base.adapt(made("p", "add head", adapters=[made("a", "add head")]))
    assert raised.value.code == "IA429"


def test_two_of_one_name_are_refused_and_all_that_is_wrong_is_told(base: Model) -> None:
    with pytest.raises(InarchError) as raised:
        base.adapt(tower(made("a", "add fc"), made("a", "add fc"), made("b", "add absent")))
    assert raised.value.code == "IA414"
    text = str(raised.value)
    assert "two adapters called `a`" in text
    assert "absent" in text
