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
    deltas: dict[str, Tensor] = {}
    for member in sorted(members, key=lambda m: m.name):
        for address, delta in _deltas(member):
            deltas[address] = deltas[address] + delta if address in deltas else delta
    result = dict(trees)
    for name, tree in trees.items():
        prefix = f"{name}." if name else ""
        own = {a.removeprefix(prefix): d for a, d in deltas.items() if a.startswith(prefix)}
        if own:
            modules = {a: _heavier(tree.get_submodule(a), d) for a, d in own.items()}
            result[name] = substitute(tree, modules)
    return result


def _deltas(member: Member) -> Iterable[tuple[str, Tensor]]:
    for edit in member.edits:
        edge = edit.step
        if edit.kind != "add" or not isinstance(edge, Edge) or type(edge).delta is Edge.delta:
            raise _unmergeable(
                member, f"its {edit.kind} there is no change of a weight", edit.address
            )
        with torch.no_grad():
            delta = edge.delta().float() * edge.strength
        if not bool(torch.isfinite(delta).all()):
            raise _unmergeable(member, "its delta there is not finite", edit.address)
        yield edit.address, delta


def _heavier(module: nn.Module, delta: Tensor) -> nn.Module:
    """The same module with another weight; everything else of it is shared."""
    twin = copy.copy(module)
    twin.__dict__ = {**module.__dict__, "_parameters": dict(module._parameters)}
    weight = module.get_parameter("weight")
    value = (weight.detach().float() + delta.to(weight.device)).to(weight.dtype)
    twin._parameters["weight"] = nn.Parameter(value, requires_grad=False)
    return twin


def _unmergeable(member: Member, why: str, address: str) -> InarchError:
    return InarchError(
        "IA409",
        f"the adapter `{member.name}` can't be merged",
        where=address,
        why=why,
        remedy="run it unmerged",
    )
