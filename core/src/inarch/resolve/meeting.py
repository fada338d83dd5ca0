"""Where two adapters meet, and whether it matters which of them comes first.

What decides is the comparison of both orders' programs in normal form, `inarch.resolve.compare`.
For two edits at one site its answer depends on their kinds alone: `inarch.resolve.kinds`, and
`core/tests/resolve/test_algebra.py` proves the two equal on random trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, overload

from inarch.resolve.footprint import Footprint
from inarch.resolve.kinds import COMMUTING, DOES

Word = Literal["commute", "ordered", "user", "conflict", "undecided"]


class Places(Sequence[str]):
    """Addresses, those that decide first, each part sorted: when looked at, and not before.

    Fifty adapters meet in more than a thousand pairs, of which few are ever printed.
    """

    __slots__ = ("_deciding", "_others", "_sorted")

    def __init__(self, deciding: frozenset[str], others: frozenset[str]) -> None:
        self._deciding = deciding
        self._others = others
        self._sorted: tuple[str, ...] | None = None

    @property
    def deciding(self) -> int:
        """How many of them decide."""
        return len(self._deciding)

    def _all(self) -> tuple[str, ...]:
        if self._sorted is None:
            rest = self._others - self._deciding
            self._sorted = (*sorted(self._deciding), *sorted(rest))
        return self._sorted

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self._all()[index]

    def __len__(self) -> int:
        return len(self._all())

    def __bool__(self) -> bool:
        return bool(self._deciding or self._others)

    def __contains__(self, address: object) -> bool:
        return address in self._deciding or address in self._others

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places | tuple) and self._all() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())


@dataclass(frozen=True, slots=True)
class Meeting:
    """How two footprints meet.

    Attributes:
        at: the addresses where both have edits, or where one touches what the other reads.
        matters: whether the order does.
        forward: whether the first may come before the second.
        backward: whether the second may come before the first.
        reason: the facts, as a clause with {a} and {b} for the two.
    """

    at: Places
    matters: bool = False
    forward: bool = True
    backward: bool = True
    reason: str = ""

    def turned(self) -> Meeting:
        """The same meeting, told with the two the other way round."""
        parts = self.reason.replace("{a}", "{}").replace("{b}", "{a}").replace("{}", "{b}")
        return replace(self, forward=self.backward, backward=self.forward, reason=parts)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of the order of two members.

    Attributes:
        a: the member that comes first by name, or first in the order where that matters.
        b: the other.
        word: `commute`, `ordered` by a manifest, `user` for the user's order; a plan that was
            refused has `conflict` and `undecided` too.
        reason: one clause that says why.
        at: the addresses where they meet, those that decide first, else sorted.
        deciding: at how many of them the order matters.
    """

    a: str
    b: str
    word: Word
    reason: str
    at: Sequence[str]
    deciding: int = 0

    def as_dict(self) -> dict[str, object]:
        return {
            "pair": [self.a, self.b],
            "verdict": self.word,
            "reason": self.reason,
            "at": list(self.at),
            "deciding": self.deciding,
        }


def meet(a: Footprint, b: Footprint, inside: Callable[[str], frozenset[str]]) -> Meeting:
    """How the edits of two footprints meet.

    Args:
        a: of the one.
        b: of the other.
        inside: the sites below one, and of its own Chain those it is made of.
    """
    facts: list[_Fact] = []
    if a.binds or b.binds:
        facts += _names(a, b)
    if "replace" in a.kinds or "replace" in b.kinds:
        facts += _losses(a, b, inside)
    if a.reads or b.reads:
        facts += _readings(a, b, inside)
    facts += _kinds(a, b)
    if len(facts) == 1 and len(a.kinds) == len(b.kinds) == 1:
        [one] = facts
        return Meeting(Places(one.at, one.at), True, one.forward, one.backward, one.reason)
    at = a.all & b.all
    if not facts:
        return Meeting(Places(frozenset(), at), reason=_why_commuting(a, b, at))
    decisive = frozenset[str]().union(*(fact.at for fact in facts))
    return Meeting(
        Places(decisive, at),
        True,
        all(f.forward for f in facts),
        all(f.backward for f in facts),
        "; ".join(dict.fromkeys(f.reason for f in facts)),
    )


def _why_commuting(a: Footprint, b: Footprint, at: frozenset[str]) -> str:
    if not at:
        return "they meet nowhere"
    kinds = [
        (first, second)
        for first, ours in a.kinds.items()
        for second, theirs in b.kinds.items()
        if not ours.isdisjoint(theirs)
    ]
    same = sorted({first for first, second in kinds if first == second})
    parts = [f"each {DOES[kind]}" for kind in same]
    if any(first != second for first, second in kinds):
        parts.append("one stands before the site, the other behind it")
    return f"{' and '.join(parts)}, and either order is the same program"


@dataclass(frozen=True, slots=True)
class _Fact:
    """One way in which the order of two footprints matters."""

    at: frozenset[str]
    reason: str
    forward: bool = True
    backward: bool = True


def _kinds(a: Footprint, b: Footprint) -> Iterator[_Fact]:
    """Edits at one site whose kinds don't commute; a replacement can only come first."""
    for first, ours in a.kinds.items():
        for second, theirs in b.kinds.items():
            if frozenset((first, second)) in COMMUTING:
                continue
            both = ours & theirs
            if first == second:
                both -= _akin(a, b, first)
            if both:
                reason = f"{{a}} {DOES[first]} where {{b}} {DOES[second]}"
                if "replace" in (first, second):
                    reason += ", and what is replaced is lost"
                yield _Fact(both, reason, forward=second != "replace", backward=first != "replace")


def _akin(a: Footprint, b: Footprint, kind: str) -> frozenset[str]:
    """Where both have edits of one kin, which are sorted by name as sums are."""
    alike = (a.kin[key] & b.kin[key] for key in a.kin.keys() & b.kin.keys() if key[0] == kind)
    return frozenset[str]().union(*alike)


def _losses(a: Footprint, b: Footprint, inside: Callable[[str], frozenset[str]]) -> Iterator[_Fact]:
    """A replacement loses every edit inside what it replaces, whichever comes first."""
    for mine, theirs, who, whom, _ in _both(a, b):
        for site in sorted(mine.kinds.get("replace", ())):
            lost = inside(site) & theirs.all
            if lost:
                reason = f"{who} replaces `{site}`, and {whom} edits what is inside it"
                yield _Fact(lost, reason, forward=False, backward=False)


def _readings(
    a: Footprint, b: Footprint, inside: Callable[[str], frozenset[str]]
) -> Iterator[_Fact]:
    """Edits are made from the pristine model: what replaces or wraps what was read comes later."""
    for reader, writer, who, whom, first in _both(a, b):
        if not reader.reads:
            continue
        for kind in ("replace", "wrap"):
            for site in sorted(writer.kinds.get(kind, ())):
                within = inside(site)
                for read in sorted(reader.reads):
                    if _touches(read, site, within):
                        reason = f"{who} is made from `{read}`, which {whom} {DOES[kind]}"
                        at = frozenset((site,))
                        yield _Fact(at, reason, forward=first, backward=not first)


def _touches(read: str, site: str, within: frozenset[str]) -> bool:
    return (
        read == site or read in within or read.startswith(f"{site}.") or site.startswith(f"{read}.")
    )


def _names(a: Footprint, b: Footprint) -> Iterator[_Fact]:
    """A Chain writes a name once; a value asked of the caller is not to be captured."""
    for name in sorted(a.binds.keys() & b.binds.keys()):
        chains = a.binds[name] & b.binds[name]
        if chains:
            yield _Fact(chains, f"both bind the name `{name}`", forward=False, backward=False)
    for binder, asker, who, whom, first in _both(a, b):
        for name in sorted(binder.binds.keys() & asker.asks.keys()):
            chains = binder.binds[name] & asker.asks[name]
            if chains:
                reason = f"{whom} asks for `{name}`, a name that {who} binds"
                yield _Fact(chains, reason, forward=first, backward=not first)


def _both(a: Footprint, b: Footprint) -> tuple[tuple[Footprint, Footprint, str, str, bool], ...]:
    """The two either way round, with how a reason calls them and whether the first leads."""
    return (a, b, "{a}", "{b}", True), (b, a, "{b}", "{a}", False)
