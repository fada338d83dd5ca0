"""Editing costs what it must: each touched Chain is written once, whatever the number of edits."""

from __future__ import annotations

import time

import pytest
import torch
from small_trees import LowRank, language_model
from torch import nn

from inarch.tree import Chain, Edit

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


def test_each_touched_chain_is_written_once(many, monkeypatch):
    tree, edits = many
    written = []
    generate = Chain._generate
    monkeypatch.setattr(Chain, "_generate", lambda self: (written.append(self), generate(self)))
    edited = tree.edit(edits)
    shared = set(tree.modules())
    touched = [m for m in edited.modules() if isinstance(m, Chain) and m not in shared]
    assert len(written) == len(touched) == 3 + 3 * LAYERS - 1
    assert {id(chain) for chain in written} == {id(chain) for chain in touched}


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
