"""LoRAs of different rows run as two batched products, and nothing of one row reaches another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_joint import filled, inputs, linear_model, write
from test_lora import Operations
from torch import nn

import inarch
from inarch.adapters import Model
from inarch.errors import InarchError
from inarch.tree import Chain


def alone(model: Model, row: tuple[str, ...]) -> Model:
    return model.without(*(name for name in model.adapters.names if name not in row))


def distinct(count: int, base: Model | None = None) -> Model:
    specs = [inarch.adapter("lora", name=f"a{i:02}", rank=1 + i % 4) for i in range(count)]
    return filled((base or linear_model()).adapt(*specs))


@pytest.mark.parametrize("count", [2, 8])
def test_rows_of_different_adapters_cost_two_operations_a_layer(count: int) -> None:
    base = linear_model()
    mixed = distinct(count, base).rows([f"a{i:02}" for i in range(count)])
    x = inputs(count, 5, 8)
    with torch.no_grad():
        mixed.tree(x)
        with Operations() as operations:
            mixed.tree(x)
        with Operations() as plain:
            base.tree(x)
    assert operations.count - plain.count == {"bmm": 3, "baddbmm": 3}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_in_its_row(value: float) -> None:
    model = distinct(3)
    rows = ["a00", None, "a01", ("a01", "a02"), "a02"]
    x = inputs(5, 4, 8)
    with torch.no_grad():
        before = model.rows(rows).tree(x)
        for parameter in model.adapter_parameters("a01").values():
            parameter.fill_(value)
        after = model.rows(rows).tree(x)
    kept = [0, 1, 4]
    assert torch.equal(after[kept], before[kept])
    assert not torch.isfinite(after[2:4]).any()


def test_another_row_s_input_that_is_no_number_stays_in_its_row() -> None:
    mixed, x = distinct(2).rows(["a00", "a01", None, "a00"]), inputs(4, 3, 8)
    with torch.no_grad():
        before = mixed.tree(x)
        x[0] = float("nan")
        after = mixed.tree(x)
    assert torch.equal(after[1:], before[1:])


def test_a_row_without_adapters_is_the_base_bit_for_bit() -> None:
    base, x = linear_model(), inputs(3, 4, 8)
    mixed = distinct(2, base).rows(["a00", None, "a01"])
    with torch.no_grad():
        assert torch.equal(mixed.tree(x)[1], base.tree(x)[1])


def test_at_scale_nought_a_broken_adapter_is_not_in_its_row() -> None:
    base, x = linear_model(), inputs(2, 4, 8)
    model = distinct(2, base)
    with torch.no_grad():
        for parameter in model.adapter_parameters("a00").values():
            parameter.fill_(float("nan"))
        for member in model.adapters:
            member.scale = 0.0
        assert torch.equal(model.rows(["a00", "a01"]).tree(x), base.tree(x))


@pytest.mark.parametrize("shape", [(3, 8), (3, 2, 8), (3, 2, 4, 8), (1, 5, 8), (3, 0, 8)])
def test_any_number_of_dimensions_between(shape: tuple[int, ...]) -> None:
    model, x = distinct(2), inputs(*shape)
    rows = ["a01", None, ("a00", "a01")]
    with torch.no_grad():
        got = model.rows(rows).tree(x)
        for number, row in enumerate([("a01",), (), ("a00", "a01")]):
            own = x[min(number, len(x) - 1) :][:1]
            torch.testing.assert_close(got[number], alone(model, row).tree(own)[0])


def test_changes_of_an_adapter_reach_its_rows() -> None:
    model, x = distinct(2), inputs(2, 3, 8)
    mixed = model.rows(["a00", "a01"])
    with torch.no_grad():
        before = mixed.tree(x)
        model.adapters["a00"].scale = 0.3
        write(model.tree.fc2__a01.lora_A)
        after = mixed.tree(x)
        torch.testing.assert_close(after, model.rows(["a00", "a01"]).tree(x))
    assert not torch.equal(after, before)


def test_gradients_reach_each_adapter_from_its_own_rows() -> None:
    model, x = distinct(2), inputs(3, 4, 8)
    for member in model.adapters:
        member.trainable = True
    model.rows(["a00", "a01", "a00"]).tree(x).square().sum().backward()
    got = {n: p.grad.clone() for n, p in model.tree.named_parameters() if p.grad is not None}
    model.tree.zero_grad()
    for name, numbers in (("a00", [0, 2]), ("a01", [1])):
        alone(model, (name,)).tree(x[numbers]).square().sum().backward()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, model.tree.get_parameter(name).grad)


def test_the_model_and_its_base_are_not_touched() -> None:
    base, x = linear_model(), inputs(2, 3, 8)
    model = distinct(2, base)
    names = list(model.state_dict())
    with torch.no_grad():
        expected = model.tree(x), base.tree(x)
        model.rows(["a00", None]).tree(x)
        assert torch.equal(model.tree(x), expected[0])
        assert torch.equal(base.tree(x), expected[1])
    assert list(model.state_dict()) == names


def test_convolutions_run_on_their_rows() -> None:
    torch.manual_seed(0)
    tree = Chain(layer=nn.Conv2d(3, 4, 3)).requires_grad_(False).eval()
    specs = [inarch.adapter("lora", name=n, targets=["layer"], rank=2) for n in "ab"]
    model = filled(Model({"": tree}).adapt(*specs))
    x = torch.randn(4, 3, 6, 6)
    rows: list[Any] = ["a", None, ("a", "b"), "b"]
    with torch.no_grad():
        got = model.rows(rows).tree(x)
        for number, row in enumerate(rows):
            own = (row,) if isinstance(row, str) else row or ()
            expected = alone(model, own).tree(x[number : number + 1])[0]
            torch.testing.assert_close(got[number], expected, rtol=1e-5, atol=1e-5)


def test_a_batch_of_another_size_is_refused() -> None:
    with pytest.raises(InarchError, match="2 rows") as caught:
        distinct(2).rows(["a00", None]).tree(inputs(3, 4, 8))
    assert caught.value.code == "IA513"
