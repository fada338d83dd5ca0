"""Every code has an explanation with an example, and no explanation is for a code that isn't."""

from __future__ import annotations

import pytest

from inarch.codes import CODES
from inarch.errors import InarchError
from inarch.explain import explain, explanations
from inarch.plugins import Index
from inarch.plugins.manifest import CodeEntry


def test_registry_and_explanations_are_in_step() -> None:
    assert sorted(explanations()) == sorted(CODES)


@pytest.mark.parametrize("code", CODES)
def test_an_explanation_is_short_enough_to_read_and_long_enough_to_help(code: str) -> None:
    lines = explanations()[code].splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert 1 <= len(lines) <= 24
    assert len(" ".join(lines)) >= 80


def test_a_packages_code_is_explained_by_its_manifest() -> None:
    entry = CodeEntry(id="XY101", summary="odd", explain="\nIt is odd.\n", distribution="x-y")
    found = explain("xy101", Index(codes={"XY101": entry}))
    assert (found.summary, found.text, found.distribution) == ("odd", "It is odd.", "x-y")


def test_a_code_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(InarchError) as caught:
        explain("IA408X", Index())
    assert (caught.value.code, "IA408" in caught.value.why) == ("IA702", True)
