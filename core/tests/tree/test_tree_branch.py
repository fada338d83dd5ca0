"""A branch of a tree that runs by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inarch.errors import InarchError
from inarch.tree import Chain, Distribute, Edit, Seq, Use, branch


def scaled(a, b, *, scale):
    return (a + b) * scale


def plus(x, *, extra):
    return x + extra


def towers():
    return Chain(
        Distribute(a=Seq(left=nn.Linear(3, 3), act=torch.tanh), b=Seq(right=nn.Linear(3, 3))),
        scale=nn.Parameter(torch.ones(())),
        join=scaled,
        takes=("x", "y"),
        inputs=(),
    )


def test_a_branch_runs_its_branch_alone_and_shares_its_weights():
    tree = towers()
    made = branch(tree, "a", ("x",))
    assert made.source == "def forward(self, x):\n    left = self.left(x)\n    return tanh(left)\n"
    assert list(made.state_dict()) == ["left.weight", "left.bias"]
    assert made.left is tree.left
    assert set(tree.state_dict()) > {"right.weight", "scale"}


def test_a_branch_keeps_the_adapters_of_its_branch_and_what_they_are_given():
    tree = towers().edit(
        [
            Edit.add("left", nn.Linear(3, 3), "ad"),
            Edit.provide("extra", Seq(Use("hint"), torch.sin), "ad", inputs=("hint",)),
            Edit.after("a.act", plus, "ad"),
        ]
    )
    assert set(branch(tree, "b", ("y",)).inputs) == {"y"}
    made, x, hint = branch(tree, "a", ("x",)), torch.randn(2, 3), torch.randn(2, 3)
    assert set(made.inputs) == {"x", "hint"}
    expected = torch.tanh(tree.left(x) + tree.left__ad(x)) + hint.sin()
    assert torch.equal(made(x, hint=hint), expected)


def test_a_branch_can_be_edited_further():
    made = branch(towers(), "b", ("y",))
    y = torch.randn(2, 3)
    edited = made.edit([Edit.after("right", torch.sin, "more")])
    assert torch.equal(edited(y), made(y).sin())


def test_a_branch_that_is_not_there_is_refused():
    with pytest.raises(InarchError) as caught:
        branch(towers(), "c", ("x",))
    assert caught.value.code == "IA110"
