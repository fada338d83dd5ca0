"""Where two adapters meet, and whether it matters which of them comes first.

What decides is the comparison of both orders' programs in normal form, `inarch.resolve.compare`.
For two edits at one site its answer depends on their kinds alone: `inarch.resolve.kinds`, and
`core/tests/resolve/test_algebra.py` proves the two equal on random trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

from inarch.resolve.footprint import Footprint, Grounds
from inarch.resolve.kinds import COMMUTING, DOES
from inarch.resolve.places import Places

Word = Literal["commute", "ordered", "user", "conflict", "undecided"]


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


def meet(a: Footprint, b: Footprint, grounds: Grounds) -> Meeting:
    """How the edits of two footprints meet.

    Args:
        a: of the one.
        b: of the other.
        grounds: those that both were made on.
    """
    facts: list[_Fact] = []
    if a.binds or b.binds:
        facts += _names(a, b)
    if "replace" in a.kinds or "replace" in b.kinds:
        facts += _losses(a, b, grounds)
    if a.reads or b.reads:
        facts += _readings(a, b, grounds)
    facts += _kinds(a, b)
    at = a.all & b.all
    if not facts:
        return Meeting(Places(grounds.sites, 0, at), reason=_why_commuting(a, b))
    decisive, forward, backward = 0, True, True
    reasons: dict[str, None] = {}
    for where, reason, may_lead, may_follow in facts:
        decisive |= where
        forward &= may_lead
        backward &= may_follow
        reasons[reason] = None
    places = Places(grounds.sites, decisive, at | decisive)
    return Meeting(places, True, forward, backward, "; ".join(reasons))


def _why_commuting(a: Footprint, b: Footprint) -> str:
    if not a.all & b.all:
        return "they meet nowhere"
    kinds = [
        (first, second)
        for first, ours in a.kinds.items()
        for second, theirs in b.kinds.items()
        if ours & theirs
    ]
    same = sorted({first for first, second in kinds if first == second})
    parts = [f"each {DOES[kind]}" for kind in same]
    if any(first != second for first, second in kinds):
        parts.append("one stands before the site, the other behind it")
    return f"{' and '.join(parts)}, and either order is the same program"


_Fact: TypeAlias = tuple[int, str, bool, bool]
"""A way in which the order of two matters: the set of where, why, whether the first may lead, and
whether it may follow."""


def _kinds(a: Footprint, b: Footprint) -> Iterator[_Fact]:
    """Edits at one site whose kinds don't commute."""
    for first, ours in a.kinds.items():
        for second, theirs in b.kinds.items():
            both = ours & theirs
            if both and (clash := _clash(first, second)):
                if first == second and a.kin and b.kin:
                    both &= ~_akin(a, b, first)
                if both:
                    yield both, *clash


@cache
def _clash(first: str, second: str) -> tuple[str, bool, bool] | None:
    """Why the order of two kinds matters, and which may come first: a replacement can't but so."""
    if frozenset((first, second)) in COMMUTING:
        return None
    reason = f"{{a}} {DOES[first]} where {{b}} {DOES[second]}"
    if "replace" in (first, second):
        reason += ", and what is replaced is lost"
    return reason, second != "replace", first != "replace"


def _akin(a: Footprint, b: Footprint, kind: str) -> int:
    """Where both have edits of one kin, which are sorted by name as sums are."""
    found = 0
    for key, where in a.kin.items():
        if key[0] == kind:
            found |= where & b.kin.get(key, 0)
    return found


def _losses(a: Footprint, b: Footprint, grounds: Grounds) -> Iterator[_Fact]:
    """A replacement loses every edit inside what it replaces, whichever comes first."""
    for mine, theirs, who, whom, _ in _both(a, b):
        replaced = mine.kinds.get("replace", 0)
        if not replaced or not grounds.around(replaced)[0] & theirs.all:
            continue
        for site in sorted(grounds.sites.spelled(replaced)):
            lost = grounds.sites.mask(grounds.inside(site)) & theirs.all
            if lost:
                reason = f"{who} replaces `{site}`, and {whom} edits what is inside it"
                yield lost, reason, False, False


def _readings(a: Footprint, b: Footprint, grounds: Grounds) -> Iterator[_Fact]:
    """Edits are made from the pristine model: what replaces or wraps what was read comes later.

    One fact for all sites, which names what is read at the first of them.
    """
    for reader, writer, who, whom, first in _both(a, b):
        for kind in ("replace", "wrap"):
            at = _read_at(reader, writer.kinds.get(kind, 0), grounds)
            if at:
                reads = reader.reads & grounds.touched(grounds.sites.first(at))
                read = grounds.sites.first(reads)
                reason = f"{who} is made from `{read}`, which {whom} {DOES[kind]}"
                yield at, reason, first, not first


def _read_at(reader: Footprint, sites: int, grounds: Grounds) -> int:
    """Of a set of sites, those that an adapter was made from."""
    if not sites or not reader.reads:
        return 0
    within, above = grounds.around(sites)
    if not (within & reader.over or above & reader.reads):
        return sites & reader.over
    named = grounds.sites.spelled(sites)
    return grounds.sites.mask(site for site in named if grounds.touched(site) & reader.reads)


def _names(a: Footprint, b: Footprint) -> Iterator[_Fact]:
    """A Chain writes a name once; a value asked of the caller is not to be captured."""
    for name in sorted(a.binds.keys() & b.binds.keys()):
        chains = a.binds[name] & b.binds[name]
        if chains:
            yield chains, f"both bind the name `{name}`", False, False
    for binder, asker, who, whom, first in _both(a, b):
        for name in sorted(binder.binds.keys() & asker.asks.keys()):
            chains = binder.binds[name] & asker.asks[name]
            if chains:
                reason = f"{whom} asks for `{name}`, a name that {who} binds"
                yield chains, reason, first, not first


def _both(a: Footprint, b: Footprint) -> tuple[tuple[Footprint, Footprint, str, str, bool], ...]:
    """The two either way round, with how a reason calls them and whether the first leads."""
    return (a, b, "{a}", "{b}", True), (b, a, "{b}", "{a}", False)
