"""Trees through pickle, copies, torch.save, the meta device, and weights that stay tied."""

from __future__ import annotations

import bdb
import contextlib
import copy
import inspect
import io
import linecache
import pdb
import pickle

import pytest
import torch
from small_trees import LowRank, language_model, linear, low_rank_edits, run, same

from inarch.tree import Chain, Edit


def through_torch(tree):
    file = io.BytesIO()
    torch.save(tree, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "pickle": lambda tree: pickle.loads(pickle.dumps(tree)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "torch.save": through_torch,
}


def adapted():
    tree = language_model()
    return tree.edit([*low_rank_edits(tree, "a"), Edit.add("lm_head", LowRank(8, 11), "b")])


@pytest.mark.parametrize("make", [language_model, adapted])
@pytest.mark.parametrize("name", COPIES)
def test_a_copy_has_the_same_form_outputs_keys_and_ties(name, make):
    tree = make()
    again = COPIES[name](tree)
    assert again.form is tree.form
    assert same(run(again), run(tree))
    assert list(again.state_dict()) == list(tree.state_dict())
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert again.model.layers[0].forward.__self__ is again.model.layers[0]


@pytest.mark.parametrize("name", ["pickle", "deepcopy", "torch.save"])
def test_a_copy_shares_no_weights(name):
    tree = language_model()
    again = COPIES[name](tree)
    shared = {id(p) for p in tree.parameters()} & {id(p) for p in again.parameters()}
    assert not shared
    with torch.no_grad():
        again.lm_head.weight.zero_()
    assert tree.lm_head.weight.abs().sum() > 0


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_can_be_edited_and_the_tree_stays(name):
    tree = language_model()
    before = run(tree)
    again = COPIES[name](tree)
    edited = again.edit(low_rank_edits(again, "a"))
    assert not same(run(edited), before)
    assert same(run(tree), before)
    assert same(run(again), before)


def test_a_tree_that_was_compiled_in_place_can_be_pickled():
    tree = language_model(1)
    tree.compile(backend="eager")
    assert same(run(pickle.loads(pickle.dumps(tree))), run(language_model_like(tree)))
    torch._dynamo.reset()


def language_model_like(tree):
    other = language_model(1)
    other.load_state_dict(tree.state_dict())
    return other


@pytest.mark.parametrize("make", [language_model, adapted])
def test_a_tree_made_on_meta_and_assigned_equals_the_one_made_plainly(make):
    plain = make()
    with torch.device("meta"):
        tree = make()
    assert all(p.is_meta for p in tree.parameters())
    tree = tree.to_empty(device="cpu")
    assert tree.lm_head.weight is tree.model.embed_tokens.weight
    tree.load_state_dict(plain.state_dict(), assign=True)
    assert tree.lm_head.weight is tree.model.embed_tokens.weight
    assert same(run(tree), run(plain))


def test_a_meta_tree_runs_on_meta():
    with torch.device("meta"):
        assert run(language_model()).shape == (2, 5, 11)


@pytest.mark.parametrize("kept", ["lm_head.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("assign", [True, False])
def test_either_tied_name_may_be_absent_from_a_state_dict(kept, assign):
    plain, tree = language_model(), language_model()
    state = plain.state_dict()
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        if name != kept:
            del state[name]
    tree.load_state_dict(state, assign=assign)
    assert tree.lm_head.weight is tree.model.embed_tokens.weight
    assert same(run(tree), run(plain))


@pytest.mark.parametrize("wrong", ["missing", "extra", "shape"])
def test_a_state_dict_that_does_not_fit_is_refused(wrong):
    tree = language_model()
    state = tree.state_dict()
    if wrong == "missing":
        del state["model.norm.weight"]
    elif wrong == "extra":
        state["model.more"] = torch.ones(1)
    else:
        state["model.norm.weight"] = torch.ones(3)
    with pytest.raises(RuntimeError):
        tree.load_state_dict(state)


@pytest.mark.parametrize("swap", [False, True])
def test_tied_weights_stay_tied_through_a_cast(swap):
    tree = language_model()
    torch.__future__.set_overwrite_module_params_on_conversion(swap)
    try:
        tree = tree.to(torch.bfloat16)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    assert tree.lm_head.weight is tree.model.embed_tokens.weight
    assert tree.lm_head.weight.dtype == torch.bfloat16


def test_tied_weights_stay_tied_through_edits_that_touch_both_ends():
    tree = language_model()
    edited = tree.edit(
        [Edit.add("lm_head", LowRank(8, 11), "a"), Edit.after("model.embed_tokens", LowRank(), "a")]
    )
    assert edited.lm_head.weight is edited.model.embed_tokens.weight is tree.lm_head.weight
    edited = edited.double()
    assert edited.lm_head.weight is edited.model.embed_tokens.weight


def test_a_tie_inside_an_inner_chain_is_kept_by_its_outer_module():
    inner = Chain(a=linear(), b=linear()).tie("b.weight", "a.weight")
    outer = Chain(c=inner)
    again = outer.to_empty(device="meta").to_empty(device="cpu")
    assert again.c.a.weight is again.c.b.weight
    outer.load_state_dict({"c.a.weight": torch.ones(8, 8)}, assign=True)
    assert outer.c.a.weight is outer.c.b.weight


def test_the_source_can_be_inspected_and_debugged():
    tree = language_model()
    forward = tree.model.layers[0].forward
    assert inspect.getsource(forward) == tree.model.layers[0].source
    linecache.checkcache()
    assert inspect.getsource(forward) == tree.model.layers[0].source
    told = io.StringIO()
    debugger = pdb.Pdb(stdin=io.StringIO("s\n" * 6 + "l\nq\n"), stdout=told)
    small = Chain(a=linear(), b=torch.tanh)
    with contextlib.suppress(bdb.BdbQuit):
        debugger.runcall(small.forward, torch.ones(8))
    assert "a = self.a(x)" in told.getvalue()


def test_the_inputs_of_a_model_can_be_read_from_its_forward():
    assert list(inspect.signature(language_model().forward).parameters) == [
        "input_ids",
        "positions",
        "mask",
    ]
