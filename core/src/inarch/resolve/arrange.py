"""The canonical order of a stack, or every reason why it has none.

For each pair that meets, the verdict: the order leaves no trace, somebody declared it, or nobody
did. Where nobody did the stack is refused, and shows what either order would do. What is left is
laid out in layers, each sorted by name, so that all ways to write an equivalent stack down are one
order, one program and one digest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from inarch.errors import InarchError
from inarch.resolve import graph
from inarch.resolve.compare import sources
from inarch.resolve.declared import Party, Precedence, circle_error, misnamed, precedences, speakers
from inarch.resolve.footprint import Footprint, Grounds, footprint
from inarch.resolve.meeting import Meeting, Verdict, meet
from inarch.resolve.refusal import refuse
from inarch.stack import AdapterSpec
from inarch.tree import Chain, Edit

_SHOWN = 3


class Edited(Party, Protocol):
    """A member whose edits are known, at exact addresses."""

    @property
    def edits(self) -> tuple[Edit, ...]: ...
    @property
    def spec(self) -> AdapterSpec: ...


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a stack.

    Attributes:
        names: the members, canonically.
        layers: the same in Foata's layers: the members of a layer commute.
        verdicts: for each pair of members, in the order of their names.
        comparisons: how many meetings of footprints had to be looked at.
    """

    names: tuple[str, ...] = ()
    layers: tuple[tuple[str, ...], ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    comparisons: int = 0

    def of(self, names: Collection[str]) -> Order | None:
        """The order of some of the members; None where it may differ, since pairs don't commute.

        Args:
            names: in any order.
        """
        if {verdict.word for verdict in self.verdicts} - {"commute"}:
            return None
        left = tuple(sorted(names))
        among = {*left}
        verdicts = [v for v in self.verdicts if v.a in among and v.b in among]
        return Order(left, (left,) if left else (), tuple(verdicts))


def arrange(members: Sequence[Edited], trees: Mapping[str, Chain]) -> Order:
    """The canonical order of members, from their edits and from what is declared.

    Args:
        members: their edits at exact addresses; none is filled or changed.
        trees: the pristine ones.

    Raises:
        InarchError: IA407 for a pair that needs the user's word, IA415 for declarations that go
            in circles, IA416 for a pair that can't be, IA418 for a name the stack doesn't have;
            `Refused` with all of them where there are several.
    """
    order, problems = arranged(members, trees)
    refuse(problems)
    return order


def arranged(
    members: Sequence[Edited],
    trees: Mapping[str, Chain],
    names: Sequence[str] = (),
    known: Order | None = None,
) -> tuple[Order, list[InarchError]]:
    """As `arrange`, with the problems beside what is known of the order in spite of them.

    Args:
        members: see `arrange`.
        trees: the pristine ones.
        names: those of further members, whose edits are not known.
        known: of some of the members, whose edits are what they were.
    """
    said = precedences(members)
    problems = list(misnamed(members, names))
    follows: dict[str, list[str]] = {}
    for one in said:
        follows.setdefault(one.first, []).append(one.second)
    names = [member.name for member in members]
    circles = found = graph.cycles(names, follows)
    problems += [circle_error(circle, said) for circle in circles[:_SHOWN]]
    while found:  # only to see what else is wrong
        for circle in found:
            follows[circle[-1]].remove(circle[0])
        found = graph.cycles(names, follows)
    grounds = Grounds(trees, _addresses(members))
    pairs = _Pairs(members, grounds)
    after, spoken = graph.reach(names, follows), speakers(said)
    came = {name: graph.origins(name, follows) for name in follows}
    verdicts: list[Verdict] = []
    said_before = known.verdicts if known else ()
    commuting = {(v.a, v.b): v for v in said_before if v.word == "commute"}
    earlier: dict[str, list[str]] = {}
    for a, b in pairs.all():
        verdict = commuting.get((a.name, b.name))
        if verdict is not None:
            verdicts.append(verdict)
            continue
        meeting = pairs.meeting(a, b)
        verdict = _verdict(a.name, b.name, meeting, after, spoken, came)
        verdicts.append(verdict)
        if meeting.matters:
            earlier.setdefault(verdict.b, []).append(verdict.a)
    told = [v for v in verdicts if not any({v.a, v.b} <= set(circle) for circle in circles)]
    problems += _open(told, {m.name: m for m in members}, pairs, grounds)
    problems += _impossible(told, pairs)
    layers = [] if problems else graph.layers(names, earlier)
    flat = tuple(name for layer in layers for name in layer)
    return Order(flat, tuple(map(tuple, layers)), tuple(verdicts), pairs.compared), problems


def _addresses(members: Sequence[Edited]) -> list[str]:
    """All that edits stand at or were made from, sorted."""
    found: set[str] = set()
    for member in members:
        found.update([edit.address for edit in member.edits])
        found.update(*[edit.reads for edit in member.edits if edit.reads])
    return sorted(found)


class _Pairs:
    """The meetings of all pairs; members of one footprint are looked at once."""

    def __init__(self, members: Sequence[Edited], grounds: Grounds) -> None:
        self.members = sorted(members, key=lambda m: m.name)
        binding = any([edit.names for edit in member.edits if edit.names] for member in members)
        prints = [footprint(m.edits, grounds, asks=binding) for m in self.members]
        known: dict[object, int] = {}
        self._of: dict[str, int] = {}
        self._prints: list[Footprint] = []
        for member, one in zip(self.members, prints, strict=True):
            number = known.setdefault(one.key, len(known))
            if number == len(self._prints):
                self._prints.append(one)
            self._of[member.name] = number
        self._grounds = grounds
        self._met: dict[tuple[int, int], Meeting] = {}
        self.compared = 0

    def all(self) -> list[tuple[Edited, Edited]]:
        return [(a, b) for i, a in enumerate(self.members) for b in self.members[i + 1 :]]

    def meeting(self, a: Edited, b: Edited) -> Meeting:
        key = self._of[a.name], self._of[b.name]
        if key not in self._met:
            other = self._met.get((key[1], key[0]))
            if other is None:
                self.compared += 1
                first, second = (self._prints[number] for number in key)
                self._met[key] = meet(first, second, self._grounds)
            else:
                self._met[key] = other.turned()
        return self._met[key]


def _verdict(
    a: str,
    b: str,
    meeting: Meeting,
    after: Mapping[str, set[str]],
    spoken: Mapping[tuple[str, str], Precedence],
    came: Mapping[str, Mapping[str, str]],
) -> Verdict:
    reason = meeting.reason.replace("{a}", f"`{a}`").replace("{b}", f"`{b}`")
    at = meeting.at
    if not meeting.matters:
        return Verdict(a, b, "commute", reason, at, at.deciding)
    if not meeting.forward and not meeting.backward:
        return Verdict(a, b, "conflict", reason, at, at.deciding)
    forward = b in after.get(a, ())
    if not forward and a not in after.get(b, ()):
        return Verdict(a, b, "undecided", reason, at, at.deciding)
    first, second = (a, b) if forward else (b, a)
    way = graph.path(first, second, came[first])
    steps = [spoken[pair] for pair in pairwise(way)]
    why = "; ".join(dict.fromkeys(step.why for step in steps))
    if not (meeting.forward if forward else meeting.backward):
        text = f"{reason}; so `{first}` can't come before `{second}`, as {why}"
        return Verdict(first, second, "conflict", text, at, at.deciding)
    word = "user" if any(step.user for step in steps) else "ordered"
    return Verdict(first, second, word, f"{reason}; {why}", at, at.deciding)


def _disjoint(verdicts: Sequence[Verdict]) -> list[tuple[Verdict, int]]:
    """Up to three pairs that share no member, each with how many more are as it is."""
    chosen: list[Verdict] = []
    taken: set[str] = set()
    for verdict in verdicts:
        if len(chosen) < _SHOWN and taken.isdisjoint((verdict.a, verdict.b)):
            chosen.append(verdict)
            taken |= {verdict.a, verdict.b}
    more = len(verdicts) - len(chosen)
    return [(verdict, more if verdict is chosen[-1] else 0) for verdict in chosen]


def _impossible(verdicts: Sequence[Verdict], pairs: _Pairs) -> list[InarchError]:
    conflicts = [v for v in verdicts if v.word == "conflict"]
    by_name = {member.name: member for member in pairs.members}
    problems: list[InarchError] = []
    for verdict, more in _disjoint(conflicts):
        a, b = sorted((verdict.a, verdict.b))
        meeting = pairs.meeting(by_name[a], by_name[b])
        if meeting.forward or meeting.backward:
            first, second = (a, b) if meeting.forward else (b, a)
            cure = f'only `{first}` before `{second}` works: after = ["{first}"] for `{second}`'
        else:
            cure = f"leave `{a}` or `{b}` out"
        problems.append(
            InarchError(
                "IA416",
                f"`{verdict.a}` and `{verdict.b}` can't be in one stack"
                + ("" if meeting.forward == meeting.backward else " in this order"),
                where=_place(verdict.at),
                why=_lines(verdict) + _and_more(more, "conflict"),
                remedy=cure,
            )
        )
    return problems


def _open(
    verdicts: Sequence[Verdict],
    members: Mapping[str, Edited],
    pairs: _Pairs,
    grounds: Grounds,
) -> list[InarchError]:
    """IA407 for pairs that need the user's word, with what either order does as source."""
    problems: list[InarchError] = []
    for verdict, more in _disjoint([v for v in verdicts if v.word == "undecided"]):
        a, b = members[verdict.a], members[verdict.b]
        meeting = pairs.meeting(a, b)
        first, second = (a, b) if meeting.forward else (b, a)
        lines = [_lines(verdict), *_either(grounds, verdict, a, b)]
        cure = f'after = ["{first.name}"] in the table of `{second.name}`'
        if meeting.forward and meeting.backward:
            cure += f', or after = ["{second.name}"] in that of `{first.name}`'
        file = second.spec.where.rpartition(": ")[0]
        if file:
            cure = f"inarch order {file} {second.name} --after {first.name}\nwhich is {cure}"
        problems.append(
            InarchError(
                "IA407",
                f"the order of `{a.name}` and `{b.name}` matters, and nothing says which is meant",
                where=_place(verdict.at),
                why="\n".join(lines) + _and_more(more, "wait for a word"),
                remedy=cure,
            )
        )
    return problems


def _either(grounds: Grounds, verdict: Verdict, a: Edited, b: Edited) -> list[str]:
    """What either order makes of the Chain where the two meet first: the lines it adds."""
    address = verdict.at[0]
    if grounds.chain(address)[2] == "" or address not in _sites(a, b):
        return []
    lines: list[str] = []
    for order, (_, brief) in sources(grounds, address, {a.name: a.edits, b.name: b.edits}).items():
        lines += [f"{order}:", *(f"    {line}" for line in brief.splitlines())]
    return lines


def _sites(a: Edited, b: Edited) -> set[str]:
    return {edit.address for member in (a, b) for edit in member.edits}


def _place(at: Sequence[str]) -> str:
    return (at[0] or "the root of the model") if at else ""


def _lines(verdict: Verdict) -> str:
    """A verdict's reason, a line for each clause."""
    at = f", at {verdict.deciding} sites" if verdict.deciding > 1 else ""
    return verdict.reason.replace("; ", "\n") + at


def _and_more(count: int, word: str) -> str:
    return f"\n{count} more pair{'s' if count > 1 else ''} {word} too" if count else ""
