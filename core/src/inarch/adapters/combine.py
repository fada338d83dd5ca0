"""Weighted sums of adapters: several members of a model as one, where their kind has sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING, Any

from inarch.adapters.adapter import Adapter, Part
from inarch.adapters.asks import asks_of
from inarch.adapters.graft import installed, modules_of
from inarch.adapters.member import Member
from inarch.adapters.memory import housed
from inarch.adapters.slot import Content, Slot
from inarch.errors import InarchError
from inarch.naming import check_adapter_name
from inarch.stack import AdapterSpec

if TYPE_CHECKING:
    from inarch.adapters.model import Model


def combined(
    model: Model,
    weights: Mapping[str, float],
    name: str,
    rank: int | None,
    identity_of: Callable[[Member], Any],
) -> list[Member]:
    """The members of a model with one in place of those that it is the weighted sum of.

    `identity_of` says what a part is, for the digest of the sum; the rest is `Model.combine`'s.
    """
    check_adapter_name(name)
    if not isinstance(weights, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        why = "each part has its own, by the name of the part"
        raise refused(f"{weights!r} are no weights", why, 'model.combine({"a": 0.5, "b": 0.5})')
    members = [model.adapters[own] for own in weights]
    _check(model, members, weights, name, rank)
    first, listed = members[0], installed()
    adapter = type(first.adapter)(name, type(first.adapter).Options())
    summands = [
        Part(m.name, m.adapter, m.modules, float(weights[m.name]), asks_of(m, listed))
        for m in members
    ]
    edits = tuple(adapter.combine(summands, model.sites, rank))
    flats = housed(edits, model.sites)
    shares = {m.name: [float(weights[m.name]), identity_of(m)] for m in members}
    made = {"sum": shares, "rank": rank}
    content = Content(adapter, None, first.kind, None, {}, "", made)
    gone = set(weights)
    after = [a for m in members for a in m.after if a not in gone]
    before = [b for m in members for b in m.before if b not in gone]
    spec = AdapterSpec(first.kind, None, name, after=_once(after), before=_once(before))
    slot = Slot(content, edits, flats)
    member = Member(name, first.kind, spec, edits, modules_of(edits), slot, entry=first.entry)
    member.trainable = False
    found: list[Member] = []
    for one in model.adapters:
        if one.name not in gone:
            found.append(_renamed(one, gone, name))
        elif member not in found:
            found.append(member)
    return found


def _renamed(member: Member, gone: set[str], name: str) -> Member:
    """A member that comes after or before the sum where it did so of a part of it."""
    asked = member.asked
    after, before = (
        _once([name if other in gone else other for other in told])
        for told in (asked.after, asked.before)
    )
    return replace(member, asked=replace(asked, after=after, before=before))


def _once(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _check(
    model: Model,
    members: Sequence[Member],
    weights: Mapping[str, float],
    name: str,
    rank: int | None,
) -> None:
    others = [m.name for m in model.adapters if m.name not in weights]
    kinds = sorted({m.kind for m in members})
    wrong = next((n for n, w in weights.items() if not _is_number(w)), None)
    whole = next((m for m in members if m.merged or m.inner is not None), None)
    if not members:
        raise refused("nothing is named to be combined", "", 'model.combine({"a": 0.5, "b": 0.5})')
    if wrong is not None:
        why = "a weight is a number, and finite"
        raise refused(f"the weight of `{wrong}` is {weights[wrong]!r}", why, "0.5")
    if rank is not None and (type(rank) is not int or rank < 1):
        raise refused(f"a sum has no rank {rank!r}", "a rank is an integer, at least 1", "rank=8")
    if name in others:
        why = "it is not among those that are combined, and stays"
        raise refused(f"the model has another adapter `{name}`", why, 'name="mix"')
    if len(kinds) > 1:
        why = f"{members[0].name} is of kind {members[0].kind}; the kinds are {', '.join(kinds)}"
        raise refused("adapters of several kinds can't be one", why, "let them act side by side")
    if whole is not None:
        why = "it is merged" if whole.merged else "other adapters stand in the tree it brings"
        raise refused(f"`{whole.name}` can't be combined", why, "combine before that")
    if type(members[0].adapter).combine is Adapter.combine:
        why = "the plugin does not say what a sum of them is"
        raise refused(f"adapters of kind {kinds[0]} can't be one", why, "let them act side by side")


def _is_number(value: Any) -> bool:
    return type(value) is not bool and isinstance(value, Real) and isfinite(value)


def refused(what: str, why: str, remedy: str, where: str = "") -> InarchError:
    """IA499, which plugins raise too."""
    return InarchError("IA499", what, where=where, why=why, remedy=remedy)
