"""The table of kinds equals the comparison of both orders' programs, on random trees and edits."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stacks import WIDTH
from torch import nn

from inarch.errors import InarchError
from inarch.resolve.compare import compare
from inarch.resolve.footprint import Grounds, footprint
from inarch.resolve.meeting import meet
from inarch.tree import Chain, Edit, Here, Let, Product, Residual, Seq, Sum

KINDS = ["add", "scale", "before", "after", "wrap", "replace", "tap", "provide"]


@st.composite
def trees(draw: st.DrawFn, depth: int = 2) -> Chain:
    """Chains of layers, Chains, residuals, sums and bound values, all of one width."""
    count = itertools.count()

    def step(depth: int) -> object:
        kind = draw(st.integers(0, 6 if depth else 1))
        if kind <= 1:
            return nn.Linear(WIDTH, WIDTH)
        inner = [(f"s{next(count)}", step(depth - 1)) for _ in range(draw(st.integers(1, 2)))]
        return {
            2: lambda: Chain(*inner),
            3: lambda: Residual(*inner),
            4: lambda: Sum(*inner),
            5: lambda: Product(*inner),
            6: lambda: Seq(*inner),
        }[kind]()

    return Chain(*((f"s{next(count)}", step(depth)) for _ in range(draw(st.integers(1, 3)))))


@st.composite
def edits(draw: st.DrawFn, tree: Chain, adapter: str) -> list[Edit]:
    """One adapter's edits: at most one of a kind at a site."""
    addresses = sorted(tree.form.index)
    places = st.tuples(st.sampled_from(addresses), st.sampled_from(KINDS))
    found = []
    for address, kind in draw(st.lists(places, min_size=1, max_size=3, unique=True)):
        name = draw(st.sampled_from(["seen", f"seen_{adapter}"]))
        step: object = nn.Linear(WIDTH, WIDTH)
        if kind == "tap":
            found.append(Edit.tap(address, name, adapter, export=draw(st.booleans())))
        elif kind == "provide":
            found.append(Edit.provide(name, Seq(("made", nn.Identity())), adapter))
        elif kind == "wrap":
            found.append(Edit.wrap(address, Residual(Here()), adapter))
        elif kind in ("before", "after"):
            kin = draw(st.sampled_from(["", "same", "other"]))
            found.append(getattr(Edit, kind)(address, step, adapter, kin=kin))
        else:
            found.append(getattr(Edit, kind)(address, step, adapter))
    return found


def works(tree: Chain, *parts: list[Edit]) -> bool:
    try:
        tree.edit([edit for part in parts for edit in part])
    except InarchError:
        return False
    return True


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_the_verdict_is_what_comparing_both_orders_says(data: st.DataObject) -> None:
    tree = data.draw(trees())
    first, second = data.draw(edits(tree, "a")), data.draw(edits(tree, "b"))
    if not works(tree, first) or not works(tree, second):
        return
    grounds = Grounds({"": tree})
    prints = [footprint(its, grounds, asks=True) for its in (first, second)]
    meeting = meet(prints[0], prints[1], grounds)
    outcome = compare(tree, first, second)
    assert meeting.matters == (not outcome.equal)
    if meeting.matters:
        assert meeting.forward == (outcome.errors[0] is None)
        assert meeting.backward == (outcome.errors[1] is None)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_what_commutes_does_so_whatever_stands_there_already(data: st.DataObject) -> None:
    tree = data.draw(trees())
    there = data.draw(edits(tree, "c"))
    first, second = data.draw(edits(tree, "a")), data.draw(edits(tree, "b"))
    if not works(tree, there, first) or not works(tree, there, second):
        return
    grounds = Grounds({"": tree})
    prints = [footprint(its, grounds, asks=True) for its in (first, second)]
    if meet(prints[0], prints[1], grounds).matters or not works(tree, there, first, second):
        return
    forward = tree.edit([*there, *first, *second])
    backward = tree.edit([*there, *second, *first])
    assert forward.form is backward.form
    assert forward.source == backward.source


def test_equal_programs_give_equal_bits_and_others_do_not() -> None:
    torch.manual_seed(0)
    tree = Chain(fc=nn.Linear(WIDTH, WIDTH))
    x = torch.randn(2, WIDTH)
    for one, other in itertools.product(KINDS[:4], repeat=2):
        pair = [
            getattr(Edit, kind)("fc", nn.Linear(WIDTH, WIDTH), name)
            for kind, name in ((one, "a"), (other, "b"))
        ]
        equal = torch.equal(tree.edit(pair)(x), tree.edit(pair[::-1])(x))
        assert equal == compare(tree, pair[:1], pair[1:]).equal


def test_taps_of_one_adapter_stand_in_one_order_whoever_comes_between() -> None:
    tree = Chain(fc=nn.Linear(WIDTH, WIDTH))
    mine = [Edit.tap("fc", name, "a") for name in ("one", "two")]
    other = Edit.tap("fc", "three", "b")
    orders = [tree.edit(order).source for order in itertools.permutations([*mine, other])]
    assert set(orders) == {orders[0]}


def test_a_name_bound_in_two_chains_is_two_names() -> None:
    tree = Chain(left=Chain(fc=nn.Linear(WIDTH, WIDTH)), right=Chain(fc=nn.Linear(WIDTH, WIDTH)))
    grounds = Grounds({"": tree})
    taps = [Edit.tap(f"{side}.fc", "seen", name) for side, name in (("left", "a"), ("right", "b"))]
    for export in (False, True):
        pair = [replace(tap, export=export) for tap in taps]
        prints = [footprint([tap], grounds, asks=True) for tap in pair]
        meeting = meet(prints[0], prints[1], grounds)
        assert meeting.matters == export
        assert compare(tree, pair[:1], pair[1:]).equal == (not export)


def test_let_binds_are_sites_like_any_other() -> None:
    tree = Chain(Let("kept", ("fc", nn.Linear(WIDTH, WIDTH))), head=nn.Linear(WIDTH, WIDTH))
    pair = [Edit.add("kept", nn.Linear(WIDTH, WIDTH), name) for name in ("a", "b")]
    assert compare(tree, pair[:1], pair[1:]).equal


def test_edits_of_one_kin_stand_in_the_order_of_their_names_whoever_stands_there() -> None:
    torch.manual_seed(0)
    tree = Chain(fc=nn.Linear(WIDTH, WIDTH))
    for kind in ("before", "after"):
        kin = [getattr(Edit, kind)("fc", nn.Linear(WIDTH, WIDTH), n, kin="k") for n in "abc"]
        other = getattr(Edit, kind)("fc", nn.Linear(WIDTH, WIDTH), "d")
        forms = {tree.edit([other, *order]).form for order in itertools.permutations(kin)}
        assert len(forms) == 1
        source = next(iter(forms)).source
        at = [source.index(f"self.fc__{name}(") for name in "abc"]
        assert at == sorted(at)
        assert not compare(tree, kin[:1], [other]).equal


def test_only_edits_before_and_after_have_kin() -> None:
    for kind in ("add", "scale", "wrap", "replace"):
        with pytest.raises(InarchError) as caught:
            getattr(Edit, kind)("fc", nn.Linear(WIDTH, WIDTH), "a", kin="k")
        assert caught.value.code == "IA117"
