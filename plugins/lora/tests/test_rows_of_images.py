"""LoRAs of convolutions and embeddings on different rows run together, each row as it is alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_joint import filled
from test_lora import Operations
from test_rows import alone
from torch import Tensor, nn

import inarch
from inarch.adapters import Model
from inarch.nn import TransposedLinear
from inarch.tree import Chain

ROWS: dict[str, list[Any]] = {
    "each its own": ["a", "b", "c", ("a", "b", "c")],
    "one without": ["a", None, "b", "c"],
    "some alike": ["a", "b", "a", None, ("b", "a"), "b", "a", "b", "a"],
    "all alike": ["c", "c", "c", "c"],
    "one row": ["b"],
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "3x3": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "strided": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=(1, 0), dilation=(1, 2)), (3, 9, 8)),
    "same": (lambda: nn.Conv2d(3, 5, (3, 5), padding="same", bias=False), (3, 6, 5)),
    "1x1": (lambda: nn.Conv2d(3, 4, 1), (3, 6, 5)),
    "1x1 strided": (lambda: nn.Conv2d(3, 4, 1, stride=2), (3, 6, 5)),
    "1x1 padded": (lambda: nn.Conv2d(3, 4, 1, padding=1), (3, 6, 5)),
    "one dimension": (lambda: nn.Conv1d(3, 4, 3, padding="valid"), (3, 7)),
    "three dimensions": (lambda: nn.Conv3d(2, 4, (1, 3, 3), padding=(0, 1, 1)), (2, 3, 4, 5)),
    "embedding": (lambda: nn.Embedding(11, 6), (5,)),
    "embedding of grids": (lambda: nn.Embedding(11, 6, padding_idx=3), (2, 4)),
    "transposed": (lambda: TransposedLinear(6, 4), (3, 6)),
}
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}


def model_of(layer: nn.Module, names: str = "abc", dtype: torch.dtype = torch.float32) -> Model:
    tree = Chain(layer=layer).to(dtype).requires_grad_(False).eval()
    specs = [
        inarch.adapter("lora", name=name, targets=["layer"], rank=rank, scale=scale)
        for name, rank, scale in zip(names, (2, 4, 1), (1.0, -0.5, 2.0), strict=False)
    ]
    return filled(Model({"": tree}).adapt(*specs))


def given_to(layer: nn.Module, count: int, shape: tuple[int, ...]) -> Tensor:
    if isinstance(layer, nn.Embedding):
        return torch.randint(0, layer.num_embeddings, (count, *shape))
    return torch.randn(count, *shape)


def tuples(rows: list[Any]) -> list[tuple[str, ...]]:
    return [(row,) if isinstance(row, str) else row or () for row in rows]


def assert_each_is_alone(model: Model, rows: list[Any], x: Tensor, within: float = 1e-5) -> Tensor:
    with torch.no_grad():
        got = model.rows(rows).tree(x)
        for number, row in enumerate(tuples(rows)):
            expected = alone(model, row).tree(x[number : number + 1])[0]
            torch.testing.assert_close(got[number], expected, rtol=within, atol=within)
    return got


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", LAYERS)
def test_each_row_is_what_it_is_alone(name: str, rows: str) -> None:
    make, shape = LAYERS[name]
    layer = make()
    x = given_to(layer, len(ROWS[rows]), shape)
    assert_each_is_alone(model_of(layer), ROWS[rows], x)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["3x3", "strided", "same", "1x1", "1x1 strided"])
def test_images_whose_channels_lie_last_stay_so(name: str, rows: str) -> None:
    make, shape = LAYERS[name]
    layer = make().to(memory_format=torch.channels_last)
    x = given_to(layer, len(ROWS[rows]), shape).contiguous(memory_format=torch.channels_last)
    got = assert_each_is_alone(model_of(layer), ROWS[rows], x)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "shape"), [("3x3", (1, 3, 6, 5)), ("3x3", (4, 3, 1, 1)), ("1x1", (4, 3, 1, 1))]
)
def test_one_image_for_all_rows_and_images_of_one_pixel(
    name: str, shape: tuple[int, ...], layout: str
) -> None:
    model = model_of(LAYERS[name][0]())
    x = torch.randn(shape).contiguous(memory_format=LAYOUTS[layout])
    rows = ROWS["one without"]
    with torch.no_grad():
        mixed = model.rows(rows).tree(x)
        for number, row in enumerate(tuples(rows)):
            own = x[min(number, len(x) - 1) :][:1]
            torch.testing.assert_close(mixed[number], alone(model, row).tree(own)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    make, shape = LAYERS[name]
    layer = make()
    model, x = model_of(layer, dtype=dtype), given_to(layer, 4, shape)
    x = x if isinstance(layer, nn.Embedding) else x.to(dtype)
    within = 1e-9 if dtype == torch.float64 else 0.1
    assert_each_is_alone(model, ROWS["one without"], x, within)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("3x3", {"convolution": 1, "baddbmm": 1}),
        ("1x1", {"bmm": 1, "baddbmm": 1}),
        ("embedding", {"gather": 1, "baddbmm": 1}),
        ("transposed", {"bmm": 1, "baddbmm": 1}),
    ],
)
def test_a_layer_costs_two_operations_however_many_adapters(
    name: str, added: dict[str, int], count: int
) -> None:
    make, shape = LAYERS[name]
    layer = make()
    model, x = model_of(layer), given_to(layer, count, shape)
    mixed = model.rows(list("abc")[:count])
    with torch.no_grad():
        mixed.tree(x)
        with Operations() as operations:
            mixed.tree(x)
        with Operations() as plain:
            layer(x)
    assert operations.count - plain.count == added


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["3x3", "1x1", "strided", "embedding"])
def test_what_is_no_number_stays_in_its_row(name: str, layout: str, value: float) -> None:
    make, shape = LAYERS[name]
    layer = make()
    model, x = model_of(layer), given_to(layer, 5, shape)
    if x.dim() == 4:
        x = x.contiguous(memory_format=LAYOUTS[layout])
    rows = ["a", None, "b", ("b", "c"), "c"]
    with torch.no_grad():
        before = model.rows(rows).tree(x)
        for parameter in model.adapter_parameters("b").values():
            parameter.fill_(value)
        after = model.rows(rows).tree(x)
        assert torch.equal(after[[0, 1, 4]], before[[0, 1, 4]])
        assert not torch.isfinite(after[2:4]).any()
        assert torch.equal(after[1], layer(x)[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_row_s_image_that_is_no_number_stays_in_its_row(layout: str) -> None:
    mixed = model_of(LAYERS["3x3"][0]()).rows(["a", "b", None, "a"])
    x = torch.randn(4, 3, 6, 5).contiguous(memory_format=LAYOUTS[layout])
    with torch.no_grad():
        before = mixed.tree(x)
        x[0] = float("nan")
        after = mixed.tree(x)
    assert torch.equal(after[1:], before[1:])


def test_a_token_that_no_table_has_is_refused_and_not_another_s() -> None:
    mixed = model_of(LAYERS["embedding"][0]()).rows(["a", "b"])
    with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
        mixed.tree(torch.tensor([[1, 11], [2, 3]]))


@pytest.mark.parametrize("name", ["3x3", "1x1", "embedding"])
def test_changes_of_an_adapter_reach_its_rows(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make()
    model, x = model_of(layer), given_to(layer, 2, shape)
    mixed = model.rows(["a", "b"])
    with torch.no_grad():
        before = mixed.tree(x)
        model.adapters["a"].scale = 0.3
        for parameter in model.adapter_parameters("b").values():
            parameter.normal_()
        after = mixed.tree(x)
        torch.testing.assert_close(after, model.rows(["a", "b"]).tree(x))
        for number in range(2):
            assert not torch.equal(after[number], before[number])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["3x3", "1x1"])
def test_gradients_reach_the_image_through_frozen_adapters(name: str, layout: str) -> None:
    model, rows = model_of(LAYERS[name][0]()), ROWS["some alike"]
    x = torch.randn(9, 3, 6, 5).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    model.rows(rows).tree(x).square().sum().backward()
    got, x.grad = x.grad, None
    for number, row in enumerate(tuples(rows)):
        alone(model, row).tree(x[number : number + 1]).square().sum().backward()
    torch.testing.assert_close(got, x.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["3x3", "1x1", "embedding"])
def test_gradients_reach_each_adapter_from_its_own_rows(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make()
    model, x = model_of(layer), given_to(layer, 3, shape)
    for member in model.adapters:
        member.trainable = True
    model.rows(["a", "b", "a"]).tree(x).square().sum().backward()
    got = {n: p.grad.clone() for n, p in model.tree.named_parameters() if p.grad is not None}
    model.tree.zero_grad()
    for own, numbers in (("a", [0, 2]), ("b", [1])):
        alone(model, (own,)).tree(x[numbers]).square().sum().backward()
    assert len(got) == 4
    for own, gradient in got.items():
        expected = model.tree.get_parameter(own).grad
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_a_convolution_of_groups_runs_on_its_rows() -> None:
    layer = nn.Conv2d(4, 4, 3, groups=2, padding=1)
    tree = Chain(layer=layer).requires_grad_(False).eval()
    make = functools.partial(inarch.adapter, "lora", targets=["layer"], rank=2)
    model = filled(Model({"": tree}).adapt(make(name="a"), make(name="b")))
    assert_each_is_alone(model, ["a", None, ("a", "b"), "b"], torch.randn(4, 4, 6, 5))
