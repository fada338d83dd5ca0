"""Orders of a few dozen names: closures, shortest cycles, layers. Knows nothing of adapters."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter


def origins(start: str, follows: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """For each name that can be reached from one, that from which it is reached first.

    Of equally short ways the first by name, so that nothing depends on hashing.
    """
    came: dict[str, str] = {}
    ahead = deque([start])
    while ahead:
        at = ahead.popleft()
        for name in sorted(follows.get(at, ())):
            if name not in came:
                came[name] = at
                if name != start:
                    ahead.append(name)
    return came


def path(start: str, end: str, came: Mapping[str, str]) -> list[str]:
    """The shortest way from one name to another, both included; empty where there is none.

    Args:
        start: the first.
        end: the last.
        came: the `origins` of the first.
    """
    if end not in came:
        return []
    way = [end, came[end]]
    while way[-1] != start:
        way.append(came[way[-1]])
    return way[::-1]


def cycles(names: Iterable[str], follows: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Cycles that share no name, the shortest first, each beginning with its first by name."""
    try:
        TopologicalSorter(follows).prepare()
        return []
    except CycleError:
        pass
    ways = [way[:-1] for name in sorted(names) if (way := path(name, name, origins(name, follows)))]
    found: list[list[str]] = []
    taken: set[str] = set()
    for way in sorted(ways, key=lambda w: (len(w), w)):
        if taken.isdisjoint(way):
            first = way.index(min(way))
            found.append(way[first:] + way[:first])
            taken.update(way)
    return found


def reach(names: Sequence[str], follows: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """For each name, all that come after it, directly or not; the order has no cycle."""
    after: dict[str, set[str]] = {}

    def visit(name: str) -> set[str]:
        if name not in after:
            after[name] = set()
            for one in follows.get(name, ()):
                after[name].add(one)
                after[name] |= visit(one)
        return after[name]

    for name in names:
        visit(name)
    return after


def layers(names: Sequence[str], earlier: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Foata's normal form: each name in the first layer after all that must come before it.

    Source: Cartier and Foata 1969, *Problèmes combinatoires de commutation et réarrangements*.

    Args:
        names: what to lay out.
        earlier: for each name, those that come before it; without a cycle.
    """
    depth: dict[str, int] = {}

    def visit(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((visit(one) for one in earlier.get(name, ())), default=-1)
        return depth[name]

    found: list[list[str]] = []
    for name in sorted(names):
        while len(found) <= visit(name):
            found.append([])
        found[visit(name)].append(name)
    return found
