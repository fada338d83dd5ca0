"""What manifests and users declare about order and company. Needs neither torch nor a plugin.

A manifest speaks of adapter ids, and only where both are present: `after`, `before`, `requires`,
`conflicts`. A user speaks of the names in the stack: `after` and `before`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inarch.errors import InarchError
from inarch.plugins.fit import version_misfit
from inarch.plugins.index import Finding
from inarch.plugins.manifest import AdapterEntry, ModelEntry
from inarch.stack import AdapterSpec


class Party(Protocol):
    """A member of a stack, as far as declarations go."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def after(self) -> tuple[str, ...]: ...
    @property
    def before(self) -> tuple[str, ...]: ...
    @property
    def entry(self) -> AdapterEntry | None: ...


@dataclass(frozen=True, slots=True)
class Precedence:
    """One member comes before another, because somebody says so.

    Attributes:
        first: the earlier member's name.
        second: the later one's.
        why: who says so, as a clause.
        user: whether the user does; else a manifest.
    """

    first: str
    second: str
    why: str
    user: bool


def precedences(parties: Sequence[Party]) -> list[Precedence]:
    """Every declared order between members that are present, each pair and speaker once."""
    by_kind: dict[str, list[str]] = {}
    for party in parties:
        by_kind.setdefault(party.kind, []).append(party.name)
    present = {party.name for party in parties}
    found: list[Precedence] = []
    for party in parties:
        me = party.name
        for word, told in (("after", party.after), ("before", party.before)):
            why = f"the stack says `{me}` {word} `{{}}`"
            found += [_precedence(me, o, word, why, True) for o in told if o in present and o != me]
        entry = party.entry
        if entry is None:
            continue
        for word, ids in (("after", entry.after), ("before", entry.before)):
            for kind in ids:
                if kind != party.kind:
                    why = f"{party.kind} declares {word} {kind}"
                    for other in by_kind.get(kind, ()):
                        found.append(_precedence(me, other, word, why, False))
    return found


def _precedence(me: str, other: str, word: str, why: str, user: bool) -> Precedence:
    first, second = (other, me) if word == "after" else (me, other)
    return Precedence(first, second, why.replace("{}", other), user)


def misnamed(parties: Sequence[Party], also: Sequence[str] = ()) -> Iterator[InarchError]:
    """IA418 for each name in a user's `after` or `before` that is no other member's."""
    names = list(dict.fromkeys([*(party.name for party in parties), *also]))
    for party in parties:
        for word, told in (("after", party.after), ("before", party.before)):
            for name in told:
                if name in names and name != party.name:
                    continue
                others = [n for n in names if n != party.name]
                near = difflib.get_close_matches(name, others, 1, 0.5)
                yield InarchError(
                    "IA418",
                    f"`{party.name}` is to come {word} itself"
                    if name == party.name
                    else f"`{party.name}` is to come {word} `{name}`, which the stack doesn't have",
                    where=f'{word} = ["{name}"]',
                    why=f"the other members are: {', '.join(others) or 'none'}",
                    remedy=f'{word} = ["{near[0]}"]' if near else f"leave `{word}` out",
                )


def unmet(parties: Sequence[Party], installed: Mapping[str, object]) -> Iterator[InarchError]:
    """IA417 for each requirement that no member meets, IA416 for each declared conflict."""
    kinds = {party.kind for party in parties}
    told: set[frozenset[str]] = set()
    for party in parties:
        entry = party.entry
        if entry is None:
            continue
        for kind in entry.requires:
            if kind not in kinds:
                have = kind in installed
                yield InarchError(
                    "IA417",
                    f"`{party.name}` needs an adapter of kind {kind} beside it",
                    where=place_of(entry, "requires"),
                    why="the stack has none" + ("" if have else ", and none is installed"),
                    remedy=f'add [[adapter]] use = "{kind}"'
                    if have
                    else f"pip install inarch-{kind}",
                )
        for kind in entry.conflicts:
            for other in parties:
                pair = frozenset((party.name, other.name))
                if other.kind == kind and len(pair) == 2 and pair not in told:
                    told.add(pair)
                    yield InarchError(
                        "IA416",
                        f"`{party.name}` and `{other.name}` can't be in one stack",
                        where=place_of(entry, "conflicts"),
                        why=f"{party.kind} declares that it conflicts with {kind}",
                        remedy=f"leave `{party.name}` or `{other.name}` out",
                    )


def taken(spec: AdapterSpec) -> InarchError:
    """IA403 for a second member of one name."""
    return InarchError(
        "IA403",
        f"there are two adapters called `{spec.name}`",
        why="an adapter's name is its identity in the model",
        remedy=f'inarch.adapter("{spec.use}", ..., name="{spec.name}_2")',
    )


def versions(name: str, entry: AdapterEntry, family: ModelEntry | None) -> Iterator[InarchError]:
    """IA419 where the model's package is outside of the range the adapter declares for it."""
    why = "" if family is None else version_misfit(entry, family)
    if family is not None and why:
        yield InarchError(
            "IA419",
            f"`{name}` is for another version of {family.id}",
            where=place_of(entry, family.id),
            why=why,
            remedy=f"pip install '{family.distribution}{entry.models[family.id]}'",
        )


def unknown_ids(entry: AdapterEntry, installed: Mapping[str, object]) -> Iterator[Finding]:
    """IA812 for each id that a manifest declares something about and nothing installed has."""
    for key in ("after", "before", "requires", "conflicts"):
        for kind in getattr(entry, key):
            if kind not in installed:
                near = difflib.get_close_matches(kind, list(installed), 1, 0.6)
                yield Finding(
                    "IA812",
                    entry.distribution,
                    f"`{entry.id}` declares {key} `{kind}`, which no installed package has",
                    place_of(entry, key),
                    f"did you mean {near[0]}?" if near else f"pip install inarch-{kind}",
                )


def place_of(entry: AdapterEntry, key: str) -> str:
    """The manifest and the line where an adapter's entry has a key."""
    try:
        lines = Path(entry.manifest).read_text("utf-8").splitlines()
    except OSError:
        return entry.manifest or f"the manifest of {entry.id}"
    inside = False
    for number, line in enumerate(lines, 1):
        text = line.strip().replace("'", '"')
        if text.startswith("[") and "adapter." not in text:
            inside = False
        if text.replace(" ", "") == f'id="{entry.id}"':
            inside = True
        bare = text.partition("=")[0].strip().removeprefix("[adapter.").rstrip("]")
        if inside and bare == key:
            return f"{entry.manifest}:{number}"
    return entry.manifest


def speakers(said: Sequence[Precedence]) -> dict[tuple[str, str], Precedence]:
    """The declaration that puts one before another; a manifest's where both say so."""
    found: dict[tuple[str, str], Precedence] = {}
    for one in sorted(said, key=lambda one: (one.user, one.why)):
        found.setdefault((one.first, one.second), one)
    return found


def circle_error(circle: Sequence[str], said: Sequence[Precedence]) -> InarchError:
    """IA415 for declarations that go in a circle, each with who says so."""
    spoken = speakers(said)
    edges = [spoken[pair] for pair in zip(circle, [*circle[1:], circle[0]], strict=True)]
    lines = [f"`{edge.first}` before `{edge.second}`: {edge.why}" for edge in edges]
    own = next((edge for edge in edges if edge.user), None)
    return InarchError(
        "IA415",
        "what is declared of the order goes in a circle",
        where=" -> ".join([*circle, circle[0]]),
        why="\n".join(lines),
        remedy=f"take back that {own.why.removeprefix('the stack says ')}"
        if own is not None
        else f"leave one of them out, such as `{circle[0]}`",
    )
