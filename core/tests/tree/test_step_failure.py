"""A step that fails keeps its exception; a note says where it stands and what came in."""

from __future__ import annotations

import gc
import traceback
from dataclasses import dataclass

import pytest
import torch
from small_trees import inputs, language_model, linear
from torch import nn

from inarch.tree import Chain, Seq, Sum

NOTE = "in inarch, at `outer.middle.inner.bad`; what came in: x [2, 3] float32"
ONE = ValueError("the same object each time")


def nested(step, *, first=torch.tanh):
    return Chain(outer=Chain(middle=Chain(inner=Chain(first, Seq(bad=step)))))


def fail(x):
    raise ValueError("no")


def fail_with_one(x):
    raise ONE


def failure(tree, *values, **named):
    with pytest.raises(Exception) as caught:
        tree(*values, **named)
    return caught.value


def test_one_note_gives_address_and_shapes_through_nested_chains():
    error = failure(nested(fail), torch.ones(2, 3))
    assert type(error) is ValueError
    assert error.args == ("no",)
    assert error.__notes__ == [NOTE]


def test_the_traceback_shows_each_generated_line():
    error = failure(nested(fail), torch.ones(2, 3))
    lines = [f.line for f in traceback.extract_tb(error.__traceback__) if "<inarch" in f.filename]
    assert lines == [
        "return self.outer(x)",
        "return self.middle(x)",
        "return self.inner(x)",
        "return fail(x)",
    ]


def test_a_wrong_shape_is_noted_with_all_that_came_in():
    tree = language_model()
    (ids,), named = inputs()
    error = failure(tree, ids, **{**named, "mask": torch.ones(3, 3, dtype=torch.bool)})
    assert isinstance(error, RuntimeError)
    [note] = error.__notes__
    assert "`model.layers.0.self_attn.attend`" in note
    assert note.endswith("value [2, 2, 5, 4] float32, mask [3, 3] bool")


def test_only_values_that_came_in_are_noted_not_what_an_older_line_left():
    tree = Chain(Sum(a=Seq(first=torch.tanh, heads=torch.sin), b=Seq(third=torch.cos, heads=fail)))
    [note] = failure(tree, torch.ones(4)).__notes__
    assert "heads" not in note.partition("; ")[2]
    assert "third [4]" in note


def test_an_exception_object_raised_again_is_noted_anew():
    for shape in [(2, 3), (5,)]:
        error = failure(nested(fail_with_one), torch.ones(shape))
        assert error is ONE
        [note] = error.__notes__
        assert note == NOTE.replace("[2, 3]", str(list(shape)))
    [note] = failure(Chain(other=fail_with_one), torch.ones(7)).__notes__
    assert note == "in inarch, at `other`; what came in: x [7] float32"


def test_a_failure_inside_an_except_block_has_its_own_note():
    tree = nested(fail)
    try:
        tree(torch.ones(1))
    except ValueError as first:
        second = failure(tree, torch.ones(2, 3))
        assert second.__context__ is first
        assert second.__notes__ == [NOTE]
        assert first.__notes__ == [NOTE.replace("[2, 3]", "[1]")]


def test_a_failure_that_a_step_turns_into_another_has_one_note_each():
    inner = Chain(Seq(bad=fail))

    class Guard(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            try:
                return self.inner(x)
            except ValueError as error:
                raise RuntimeError("wrapped") from error

    error = failure(Chain(guard=Guard()), torch.ones(2))
    assert error.__notes__ == ["in inarch, at `guard`; what came in: x [2] float32"]
    assert error.__cause__.__notes__ == ["in inarch, at `bad`; what came in: x [2] float32"]


def test_an_error_that_takes_no_notes_still_arrives():
    @dataclass(frozen=True)
    class Frozen(Exception):
        reason: str

    def refuse(x):
        raise Frozen("so")

    error = failure(nested(refuse), torch.ones(1))
    assert isinstance(error, Frozen)
    assert error.reason == "so"


def test_a_step_without_a_label_is_noted_by_the_chain_it_is_in():
    [note] = failure(Chain(a=Chain(fail)), torch.ones(1)).__notes__
    assert note.startswith("in inarch, at `a`; ")
    [note] = failure(Chain(fail), torch.ones(1)).__notes__
    assert note.startswith("in inarch, at `a step without a label`; ")


def test_a_keyboard_interrupt_is_left_alone():
    def interrupt(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        Chain(interrupt)(torch.ones(1))
    assert not hasattr(caught.value, "__notes__")


def test_a_failure_leaves_nothing_for_the_next_call():
    tree = nested(lambda x: x if x.dim() == 1 else fail(x))
    failure(tree, torch.ones(2, 3))
    assert torch.equal(tree(torch.ones(3)), torch.tanh(torch.ones(3)))


def test_a_failure_keeps_no_frame_alive_after_it():
    import weakref

    tree = nested(fail)
    value = torch.ones(2, 3)
    gone = weakref.ref(value)
    with pytest.raises(ValueError, match="no"):
        tree(value)
    del value
    gc.collect()
    assert gone() is None


def test_a_failure_in_a_compiled_tree_keeps_its_type():
    tree = Chain(a=linear(4, 4), b=fail)
    compiled = torch.compile(tree, backend="eager")
    assert type(failure(compiled, torch.ones(2, 4))) is ValueError
    torch._dynamo.reset()


def test_a_wrong_shape_in_a_compiled_tree_names_the_generated_line():
    compiled = torch.compile(Chain(a=linear(4, 4), b=linear(3, 3)), backend="eager")
    error = failure(compiled, torch.ones(2, 4))
    assert "self.b(a)" in str(error)
    torch._dynamo.reset()
