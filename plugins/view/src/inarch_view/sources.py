"""The sources of Chains before and after adapting, each pair once, as lines of a difference."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import msgspec


class Source(msgspec.Struct):
    """One pair of sources.

    Attributes:
        changed: whether they differ.
        lines: of the difference: a sign, ` `, `-` or `+`, and the text.
    """

    changed: bool
    lines: list[tuple[str, str]]


class Sources:
    """Pairs of sources by number, in the order they were first met."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, before: str, after: str) -> int:
        return self._numbers.setdefault((before, after), len(self._numbers))

    def all(self) -> list[Source]:
        return [Source(b != a, list(_difference(b, a))) for b, a in self._numbers]


def _difference(before: str, after: str) -> Iterator[tuple[str, str]]:
    """The whole text with its changed lines; a source that is new is all added."""
    for line in difflib.ndiff(before.splitlines(), after.splitlines()):
        if line[0] != "?":
            yield line[0], line[2:]
