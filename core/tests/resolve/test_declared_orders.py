"""Random trees, edits and declarations: what is accepted is the reference in every allowed order.

The reference is `tree.edit` in an order that keeps every declaration, one adapter after another.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stacks import WIDTH
from test_algebra import edits, trees, works

from inarch.errors import InarchError
from inarch.plugins.manifest import AdapterEntry
from inarch.resolve.arrange import arrange, arranged
from inarch.resolve.compare import compare
from inarch.stack import adapter
from inarch.tree import Chain

NAMES = ("a", "b", "c")


@st.composite
def stacks(draw: st.DrawFn) -> tuple[Chain, list[Any]]:
    """A tree, and three members of kinds of their own with what each declares."""
    tree = draw(trees())
    members = []
    for name in NAMES:
        others = st.lists(st.sampled_from([n for n in NAMES if n != name]), max_size=1)
        user = {"after": tuple(draw(others)), "before": tuple(draw(others))}
        told = {"after": draw(others), "before": draw(others)}
        members.append(
            SimpleNamespace(
                name=name,
                kind=name,
                entry=AdapterEntry(id=name, **told) if draw(st.booleans()) else None,
                edits=tuple(draw(edits(tree, name))),
                spec=adapter(name),
                **(user if draw(st.booleans()) else {"after": (), "before": ()}),
            )
        )
    return tree, members


def declared(members: list[Any]) -> set[tuple[str, str]]:
    """All that anybody says: pairs of an earlier and a later name."""
    said: set[tuple[str, str]] = set()
    for m in members:
        for source in (m, m.entry):
            if source is not None:
                said |= {(name, m.name) for name in source.after}
                said |= {(m.name, name) for name in source.before}
    return said


def orders(members: list[Any]) -> list[tuple[Any, ...]]:
    """The orders that keep everything that is declared."""
    said = declared(members)
    return [
        order
        for order in itertools.permutations(members)
        if all(
            [m.name for m in order].index(first) < [m.name for m in order].index(second)
            for first, second in said
        )
    ]


def edited(tree: Chain, order: Any) -> Chain:
    return tree.edit([edit for member in order for edit in member.edits])


@given(stacks())
@settings(max_examples=80, deadline=None)
def test_what_is_accepted_is_the_reference_in_every_order_that_keeps_what_is_declared(
    given_: tuple[Chain, list[Any]],
) -> None:
    tree, members = given_
    if not all(works(tree, list(member.edits)) for member in members):
        return
    order, problems = arranged(members, {"": tree})
    allowed = orders(members)
    if problems:
        return
    assert allowed, "what is declared contradicts itself, and nobody said so"
    by_name = {member.name: member for member in members}
    canonical = edited(tree, [by_name[name] for name in order.names])
    for one in allowed:
        assert edited(tree, one).form is canonical.form
    for shuffled in itertools.permutations(members):
        assert arrange(shuffled, {"": tree}).names == order.names


@given(stacks())
@settings(max_examples=80, deadline=None)
def test_what_is_refused_really_loses_or_changes_something(
    given_: tuple[Chain, list[Any]],
) -> None:
    tree, members = given_
    if not all(works(tree, list(member.edits)) for member in members):
        return
    order, problems = arranged(members, {"": tree})
    by_name = {member.name: member for member in members}
    for verdict in order.verdicts:
        if verdict.word in ("conflict", "undecided"):
            first, second = (list(by_name[name].edits) for name in (verdict.a, verdict.b))
            outcome = compare(tree, first, second)
            assert not outcome.equal
            if verdict.word == "conflict":
                assert outcome.errors[0] is not None
    if any(problem.code == "IA415" for problem in problems):
        assert not orders(members)


def test_equal_orders_run_to_equal_bits() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, WIDTH)

    @given(stacks())
    @settings(max_examples=20, deadline=None)
    def run(given_: tuple[Chain, list[Any]]) -> None:
        tree, members = given_
        if not all(works(tree, list(member.edits)) for member in members):
            return
        try:
            order = arrange(members, {"": tree})
        except InarchError:
            return
        by_name = {member.name: member for member in members}
        canonical = edited(tree, [by_name[name] for name in order.names])
        if canonical.form.needs:
            return
        with torch.no_grad():
            expected = canonical(x)
            for one in orders(members):
                found = edited(tree, one)(x)
                same = zip(_flat(found), _flat(expected), strict=True)
                assert all(torch.equal(f, e) for f, e in same)

    run()


def _flat(value: Any) -> list[torch.Tensor]:
    return list(value) if isinstance(value, tuple) else [value]
