"""What can't be a tree is refused when it is built, by code and by name."""

from __future__ import annotations

import functools

import pytest
import torch
from small_trees import LowRank, linear
from torch import Tensor, nn

from inarch.errors import InarchError
from inarch.tree import (
    Chain,
    Concat,
    Distribute,
    Edit,
    Export,
    Here,
    Identity,
    Let,
    Parallel,
    Product,
    Residual,
    Seq,
    Sum,
    Use,
)


def needs_gain(x, *, gain):
    return x * gain


def pair(x) -> tuple[Tensor, Tensor]:
    return x, x


def join(a, b):
    return a + b


def endless(x) -> tuple[Tensor, ...]:
    return (x,)


def bare(x) -> tuple:
    return (x,)


def one_tuple(x) -> tuple[Tensor]:
    return (x,)


class Weight(nn.Module):
    def forward(self, x, *, plus):
        return plus + x


class Several(nn.Module):
    def forward(self, x, *, plus=None) -> tuple[Tensor, Tensor]:
        return x, x


BAD_LABELS = ["no-dash", "2x", "class", "None", "a b", "a__b", "forward", "weight_.", ".a", "a..b"]
BAD_LABELS += ["training", "_modules", "form", "program", "interface", "ties", "edit", "select"]
BAD_LABELS += ["source", "inputs", "ﬁ", "٣", "01", "a.01", "²", "to", "parameters", "a.type", ""]


def refused(code, build, *words):
    with pytest.raises(InarchError) as caught:
        build()
    text = str(caught.value)
    assert caught.value.code == code, text
    assert all(word in text for word in words), text
    return caught.value


@pytest.mark.parametrize("label", BAD_LABELS)
def test_a_label_that_python_or_torch_can_not_have_is_refused(label):
    refused("IA103", lambda: Chain((label, linear())), f"`{label}`")


@pytest.mark.parametrize("label", ["no-dash", "class", "a.b", "0", "a__b", "ﬁ"])
def test_a_label_of_a_function_must_be_one_identifier(label):
    refused("IA103", lambda: Chain((label, torch.tanh)), f"`{label}`")


@pytest.mark.parametrize("label", ["a.b", "0", "training"])
def test_a_parameter_s_label_is_one_free_identifier(label):
    refused("IA103", lambda: Chain((label, nn.Parameter(torch.ones(1)))), f"`{label}`")


def test_a_label_may_not_hide_a_method_of_a_subclass():
    class Encoder(Chain):
        def encode(self):
            return 1

    refused("IA103", lambda: Encoder(encode=linear()), "`encode`")


@pytest.mark.parametrize(
    "name", ["class", "self", "plus", "a b", "_error", "_explain", "a__b", "ﬁ"]
)
def test_a_value_can_not_be_called_what_the_forward_needs(name):
    refused("IA103", lambda: Chain(Let(name, torch.tanh), torch.tanh), f"`{name}`")
    refused("IA103", lambda: Chain(Use(name)), f"`{name}`")
    refused("IA103", lambda: Chain(torch.tanh, takes=(name,)), f"`{name}`")


def test_a_need_that_nobody_binds_is_refused_where_inputs_are_closed():
    error = refused("IA105", lambda: Chain(Seq(act=needs_gain), inputs=("text",)), "`gain`", "text")
    assert error.where == "act"


def test_a_need_from_deep_inside_is_refused_at_the_chain_that_closes_its_inputs():
    inner = Chain(Chain(needs_gain))
    assert inner.form.needs == ("gain",)
    refused("IA105", lambda: Chain(a=inner, inputs=()), "`gain`", "a")


def test_a_misspelt_need_is_an_error_when_the_tree_is_built():
    refused("IA105", lambda: Chain(Let("gian", torch.tanh), needs_gain, inputs=()), "`gain`")


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ((Let("a", torch.tanh), Let("a", torch.sin)), "a"),
        ((needs_gain, Let("gain", torch.tanh)), "gain"),
        ((Let("x", torch.tanh),), "x"),
        ((Let(("a", "a"), pair),), "a"),
        ((Chain(Export("a", torch.tanh)), Let("a", torch.tanh)), "a"),
        ((Chain(Export("a", torch.tanh)), Chain(Export("a", torch.tanh))), "a"),
        ((Chain(Export("x", torch.tanh), takes="y"),), "x"),
        ((Parallel(Let("a", torch.tanh), Let("a", torch.sin)), join), "a"),
    ],
)
def test_a_name_bound_twice_is_refused(steps, name):
    refused("IA101", lambda: Chain(*steps), f"`{name}`")


def test_two_main_values_of_one_name_are_refused():
    refused("IA101", lambda: Chain(join, takes=("a", "a")), "`a`")


def test_a_need_that_has_the_main_value_s_name_is_refused():
    refused("IA103", lambda: Chain(needs_gain, takes=("gain",)), "`gain`", "main input")


@pytest.mark.parametrize(
    "build",
    [
        lambda: Chain(Seq(a=linear()), Seq(a=linear())),
        lambda: Chain(Seq(a=torch.tanh), Seq(a=linear())),
        lambda: Chain(("1", linear()), linear()),
        lambda: Chain(("a.b", linear()), ("a.b", linear())),
        lambda: Chain(("a", linear()), ("a.b", linear())),
        lambda: Chain(("a.b", linear()), ("a", linear())),
        lambda: Chain(("a", Chain(torch.tanh)), ("a.b", linear())),
        lambda: Chain(Let("a", torch.tanh), ("a", linear())),
        lambda: Chain(a=nn.Parameter(torch.ones(1)), b=Seq(a=linear())),
        lambda: Chain(Seq(a=Seq(b=torch.tanh)), ("a.b", linear()), Seq(c=Seq(b=torch.tanh))),
    ],
)
def test_a_label_used_twice_is_refused(build):
    refused("IA102", build, "`")


def test_a_chain_named_in_a_dotted_label_stays_untouched():
    inner = Chain(a=linear())
    refused("IA102", lambda: Chain(("enc", inner), ("enc.more", linear())), "`enc.more`")
    assert list(inner._modules) == ["a"]


@pytest.mark.parametrize("make", [Seq, Sum, Product, Residual, Parallel, Distribute])
def test_a_module_without_a_label_inside_a_combinator_is_refused(make):
    refused("IA102", lambda: Chain(make(linear())), "Linear", "label")


@pytest.mark.parametrize(
    ("steps", "word"),
    [
        ((pair, linear()), "self[1]"),
        ((join,), "join"),
        ((pair, Residual(torch.tanh)), "Residual"),
        ((pair, Distribute(torch.tanh)), "Distribute"),
        ((Sum(pair, torch.tanh),), "Sum"),
        ((Product(pair),), "Product"),
        ((Concat(pair, dim=0),), "Concat"),
        ((Let("a", pair),), "Let"),
        ((Let(("a", "b"), torch.tanh),), "Let"),
        ((pair, Chain(torch.tanh)), "self[1]"),
        ((Sum(),), "Sum"),
        ((Product(),), "Product"),
        ((Concat(dim=0),), "Concat"),
        ((endless,), "..."),
        ((bare,), "tuple"),
        ((one_tuple,), "tuple[Tensor]"),
    ],
)
def test_values_that_do_not_fit_a_step_are_refused(steps, word):
    refused("IA104", lambda: Chain(*steps), word)


def test_a_use_must_name_something():
    refused("IA104", Use, "Use")


@pytest.mark.parametrize("dim", ["1); import os", 1.0, True, None])
def test_only_an_integer_enters_the_text_as_a_dimension(dim):
    refused("IA104", lambda: Concat(torch.tanh, dim=dim), "dim")


@pytest.mark.parametrize("step", [None, 3, "tanh", ("a", "b", "c"), torch.zeros(1), nn.ReLU, Chain])
def test_what_is_no_step_is_refused(step):
    refused("IA106", lambda: Chain(step), "step")


def test_a_method_of_a_module_is_no_step_since_it_hides_weights():
    refused("IA106", lambda: Chain(linear().forward), "method of a module")


@pytest.mark.parametrize("constant", [[1], {"a": 1}, torch.zeros(2), linear(), (1, [2])])
def test_a_constant_that_can_not_be_compared_is_refused(constant):
    refused("IA107", lambda: Chain(functools.partial(needs_gain, gain=constant)), "needs_gain" * 0)


def test_plus_is_no_need_that_an_author_can_meet():
    refused("IA103", lambda: Chain(Weight()), "`plus`")


def test_a_term_that_takes_the_sum_must_give_one_value():
    tree = Chain(a=linear())
    refused("IA104", lambda: tree.edit([Edit.add("a", Several(), "p")]), "Sum")


def test_here_outside_of_a_wrap_is_refused():
    refused("IA112", lambda: Chain(Here()), "Here")


def test_a_tie_must_name_two_parameters_of_one_shape():
    tree = Chain(a=linear(8, 4), b=linear(4, 8), c=nn.LayerNorm(8))
    for alias, source in [("a.weight", "nope.weight"), ("a", "b"), ("a.weight", "c.weight")]:
        refused("IA118", lambda a=alias, s=source: tree.tie(a, s), alias, source)
    assert tree.ties == ()


EDITS = [
    ("IA110", lambda: Edit.add("nope", torch.tanh, "a"), "`nope`"),
    ("IA110", lambda: Edit.add("a.*", torch.tanh, "a"), "`a.*`"),
    ("IA113", lambda: Edit.add("{a,b", torch.tanh, "a"), "{a,b"),
    ("IA113", lambda: Edit.add("a..*", torch.tanh, "a"), "a..*"),
    ("IA113", lambda: Edit.add("**", torch.tanh, "a"), "**"),
    ("IA113", lambda: Edit.add("{a,{b}}", torch.tanh, "a"), "{a,{b}}"),
    ("IA113", lambda: Edit.add("a[*]", torch.tanh, "a"), "a[*]"),
    ("IA117", lambda: Edit.add("", torch.tanh, "a"), "address"),
    ("IA117", lambda: Edit(address="a", kind="graft", adapter="a"), "graft"),
    ("IA117", lambda: Edit(address="a", kind="tap", adapter="a"), "name"),
    ("IA117", lambda: Edit(address="a", kind="add", adapter="a", names=("b",)), "name"),
    ("IA117", lambda: Edit.provide("b", linear(), "a", label="a b"), "`a b`"),
    ("IA112", lambda: Edit.wrap("a", torch.tanh, "a"), "0 times"),
    ("IA112", lambda: Edit.wrap("a", Sum(Here(), Here()), "a"), "2 times"),
    ("IA106", lambda: Edit.add("a", None, "a"), "step"),
    ("IA105", lambda: Edit.add("a", needs_gain, "a"), "`gain`"),
    ("IA102", lambda: Edit.after("a", Seq(linear(), LowRank()), "a"), "a__a"),
    ("IA103", lambda: Edit.after("a", Seq(("forward", linear())), "a"), "`forward`"),
    ("IA101", lambda: Edit.tap("a", "x", "a"), "`x`"),
    ("IA103", lambda: Edit.tap("a", "class", "a"), "`class`"),
    ("IA104", lambda: Edit.add("a", pair, "a"), "Sum"),
]


@pytest.mark.parametrize(("code", "edit", "word"), EDITS)
def test_an_edit_that_does_not_fit_is_refused_and_changes_nothing(code, edit, word):
    tree = Chain(a=linear(), b=torch.tanh, inputs=())
    before = (tree.source, list(tree.state_dict()), dict(tree._modules), repr(tree))
    refused(code, lambda: tree.edit([Edit.add("a", LowRank(), "fine"), edit()]), word)
    assert (tree.source, list(tree.state_dict()), dict(tree._modules), repr(tree)) == before


def test_identity_of_nothing_is_a_fine_tree():
    x = torch.ones(1)
    assert Chain()(x) is x
    assert Chain(Identity())(x) is x
