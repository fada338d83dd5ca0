"""The generated forward of any tree gives, bit for bit, what its interpreter gives."""

from __future__ import annotations

import copy

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_trees import edits, inputs_for, trees
from small_trees import inputs, language_model, low_rank_edits, same

from inarch.errors import InarchError
from inarch.testing.interpreter import interpret
from inarch.tree import Chain

RELAXED = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "report_multiple_bugs": False,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


def agrees(tree: Chain) -> bool:
    x, named = inputs_for(tree)
    return same(tree(x, **named), interpret(tree, x, **named))


@given(trees())
@settings(max_examples=150, **RELAXED)
def test_a_generated_forward_equals_the_interpreted_program_bitwise(tree):
    assert agrees(tree), tree.source


@given(st.data())
@settings(max_examples=150, **RELAXED)
def test_an_edited_tree_equals_its_interpreted_program_and_the_base_stays(data):
    base = data.draw(trees())
    x, named = inputs_for(base)
    before, tree = base(x, **named), base
    for adapter in ("a", "ab", "a_b", "lora"):
        edit = data.draw(edits(tree, adapter))
        try:
            tree = tree.edit([edit])
        except InarchError as error:
            assert error.code in {"IA101", "IA104", "IA105", "IA111", "IA115"}, error
    assert agrees(tree), tree.source
    assert same(base(x, **named), before)
    found = [site.address for site in tree.select()]
    assert sorted(found) == sorted(tree.form.index)
    assert repr(tree).count("[a]") <= 1
    assert copy.deepcopy(tree).form is tree.form


@given(trees())
@settings(max_examples=60, **RELAXED)
def test_every_generated_line_fits_in_a_hundred_columns(tree):
    for chain in tree.modules():
        if isinstance(chain, Chain):
            assert max(map(len, chain.source.splitlines())) <= 100


@given(trees())
@settings(max_examples=60, **RELAXED)
def test_what_select_finds_is_what_edits_can_address(tree):
    found = [site.address for site in tree.select()]
    assert len(found) == len(set(found))
    assert set(found) == set(tree.form.index)


@given(trees())
@settings(max_examples=40, **RELAXED)
def test_a_tree_made_again_from_its_pickle_has_the_same_forms(tree):
    assert copy.deepcopy(tree).form is tree.form


def test_a_language_model_equals_its_interpreted_program():
    tree = language_model()
    tree = tree.edit(low_rank_edits(tree, "a")).edit(low_rank_edits(tree, "b"))
    args, named = inputs()
    assert same(tree(*args, **named), interpret(tree, *args, **named))
