"""Merging: new weights that contain an adapter. The base keeps its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from inarch.adapters.edge import Edge
from inarch.adapters.member import Member
from inarch.adapters.slot import Frozen
from inarch.errors import InarchError
from inarch.tree import Chain, Edit
from inarch.tree.substitute import substitute
from inarch.tree.twin import twin_of

_Placed = tuple[Member, Edit]


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """Trees whose weights contain some adapters, and what these were."""

    frozen: tuple[Frozen, ...]
    trees: Mapping[str, Chain]


def merged(
    trees: Mapping[str, Chain], members: Iterable[Member], before: Merged | None = None
) -> Merged:
    """The trees with the merged ones of `members` in the weights of the sites they stand at.

    What the edges make of a weight is made in float32 and rounded once. Edges of one kind that
    follow each other at a site act in the order of their names, as in the tree.

    Args:
        trees: pristine.
        members: in canonical order.
        before: what was merged into these trees already, and stays where nothing else is to be.

    Raises:
        InarchError: IA409 where an edge can't be merged, what it makes is not finite, it acts on
            what an adapter that isn't merged does at the same site, or the weight is quantised;
            or where weights have to be made again of what is no longer what it was.
    """
    at: dict[str, list[_Placed]] = {}
    members = tuple(members)
    frozen = tuple(member.frozen for member in members if member.frozen is not None)
    if not frozen:
        return Merged((), trees)
    for member in members:
        for edit in member.edits:
            if member.merged:
                _refuse_unmergeable(member, edit)
            at.setdefault(edit.address, []).append((member, edit))
    at = {a: placed for a, placed in at.items() if any(member.merged for member, _ in placed)}
    for address, placed in at.items():
        _refuse_out_of_turn(address, placed)
    if before is not None and {*before.frozen} == {*frozen}:
        return before
    for member in members:
        _refuse_moved(member)
    modules: dict[str, dict[str, nn.Module]] = {name: {} for name in trees}
    for address, placed in at.items():
        name, inner = _located(trees, address)
        layer = trees[name].get_submodule(inner)
        _refuse_quantised(address, layer, placed)
        ordered = [one for one in _canonical(placed) if one[0].merged]
        modules[name][inner] = _with(layer, ordered)
    made = {
        name: substitute(tree, modules[name]) if modules[name] else tree
        for name, tree in trees.items()
    }
    return Merged(frozen, made)


def _refuse_moved(member: Member) -> None:
    """A merged adapter of which the weights can't be made again."""
    again = "merge the model it was merged from again"
    if member.rewritten:
        why = f"its weights were {member.rewritten} since this model was merged"
        raise _unmergeable(member, why, "", again)
    now = next((edge.strength for edge in member.edges), 1.0)
    if member.frozen is not None and now != member.frozen.scale:
        why = f"its scale was {member.frozen.scale:g} when this model was merged, and is {now:g}"
        raise _unmergeable(member, why, "", again)


def _canonical(placed: list[_Placed]) -> list[_Placed]:
    runs = groupby(placed, key=lambda one: one[1].kind)
    return [one for _, run in runs for one in sorted(run, key=lambda one: one[0].name)]


def _refuse_out_of_turn(address: str, placed: list[_Placed]) -> None:
    """A merged edge acts first, so it can't act on what one that isn't merged makes."""
    for i, (member, edit) in enumerate(placed):
        for live, other in placed[:i]:
            alike = other.kind == edit.kind and edit.kind in ("add", "scale")
            if member.merged and not live.merged and not alike and other.kind != "tap":
                why = f"its {edit.kind} there acts on the {other.kind} of `{live.name}`"
                raise _unmergeable(member, why, address, f'merge both, or only "{live.name}"')


def _refuse_quantised(address: str, layer: nn.Module, placed: list[_Placed]) -> None:
    """Weights that are codes and scales hold no sum: rounding it would be quantising it again."""
    held = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    for name, value in held:
        kind = "a " + type(value).__name__
        if type(value) in (nn.Parameter, Tensor):
            plain = not isinstance(value, nn.Parameter) and name != "weight"
            if plain or (value.is_floating_point() and value.dtype.itemsize > 1):
                continue
            kind = str(value.dtype).removeprefix("torch.")
        member = next(member for member, _ in placed if member.merged)
        why = f"its {name} there is {kind}, quantised, and a sum in it would be quantised anew"
        remedy = "run it unmerged, or load the base unquantised and merge there"
        raise _unmergeable(member, why, address, remedy)


def _located(trees: Mapping[str, Chain], address: str) -> tuple[str, str]:
    if "" in trees:
        return "", address
    name, _, rest = address.partition(".")
    return name, rest


def _with(layer: nn.Module, placed: list[_Placed]) -> nn.Module:
    """The same layer with other parameters; everything else of it is shared."""
    own = dict(layer.named_parameters(recurse=False))
    start = values = {name: parameter.detach().float() for name, parameter in own.items()}
    for member, edit in placed:
        values = _merged(member, edit, values)
    twin = twin_of(layer)
    for name, value in values.items():
        if value is not start[name]:
            cast = value.to(own[name].dtype)
            if cast.dtype is not value.dtype and not _finite(cast):
                why = f"the {name} it makes there is beyond what {cast.dtype} holds"
                member, edit = placed[-1]
                raise _unmergeable(member, why, edit.address)
            twin._parameters[name] = nn.Parameter(cast, requires_grad=False)
    return twin


def _refuse_unmergeable(member: Member, edit: Edit) -> None:
    # Unless it says otherwise an edge adds, which is a change of the weight for an `add` only.
    edge = edit.step
    own = isinstance(edge, Edge) and type(edge).merge is not Edge.merge
    if not isinstance(edge, Edge) or not edge.mergeable or not (own or edit.kind == "add"):
        why = f"what it does there (`{edit.kind}`) is no change of a weight"
        raise _unmergeable(member, why, edit.address)


@torch.no_grad()
def _merged(member: Member, edit: Edit, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        result = edit.step.merge(values)
    except KeyError as absent:
        why = f"it changes a {absent.args[0]}, and the layer has none"
        raise _unmergeable(member, why, edit.address) from None
    for name, value in result.items():
        if value is not values[name] and not _finite(value):
            raise _unmergeable(member, f"the {name} it makes there is not finite", edit.address)
    return result


def _finite(value: Tensor) -> bool:
    """Whether every number is finite: so they are if their sum is, which is read at memory's speed.

    A sum may also overflow by itself, so what isn't is looked at one by one.
    """
    return bool(torch.isfinite(value.sum(dtype=torch.float32))) or bool(torch.isfinite(value).all())


def _unmergeable(
    member: Member, why: str, address: str, remedy: str = "run it unmerged"
) -> InarchError:
    return InarchError(
        "IA409",
        f"the adapter `{member.name}` can't be merged",
        where=address,
        why=why,
        remedy=remedy,
    )
