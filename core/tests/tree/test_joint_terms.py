"""Terms that know how are computed in one call; names, weights and the program stay one each."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_trees import edits, inputs_for, trees
from small_trees import LowRank, Together, linear, same
from test_generated_forward import RELAXED
from torch import nn

from inarch.errors import InarchError
from inarch.testing.interpreter import interpret
from inarch.tree import Chain, Edit
from inarch.tree.joint import writable
from inarch.tree.part import part
from inarch.tree.substitute import substitute


def stacked(*terms):
    """A layer with terms beside it, by adapter: each a module."""
    base = Chain(q_proj=linear(), act=torch.tanh)
    return base.edit([Edit.add("q_proj", module, name) for name, module in terms])


def pair():
    return stacked(("a", Together()), ("b", Together()))


def test_two_that_know_how_are_written_as_one_call_that_names_both():
    assert pair().source == (
        "def forward(self, x):\n"
        "    q_proj = self.q_proj(x)\n"
        "    q_proj = self.q_proj__a__b_(x, plus=q_proj)\n"
        "    return tanh(q_proj)\n"
    )


def test_more_than_four_are_counted():
    tree = stacked(*((f"a{i}", Together()) for i in range(6)))
    assert "q_proj = self.q_proj__a0__and_5_more_(x, plus=q_proj)" in tree.source


def test_one_alone_after_a_layer_s_own_output_is_called_by_a_name_that_says_so():
    tree = stacked(("a", Together()))
    assert "q_proj = self.q_proj__a_(x, plus=q_proj)" in tree.source
    assert [(joint.terms, joint.onto) for joint in tree.form.joints] == [(("q_proj__a",), "q_proj")]


class Own(nn.Linear):
    """A layer that may keep what it gives."""


@pytest.mark.parametrize(
    "edits",
    [
        [Edit.tap("q_proj", "seen", "t"), Edit.add("q_proj", Together(), "a")],
        [Edit.replace("q_proj", Own(8, 8), "t"), Edit.add("q_proj", Together(), "a")],
        [Edit.add("q_proj", LowRank(), "a"), Edit.add("q_proj", Together(), "b")],
        [Edit.add("act", Together(), "a")],
    ],
    ids=["a tap", "a class that does not say", "a term before", "a function"],
)
def test_one_alone_is_called_as_ever_where_others_may_hold_the_sum_so_far(edits):
    tree = Chain(q_proj=linear(), act=torch.tanh)
    for edit in edits:
        tree = tree.edit([edit])
    assert not tree.form.joints


def test_a_class_may_say_that_all_it_gives_is_new():
    class New(Own):
        gives_new = True

    class Heir(New):
        pass

    trees = [
        Chain(q_proj=kind(8, 8)).edit([Edit.add("q_proj", Together(), "a")]) for kind in (New, Heir)
    ]
    assert [bool(tree.form.joints) for tree in trees] == [True, False]


def keep(module, _args, output):
    module.kept = output


@pytest.mark.parametrize("kind", ["hook", "all hooks", "forward", "gradient", "transform", "input"])
def test_a_layer_s_output_is_written_into_only_where_nobody_else_can_hold_it(kind):
    layer, x = linear(), torch.randn(3, 8)
    with torch.no_grad():
        assert writable(layer(x), layer, x)
        assert not writable(layer(x), None, x)
    handle = None
    if kind == "hook":
        handle = layer.register_forward_hook(keep)
    elif kind == "all hooks":
        handle = nn.modules.module.register_module_forward_hook(keep)
    elif kind == "forward":
        layer.forward = layer.forward
    try:
        with torch.set_grad_enabled(kind == "gradient"):
            if kind == "transform":
                found = []
                torch.func.vmap(lambda row: found.append(writable(layer(row), layer, row)) or row)(
                    x
                )
                assert found == [False]
            else:
                given = x if kind == "input" else layer(x)
                assert not writable(given, layer, x)
    finally:
        if handle is not None:
            handle.remove()


def test_those_that_differ_in_what_they_join_by_or_in_class_stay_apart():
    class Other(Together):
        pass

    tree = stacked(
        ("a", Together()),
        ("b", LowRank()),
        ("c", Together(rank=3)),
        ("d", Together()),
        ("e", Other()),
        ("f", Together(rank=3)),
    )
    assert [(joint.name, joint.terms) for joint in tree.form.joints] == [
        ("q_proj__a__d_", ("q_proj__a", "q_proj__d")),
        ("q_proj__c__f", ("q_proj__c", "q_proj__f")),
    ]
    x = torch.randn(3, 8)
    assert torch.equal(tree(x), interpret(tree, x))


def test_no_module_is_registered_a_second_time():
    tree = pair()
    assert list(tree._modules) == ["q_proj", "q_proj__a", "q_proj__b"]
    assert [n for n, _ in tree.named_modules()].count("q_proj__a") == 1
    assert len(list(tree.parameters())) == 1 + 2 * 2
    assert "q_proj__b.a.weight" in tree.state_dict()


def test_the_program_and_the_drawing_still_have_one_term_each():
    drawn = repr(pair())
    assert drawn.count("[a]") == drawn.count("[b]") == 1
    assert "a__b" not in drawn


@pytest.mark.parametrize("kind", [pickle, copy])
def test_a_copy_computes_its_own_modules_together(kind):
    tree = pair()
    again = pickle.loads(pickle.dumps(tree)) if kind is pickle else copy.deepcopy(tree)
    assert again.form is tree.form
    assert again.q_proj__a__b_.modules == [again.q_proj__a, again.q_proj__b]
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.zero_()
    x = torch.randn(3, 8)
    assert torch.equal(again(x), interpret(again, x))
    assert again(x).abs().sum() > 0


def test_an_edited_tree_holds_only_the_joints_of_its_own_program():
    tree = pair()
    more = tree.edit([Edit.add("q_proj", Together(), "c")])
    assert more.q_proj__a__b__c_.modules == [more.q_proj__a, more.q_proj__b, more.q_proj__c]
    assert "q_proj__a__b_" not in more.__dict__
    assert tree.q_proj__a__b_.modules == [tree.q_proj__a, tree.q_proj__b]
    assert "q_proj__a__b_" not in part(tree, first="act").__dict__


def test_trees_that_share_the_modules_share_what_computes_them():
    tree = pair()
    other = tree.edit([Edit.after("act", torch.sin, "c")])
    assert other is not tree
    assert other.q_proj__a__b_ is tree.q_proj__a__b_
    assert copy.deepcopy(tree).q_proj__a__b_ is not tree.q_proj__a__b_


def test_a_module_keeps_the_name_that_a_joint_would_have_had():
    tree = stacked(("a", Together()), ("b", Together()))
    tree._register("q_proj__a__b_", linear())
    tree = tree.edit([Edit.after("act", torch.sin, "c")])
    assert [joint.name for joint in tree.form.joints] == ["q_proj__a__b_2_"]
    x = torch.randn(3, 8)
    assert torch.equal(tree(x), interpret(tree, x))


def test_any_order_of_edits_gives_one_form_and_the_same_bits():
    terms = {name: Together() for name in ("b", "ab", "a", "lora")}
    base, x = Chain(q_proj=linear()), torch.randn(3, 8)
    found = [
        base.edit([Edit.add("q_proj", terms[name], name) for name in order])
        for order in (("a", "ab", "b", "lora"), ("lora", "b", "a", "ab"))
    ]
    assert found[0].form is found[1].form
    assert torch.equal(found[0](x), found[1](x))


def test_another_base_layer_leaves_the_terms_joined():
    tree, x = pair(), torch.randn(3, 8)
    other = linear()
    again = substitute(tree, {"q_proj": other})
    assert again.q_proj__a__b_.modules == [tree.q_proj__a, tree.q_proj__b]
    assert torch.equal(again(x), interpret(again, x))
    assert not torch.equal(again(x), tree(x))


@given(st.data())
@settings(max_examples=100, **RELAXED)
def test_trees_with_joint_terms_equal_their_interpreted_program(data):
    tree = data.draw(trees())
    for address in sorted(tree.form.index)[:3]:
        for adapter in data.draw(st.permutations(["a", "ab", "lora"])):
            term = Together(4, 4, rank=data.draw(st.integers(1, 2))).double()
            try:
                tree = tree.edit([Edit.add(address, term, adapter)])
                tree = tree.edit([data.draw(edits(tree, f"e_{adapter}"))])
            except InarchError as error:
                assert error.code in {"IA101", "IA104", "IA105", "IA110", "IA111", "IA115"}, error
    x, named = inputs_for(tree)
    assert same(tree(x, **named), interpret(tree, x, **named)), tree.source
