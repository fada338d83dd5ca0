"""From one stack to the next: the trees of a model with adapters more or fewer, made of its own.

Making them of the pristine trees takes as long as the whole stack is; this, as long as the step.
It gives the same programs: an adapter that commutes with those that come after it may be put in
last, and terms and factors that an adapter puts beside sites may be taken out by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from inarch.adapters.graft import by_tree
from inarch.tree import Chain
from inarch.tree.edit import apply
from inarch.tree.prune import beside, pruned

if TYPE_CHECKING:
    from inarch.adapters.member import Member
    from inarch.adapters.model import Model
    from inarch.resolve.arrange import Order


def stepped(model: Model, members: Sequence[Member], order: Order) -> dict[str, Chain] | None:
    """The trees of a model with these members in place of its own.

    Args:
        model: whose trees are as they were made, and not packed.
        members: in canonical order.
        order: that order.

    Returns:
        None where the trees have to be made of the pristine ones.
    """
    before = {member.name: member for member in model.adapters}
    kept = [m.name for m in members if m.name in before and before[m.name].edits is m.edits]
    added = [member for member in members if member.name not in kept]
    gone = [member for member in model.adapters if member.name not in kept]
    if not before or bool(added) is bool(gone) or not _simple(model, members, added or gone):
        return None
    names = {member.name for member in added}
    if [v for v in order.verdicts if v.word != "commute" and v.a in names and v.b not in names]:
        return None
    if [name for name in model.order.names if name in kept] != kept:
        return None
    trees: dict[str, Chain] = {}
    changes = by_tree([edit for m in added or gone for edit in m.edits], model.pristine)
    for name, edits in changes.items():
        tree, origin = model.trees[name], model.pristine[name]
        made = apply(tree, edits, origin) if added else pruned(tree, edits, origin)
        if made is None:
            return None
        trees[name] = made
    return trees


def _simple(model: Model, members: Iterable[Member], changed: Iterable[Member]) -> bool:
    """Whether what changes stands beside sites, and nothing else depends on who is there."""
    every = (*model.adapters, *members)
    if any(member.merged or member.adapter.learned() for member in every):
        return False
    return all(beside(edit) for member in changed for edit in member.edits)


def left(members: Sequence[Member], gone: Sequence[str], order: Order) -> list[Member]:
    """The members without some, each after those that it came after until now."""
    came: dict[str, set[str]] = {}
    for verdict in order.verdicts:
        if verdict.word != "commute":
            came.setdefault(verdict.b, set()).add(verdict.a)
    kept: list[Member] = []
    for member in members:
        if member.name in gone:
            continue
        told = dict.fromkeys([*member.after, *sorted(came.get(member.name, ()))])
        after = tuple(name for name in told if name not in gone)
        before = tuple(name for name in member.before if name not in gone)
        if (after, before) != (member.after, member.before):
            member = replace(member, asked=replace(member.asked, after=after, before=before))
        kept.append(member)
    return kept
