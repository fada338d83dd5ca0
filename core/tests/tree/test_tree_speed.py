"""Editing costs what it must: each touched Chain is written once, whatever the number of edits."""

from __future__ import annotations

import inspect
import time

import pytest
import torch
from small_trees import LowRank, language_model
from torch import nn

from inarch.tree import Chain, Edit
from inarch.tree.steps import Graft, walk

LAYERS = 106


@pytest.fixture
def many():
    """A model on meta, and 739 edits to it."""
    with torch.device("meta"):
        tree = language_model(LAYERS)
        linear = tree.select("model.*.*.*.*_proj", type=nn.Linear)[:739]
        edits = [
            Edit.add(f.address, LowRank(f.module.in_features, f.module.out_features), "a")
            for f in linear
        ]
    assert len(edits) == 739
    return tree, edits


def test_each_touched_chain_gets_its_form_once_and_each_edited_form_is_written_once(
    many, monkeypatch
):
    tree, edits = many
    given, written = [], []
    take, generate = Chain._take, Chain._generate
    monkeypatch.setattr(Chain, "_take", lambda self, *form: (given.append(self), take(self, *form)))
    monkeypatch.setattr(Chain, "_generate", lambda self: (written.append(self), generate(self)))
    edited = tree.edit(edits)
    shared = set(tree.modules())
    touched = [m for m in edited.modules() if isinstance(m, Chain) and m not in shared]
    assert len(given) == len(touched) == 3 + 3 * LAYERS - 1
    assert {id(chain) for chain in given} == {id(chain) for chain in touched}
    with_edits = {c.form for c in touched if any(isinstance(s, Graft) for s in walk(c.program))}
    assert len(written) == len(with_edits) < 12


def test_a_chain_that_no_edit_stands_in_has_its_text_and_a_function_of_its_own(many):
    tree, edits = many
    block, edited = tree.model.layers[1], tree.edit(edits).model.layers[1]
    assert edited.form is not block.form
    assert edited.source == block.source == inspect.getsource(edited.forward)
    assert edited.forward.__code__ is not block.forward.__code__
    assert edited.forward.__code__.co_filename != block.forward.__code__.co_filename


def test_equal_layers_share_one_form_however_many_are_edited(many):
    tree, edits = many
    edited = tree.edit(edits)
    assert len({block.form for block in edited.model.layers}) <= 2
    assert len({block.form for block in tree.model.layers}) == 1


def test_editing_739_layers_takes_a_fraction_of_a_second(many):
    tree, edits = many
    times = []
    for _ in range(3):
        start = time.perf_counter()
        tree.edit(edits)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_building_deep_models_takes_a_fraction_of_a_second():
    with torch.device("meta"):
        start = time.perf_counter()
        language_model(32)
    assert time.perf_counter() - start < 2.0


def test_blocks_whose_edits_have_other_shapes_are_written_apart(many):
    tree, edits = many
    for edit in edits:
        if edit.address.startswith("model.layers.7."):
            edit.step.c = nn.Linear(2, 3, device="meta")
    blocks = tree.edit(edits).model.layers
    assert blocks[6].form is blocks[8].form
    assert blocks[6].form is not blocks[7].form
    assert blocks[6].form.source == blocks[7].form.source


def test_a_block_that_holds_edits_already_is_not_taken_for_one_that_holds_none(many):
    tree, edits = many
    first = [edit for edit in edits if edit.address.startswith("model.layers.7.")]
    rest = [edit for edit in edits if edit not in first]
    second = [Edit.add(e.address, LowRank(3, 3), "b") for e in edits]
    at_once = tree.edit([*edits, *second])
    in_turns = tree.edit(first).edit([*rest, *second])
    forms = [[block.form for block in one.model.layers] for one in (at_once, in_turns)]
    assert forms[0] == forms[1]
