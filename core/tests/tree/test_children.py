"""A forward takes its children from where torch keeps them, whatever put them there."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from inarch.tree import Chain, Edit, Parallel, Residual, Seq


def tree() -> Chain:
    inner = Chain(Residual(("to_out.0", nn.Linear(4, 4)), ("to_out.1", nn.Tanh())))
    return Chain(("blocks.0", inner), named=nn.Linear(4, 4))


def searches(run: Any, kinds: tuple[type, ...]) -> int:
    """How often a call has torch look for an attribute of modules of some classes."""
    count = 0

    def seen(frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        if event == "call" and frame.f_code is nn.Module.__getattr__.__code__:
            count += isinstance(frame.f_locals["self"], kinds)

    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def test_no_child_is_searched_for() -> None:
    model, x = tree(), torch.randn(2, 4)
    containers = (Chain, type(model.blocks))
    assert searches(lambda: model.blocks[0], containers) == 1
    assert searches(lambda: model(x), containers) == 0
    adapted = model.edit([Edit.add("named", nn.Linear(4, 4), "a")])
    assert searches(lambda: adapted(x), containers) == 0


def test_the_source_names_children_as_a_person_would() -> None:
    assert "self.blocks[0](x)" in tree().source
    assert "_modules" not in tree().source


@pytest.mark.parametrize("how", ["setattr", "modules", "add_module"])
def test_a_child_put_in_the_place_of_another_is_the_one_that_runs(how: str) -> None:
    model, x, other = tree(), torch.randn(2, 4), nn.Linear(4, 4)
    expected = other(model.blocks[0](x))
    if how == "setattr":
        model.named = other
    elif how == "modules":
        model._modules["named"] = other
    else:
        model.add_module("named", other)
    assert torch.equal(model(x), expected)
    inner = model.blocks[0].to_out
    inner._modules["0"] = nn.Identity()
    assert torch.equal(model(x), other(x + torch.tanh(x)))


def test_weights_put_in_the_place_of_others_are_the_ones_that_run() -> None:
    model, x = tree(), torch.randn(2, 4)
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    assert not functional_call(model, zeros, (x,)).any()
    assert model(x).any()


def test_hooks_of_children_run() -> None:
    model, seen = tree(), list[str]()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    model(torch.randn(2, 4))
    assert seen == ["blocks.0.to_out.0", "blocks.0.to_out.1", "blocks.0", "named", ""]


def test_a_traceback_underlines_the_call_in_the_text() -> None:
    model = Chain(Parallel(Seq(first=nn.Linear(4, 4)), second=nn.Linear(3, 4)), torch.add)
    with pytest.raises(RuntimeError) as caught:
        model(torch.randn(2, 4))
    shown = traceback.format_exception(caught.value)
    [at] = [i for i, part in enumerate(shown) if "<inarch" in part]
    *_, line, carets = shown[at].splitlines()
    where = slice(carets.index("^"), carets.rindex("^") + 1)
    assert line[where] == "self.second(x)"


def test_a_function_called_on_a_child_s_name_is_no_child() -> None:
    def named(x: Tensor) -> Tensor:
        return x + 1

    model, x = Chain(("named", nn.Tanh()), named), torch.randn(2, 4)
    assert torch.equal(model(x), torch.tanh(x) + 1)
