"""Whatever is edited, in whatever order, the base stays as it was, bit for bit."""

from __future__ import annotations

import random

import pytest
import torch
from small_trees import Factor, LowRank, chains_of, language_model, linear, run, same
from torch import nn

from inarch.errors import InarchError
from inarch.tree import Chain, Edit, Here, Seq

NAMES = ["a", "ab", "lora", "weight", "base_layer", "q_proj", "é", "self"]


def random_edit(rng, addresses):
    address, name = rng.choice(addresses), rng.choice(NAMES)
    kind = rng.choice(["add", "scale", "before", "after", "wrap", "replace", "tap", "provide"])
    if kind == "provide":
        return Edit.provide(f"given_{name}", torch.sin, name)
    if kind == "tap":
        return Edit.tap(address, f"seen_{name}", name, export=rng.random() < 0.5)
    step = rng.choice([LowRank, linear, Factor, Chain, lambda: torch.tanh])()
    if kind == "wrap":
        step = Seq(torch.sin, Here())
    return getattr(Edit, kind)(address, step, name)


def test_a_thousand_histories_leave_the_base_as_it_was():
    rng = random.Random(0)
    base = language_model(2)
    addresses = sorted(base.form.index)
    tensors = {name: value.clone() for name, value in base.state_dict().items()}
    modules = dict(base.named_modules(remove_duplicate=False))
    forms = {name: (c.form, c.program, c.forward) for name, c in chains_of(base).items()}
    expected, applied, refused = run(base), 0, 0
    for _ in range(1000):
        tree = base
        for _ in range(rng.randint(1, 4)):
            try:
                tree = tree.edit([random_edit(rng, addresses) for _ in range(rng.randint(1, 3))])
                applied += 1
            except InarchError:
                refused += 1
        state = base.state_dict()
        assert list(state) == list(tensors)
        assert all(torch.equal(state[name], value) for name, value in tensors.items())
        now = dict(base.named_modules(remove_duplicate=False))
        assert list(now) == list(modules)
        assert all(now[name] is module for name, module in modules.items())
    assert {n: (c.form, c.program, c.forward) for n, c in chains_of(base).items()} == forms
    assert same(run(base), expected)
    assert min(applied, refused) > 200


def test_a_base_key_never_moves_whatever_is_added():
    base = language_model(2)
    tree = base
    for i, name in enumerate(NAMES):
        tree = tree.edit(
            [Edit.add(f.address, LowRank(), name) for f in base.select("*.layers.*.*.q_proj")]
        )
        own = [key for key in tree.state_dict() if key in base.state_dict()]
        assert own == list(base.state_dict())
        assert len(tree.state_dict()) == len(base.state_dict()) + 4 * (i + 1)


def test_every_chain_that_no_edit_is_in_is_the_same_object():
    base = language_model(3)
    tree = base.edit([Edit.add("model.layers.1.self_attn.q_proj", LowRank(), "a")])
    touched = {"", "model", "model.layers", "model.layers.1", "model.layers.1.self_attn"}
    before, after = chains_of(base), chains_of(tree)
    assert {name for name in before if after[name] is not before[name]} == touched
    for name, module in base.named_modules(remove_duplicate=False):
        if not isinstance(module, Chain):
            assert tree.get_submodule(name) is module


def test_no_edit_gives_the_tree_itself():
    base = language_model(1)
    assert base.edit([]) is base


def test_a_bare_container_is_copied_on_the_way_to_an_edit():
    def inner():
        return Chain(a=linear())

    base = Chain(("blocks.0", inner()), ("blocks.1", inner()), ("blocks.name", linear()))
    tree = base.edit([Edit.add(f"blocks.{i}.a", LowRank(), "p") for i in range(2)])
    assert "blocks.0.a__p.a.weight" in tree.state_dict()
    assert not any("__p" in key for key in base.state_dict())
    assert tree.blocks is not base.blocks
    assert tree.blocks.name is base.blocks.name


def test_a_later_edit_never_writes_into_what_an_earlier_one_brought():
    base = Chain(a=linear())
    first = base.edit([Edit.before("a", Seq(("one", linear()), ("two", linear())), "p")])
    keys = list(first.state_dict())
    second = first.edit([Edit.after("a", Seq(("one", linear())), "p")])
    assert list(first.state_dict()) == keys
    assert "a__p__after.one.weight" in second.state_dict()


def test_state_added_to_an_edited_tree_stays_there():
    base = language_model(1)
    tree = base.edit([Edit.add("lm_head", LowRank(8, 11), "a")])
    tree.register_buffer("mark", torch.ones(1), persistent=False)
    tree.register_forward_hook(lambda *_: None)
    tree.extra = nn.Linear(1, 1)
    assert not hasattr(base, "mark")
    assert not base._forward_hooks
    assert not base._non_persistent_buffers_set
    assert "extra" not in base._modules


def test_a_module_at_two_labels_is_adapted_where_it_was_addressed():
    shared = Chain(a=linear())
    base = Chain(first=shared, second=shared)
    tree = base.edit([Edit.add("second.a", LowRank(), "p")])
    assert tree.first is shared
    assert tree.second is not shared
    assert tree.first.a is tree.second.a


@pytest.mark.parametrize("how", ["compiled", "compiled inside"])
def test_a_tree_that_was_compiled_in_place_is_not_edited(how):
    base = language_model(1)
    (base if how == "compiled" else base.model.layers[0]).compile(backend="eager")
    with pytest.raises(InarchError, match="compiled") as caught:
        base.edit([Edit.add("lm_head", LowRank(8, 11), "a")])
    assert caught.value.code == "IA108"


def test_a_dropped_tree_leaves_no_form_and_no_text():
    import gc
    import linecache
    import weakref

    from inarch.tree.failure import explain
    from inarch.tree.generate import _FORMS

    base = Chain(quite_new=linear(), another=torch.tanh)
    tree = base.edit([Edit.add("quite_new", LowRank(), "a")])
    files = [chain.form.function.__code__.co_filename for chain in (base, tree)]
    forms = [weakref.ref(chain.form) for chain in (base, tree)]

    def left() -> list[tuple[bool, bool, bool, bool]]:
        gc.collect()
        known = list(_FORMS.values())
        return [
            (form() in known, form() is not None, file in linecache.cache, file in explain.lines)
            for form, file in zip(forms, files, strict=True)
        ]

    assert left() == [(True,) * 4, (True,) * 4]
    del tree
    assert left() == [(True,) * 4, (False,) * 4]
    del base
    assert left() == [(False,) * 4, (False,) * 4]
