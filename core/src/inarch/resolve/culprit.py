"""The fewest of a stack's members that are bad together: delta debugging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

Outcome = Literal["good", "bad", "skip"]


def culprits(names: Sequence[str], run: Callable[[Sequence[str]], Outcome]) -> list[str]:
    """Members that are bad together, and none of which can be left out, in their order.

    Source: Zeller and Hildebrandt 2002, "Simplifying and Isolating Failure-Inducing Input", ddmin.

    Args:
        names: which together are bad, and none of which alone is needed for being good.
        run: tells of some of them; "skip" where nothing can be told. Asked once for each.
    """
    known: dict[frozenset[str], Outcome] = {frozenset(names): "bad", frozenset(): "good"}

    def bad(some: Sequence[str]) -> bool:
        key = frozenset(some)
        if key not in known:
            known[key] = run(some)
        return known[key] == "bad"

    left, parts = list(names), 2
    while len(left) > 1:
        chunks = _split(left, min(parts, len(left)))
        rests = [[n for n in left if n not in chunk] for chunk in chunks]
        smaller = next((some for some in (*chunks, *rests) if bad(some)), None)
        if smaller is not None:
            parts = 2 if smaller in chunks else max(parts - 1, 2)
            left = smaller
        elif parts >= len(left):
            break
        else:
            parts = min(2 * parts, len(left))
    return left


def _split(names: list[str], parts: int) -> list[list[str]]:
    size, more = divmod(len(names), parts)
    chunks: list[list[str]] = []
    start = 0
    for i in range(parts):
        end = start + size + (i < more)
        chunks.append(names[start:end])
        start = end
    return chunks
