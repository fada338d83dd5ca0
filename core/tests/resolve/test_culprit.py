"""Bisecting finds the members that are bad together, and none that could be left out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inarch.resolve.culprit import Outcome, culprits

NAMES = list("abcdefghij")


@given(st.sets(st.sampled_from(NAMES), min_size=1, max_size=3))
def test_the_members_that_are_bad_together_are_found(bad: set[str]) -> None:
    asked: list[frozenset[str]] = []

    def run(some: Sequence[str]) -> Outcome:
        asked.append(frozenset(some))
        return "bad" if bad <= set(some) else "good"

    assert culprits(NAMES, run) == sorted(bad)
    assert len(asked) == len(set(asked))


def test_one_of_many_is_found_in_few_runs() -> None:
    asked: list[Sequence[str]] = []

    def run(some: Sequence[str]) -> Outcome:
        asked.append(some)
        return "bad" if "g" in some else "good"

    assert culprits(NAMES, run) == ["g"]
    assert len(asked) <= 8


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_can_not_be_told_is_stepped_around(size: int) -> None:
    def run(some: Sequence[str]) -> Outcome:
        if len(some) == size and "a" not in some:
            return "skip"
        return "bad" if "c" in some else "good"

    found = culprits(NAMES, run)
    assert "c" in found
    assert run(found) == "bad"
