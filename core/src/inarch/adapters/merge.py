"""Merging: new weights that contain an adapter. The base keeps its own."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from inarch.adapters.edge import Edge
from inarch.adapters.member import Member
from inarch.errors import InarchError
from inarch.tree import Chain
from inarch.tree.substitute import substitute


def merged(trees: Mapping[str, Chain], members: Iterable[Member]) -> dict[str, Chain]:
    """The trees with the members' deltas in the weights of the sites they were added at.

    Sums are made in float32 and rounded once, whatever the order of the members.
    """
    deltas: dict[str, dict[str, Tensor]] = {}
    for member in sorted(members, key=lambda m: m.name):
        for address, changes in _deltas(member, trees):
            at = deltas.setdefault(address, {})
            for name, delta in changes.items():
                at[name] = at[name] + delta if name in at else delta
    result = dict(trees)
    for name, tree in trees.items():
        prefix = f"{name}." if name else ""
        own = {a.removeprefix(prefix): d for a, d in deltas.items() if a.startswith(prefix)}
        if own:
            modules = {a: _heavier(tree.get_submodule(a), d) for a, d in own.items()}
            result[name] = substitute(tree, modules)
    return result


def _deltas(
    member: Member, trees: Mapping[str, Chain]
) -> Iterable[tuple[str, Mapping[str, Tensor]]]:
    """What each edge of a member adds to the parameters of its site, checked."""
    for edit in member.edits:
        edge = edit.step
        if edit.kind != "add" or not isinstance(edge, Edge) or not _mergeable(edge):
            raise _unmergeable(
                member, f"its {edit.kind} there is no change of a weight", edit.address
            )
        with torch.no_grad():
            changes = edge.deltas()
        own = _parameters(trees, edit.address)
        for name, delta in changes.items():
            if name not in own:
                raise _unmergeable(
                    member, f"it changes a {name}, and the layer has none", edit.address
                )
            if not bool(torch.isfinite(delta).all()):
                raise _unmergeable(member, "its delta there is not finite", edit.address)
        yield edit.address, changes


def _mergeable(edge: Edge) -> bool:
    return type(edge).delta is not Edge.delta or type(edge).deltas is not Edge.deltas


def _parameters(trees: Mapping[str, Chain], address: str) -> set[str]:
    """The names of the parameters of the layer at an address."""
    name, _, rest = address.partition(".")
    tree, rest = (trees[""], address) if "" in trees else (trees[name], rest)
    return {name for name, _ in tree.get_submodule(rest).named_parameters(recurse=False)}


def _heavier(module: nn.Module, deltas: Mapping[str, Tensor]) -> nn.Module:
    """The same module with other weights; everything else of it is shared."""
    twin = copy.copy(module)
    twin.__dict__ = {**module.__dict__, "_parameters": dict(module._parameters)}
    for name, delta in deltas.items():
        old = module.get_parameter(name)
        value = (old.detach().float() + delta.to(old.device)).to(old.dtype)
        twin._parameters[name] = nn.Parameter(value, requires_grad=False)
    return twin


def _unmergeable(member: Member, why: str, address: str) -> InarchError:
    return InarchError(
        "IA409",
        f"the adapter `{member.name}` can't be merged",
        where=address,
        why=why,
        remedy="run it unmerged",
    )
