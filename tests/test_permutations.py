"""A stack of two LoRAs, (IA)^3 and a prefix on the real model: every order it can be written in."""

from __future__ import annotations

import itertools

import pytest
import torch

import inarch
from inarch.adapters import Model

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smollm2")]

STACK = ("pirate", "terse_json", "ia3", "prefix")


def trained(model: Model) -> Model:
    """The model with values for what starts untrained, the same for each adapter every time."""
    for name in ("ia3", "prefix"):
        generator = torch.Generator().manual_seed(len(name))
        for parameter in model.adapters[name].parameters().values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(noise * 0.1 + (1.0 if name == "ia3" else 0.0))
    return model


def test_all_permutations_are_one_digest_one_order_and_one_output_bit_for_bit() -> None:
    base = inarch.load("smollm2", dtype="float32")
    ids = torch.tensor([[1, 5, 9, 30, 4]])
    first = trained(base.adapt(*STACK))
    expected = first(ids)
    assert not torch.equal(expected, base(ids))
    words = {(v.a, v.b): v.word for v in first.order.verdicts}
    assert words["pirate", "terse_json"] == "commute"
    assert words["terse_json", "ia3"] == "ordered"
    for order in itertools.permutations(STACK):
        model = trained(base.adapt(*order))
        assert model.digest == first.digest
        assert model.order.names == first.order.names
        assert {n: t.form for n, t in model.trees.items()} == {
            n: t.form for n, t in first.trees.items()
        }
        assert torch.equal(model(ids), expected)
