"""A part of a tree runs a stretch of its steps, with the same modules and the edits in them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inarch.errors import InarchError
from inarch.tree import Chain, Edit, Use, part


def tree() -> Chain:
    return Chain(enter=nn.Linear(3, 4), act=torch.tanh, leave=nn.Linear(4, 2))


def test_two_parts_one_after_the_other_are_the_tree() -> None:
    whole, x = tree(), torch.randn(5, 3)
    first, second = part(whole, last="enter"), part(whole, first="act")
    assert torch.equal(second(first(x)), whole(x))
    assert first.enter is whole.enter
    assert list(whole.state_dict()) == list(second.state_dict())


def test_a_part_has_the_edits_of_its_steps_and_asks_only_for_what_they_need() -> None:
    whole, x = tree(), torch.randn(5, 3)
    edited = whole.edit([Edit.add("leave", Use("more"), "a", inputs=("more",))])
    assert "more" not in part(edited, last="act").inputs
    actual = part(edited, first="leave")(torch.tanh(whole.enter(x)), more=torch.ones(2))
    assert torch.equal(actual, whole(x) + 1)


def test_what_an_edit_provides_reaches_a_part_that_begins_later() -> None:
    edited = tree().edit(
        [
            Edit.provide("twice", nn.Linear(4, 4), "a"),
            Edit.add("act", Use("twice"), "a"),
        ]
    )
    second, x = part(edited, first="act"), torch.randn(5, 4)
    [provided] = [m for n, m in edited.named_modules() if n.startswith("provided")]
    assert torch.equal(second(x), edited.leave(torch.tanh(x) + provided(x)))


@pytest.mark.parametrize("ends", [{"first": "nothing"}, {"first": "leave", "last": "enter"}])
def test_a_part_that_is_none_is_refused(ends: dict[str, str]) -> None:
    with pytest.raises(InarchError) as error:
        part(tree(), **ends)
    assert error.value.code == "IA110"
