"""Taking edits out of a tree gives what was never put in."""

from __future__ import annotations

import itertools

import pytest
from small_trees import Factor, LowRank, Together, chains_of, language_model, run, same

from inarch.errors import InarchError
from inarch.tree import Chain, Edit
from inarch.tree.edit import apply
from inarch.tree.prune import beside, pruned
from inarch.tree.steps import Graft, walk

SITES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.self_attn.v_proj",
    "lm_head",
]
KINDS = {"a": LowRank, "b": Together, "c": Together, "d": Together, "f": Factor, "g": Factor}


def edits_of(name, sites=SITES):
    make = KINDS[name]
    sizes = {"lm_head": (8, 11)}
    return [
        Edit.scale(site, Factor(sizes.get(site, (8, 8))[1]), name)
        if make is Factor
        else Edit.add(site, make(*sizes.get(site, (8, 8))), name)
        for site in sites
    ]


def names_of(tree):
    return [name for name, _ in tree.named_modules(remove_duplicate=False)]


def is_edited(tree):
    steps = (step for chain in chains_of(tree).values() for step in walk(chain.program))
    return any(isinstance(step, Graft) for step in steps)


@pytest.mark.parametrize("names", ["a", "ab", "bc", "abcd", "fg", "abf", "fba", "fabg", "bfc"])
def test_what_is_left_is_what_the_others_make_alone(names):
    base = language_model(3)
    edits = {name: edits_of(name, SITES[: 2 + i]) for i, name in enumerate(names)}
    whole = base.edit(edit for name in names for edit in edits[name])
    for gone in itertools.chain(names, itertools.combinations(names, 2)):
        rest = [name for name in names if name not in gone]
        alone = base.edit(edit for name in rest for edit in edits[name])
        left = pruned(whole, [edit for name in gone for edit in edits[name]], base)
        if left is None:
            assert {"f", "g"} & set(names), "sums alone need nothing put together anew"
            continue
        assert names_of(left) == names_of(alone)
        for name, chain in chains_of(left).items():
            assert chain.form is alone.get_submodule(name).form
            assert chain.program == alone.get_submodule(name).program
            edited = any(
                isinstance(s, Graft) for c in chains_of(chain).values() for s in walk(c.program)
            )
            assert (chain is base.get_submodule(name)) is not edited
        assert same(run(left), run(alone))


def test_a_term_between_two_factors_has_the_tree_made_anew():
    base = language_model(1)
    below, term, above = (edits_of(name, SITES[:1]) for name in "fag")
    whole = base.edit([*below, *term, *above])
    assert pruned(whole, term, base) is None
    assert pruned(whole, below, base).form is base.edit([*term, *above]).form


def test_what_was_done_to_an_edited_tree_since_is_not_carried_over():
    base = language_model(1)
    first, second = edits_of("a", SITES[:1]), edits_of("b", SITES[:1])
    edited = base.edit(first)
    attention = edited.model.layers[0].self_attn
    attention.register_forward_pre_hook(lambda *_: pytest.fail("it was attached to another tree"))
    attention.train()
    attention.noted = True
    more = apply(edited, second, base)
    less = pruned(more, second, base)
    for tree in (more, less):
        made = tree.model.layers[0].self_attn
        assert made.training is base.model.layers[0].self_attn.training
        assert not hasattr(made, "noted")
        run(tree)
    assert less.form is edited.form
    assert more.form is base.edit([*first, *second]).form


def test_only_what_puts_a_module_beside_a_site_is_taken_out_by_itself():
    def doubled(x):
        return x * 2

    assert beside(Edit.add("a", LowRank(), "p"))
    assert beside(Edit.scale("a", Factor(), "p"))
    assert not beside(Edit.before("a", LowRank(), "p"))
    assert not beside(Edit.add("a", doubled, "p"))
    assert not beside(Edit.add("a", LowRank(), "p", inputs=("mask",)))


def test_a_tree_whose_origin_was_compiled_in_place_is_not_pruned():
    base = Chain(a=LowRank())
    edits = [Edit.add("a", LowRank(), "p"), Edit.add("a", LowRank(), "q")]
    tree = base.edit(edits)
    base.a.compile(backend="eager")
    with pytest.raises(InarchError) as caught:
        pruned(tree, edits[:1], base)
    assert caught.value.code == "IA108"
