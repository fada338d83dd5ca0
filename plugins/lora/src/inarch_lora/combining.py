"""Weighted sums of LoRAs: their A's under one another, their B's side by side.

    w1 s1 B1 A1 + w2 s2 B2 A2 = [B1 B2] [w1 s1 A1; w2 s2 A2]

Adding A's to A's and B's to B's, as some do, makes cross terms B1 A2. The factor goes to A alone,
so a weight below 0 takes a term away. A lower rank is the best approximation of the sum, by the
singular values of its two thin factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inarch.adapters import Part, SiteView
from inarch.errors import InarchError
from inarch.weights import blank
from inarch_lora.edges import (
    BiasEdge,
    DoRAEdge,
    Layer,
    LoHaEdge,
    LoKrEdge,
    LoRAEdge,
    NormEdge,
    SiteEdge,
    StartedEdge,
    WholeEdge,
    edge_for,
)
from inarch_lora.terms import Term

_WHY: tuple[tuple[type[SiteEdge], str], ...] = (
    (DoRAEdge, "a DoRA, whose magnitude stretches the base's weight as well"),
    (LoHaEdge, "a LoHa, which is a product of two products"),
    (LoKrEdge, "a LoKr, which is a Kronecker product"),
    (NormEdge, "a change of a normalisation"),
    (WholeEdge, "a whole change of the weight, not two thin factors"),
)


@dataclass(slots=True)
class _Site:
    """What the parts have at one layer, each with its factor: pairs of A and B, and biases.

    The sum lies where `like` does, in its dtype.
    """

    like: Tensor
    pairs: list[tuple[float, Tensor, Tensor]] = field(default_factory=list[Any])
    biases: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, slots=True)
class Sum:
    """One term of a sum: what a layer's edge is made of and filled with.

    Attributes:
        term: without a file.
        edge: filled.
        discarded: the share of the sum's squared singular values that its rank has no room for.
    """

    term: Term
    edge: SiteEdge
    discarded: float


@torch.no_grad()
def summed(parts: Sequence[Part], sites: SiteView, rank: int | None) -> list[Sum]:
    """The terms of a weighted sum, by layer, in the order of the model.

    Args:
        parts: of LoRAs; their modules are read.
        sites: the pristine model.
        rank: the most of each term; None for the parts' ranks together.

    Raises:
        InarchError: IA499 for terms that have no such sum, or where nothing is left of it.
    """
    found: dict[str, _Site] = {}
    for part in parts:
        terms: Mapping[str, Term] = part.adapter.saved.terms  # pyright: ignore
        for address, edge in part.modules.items():
            if address in terms and part.weight != 0 and isinstance(edge, SiteEdge):
                site = found.setdefault(address, _Site(next(edge.parameters())))
                _take(site, part, address, edge)
    ordered = [address for address in sites.all if address in found]
    sums = [_sum(address, sites.all[address].module, found[address], rank) for address in ordered]
    if not sums:
        raise _no_sum("nothing is left of the sum", "", "every weight is 0, or every part is empty")
    return sums


def _take(site: _Site, part: Part, address: str, edge: SiteEdge) -> None:
    factor = part.weight * edge.strength * edge.factor
    if isinstance(edge, BiasEdge):
        _add(site, "bias", edge.bias, factor)
        return
    plain = isinstance(edge, LoRAEdge) and not isinstance(edge, DoRAEdge)
    if not plain:
        why = next((why for kind, why in _WHY if isinstance(edge, kind)), "no product")
        raise _no_sum(f"`{part.name}` can't be a part of a sum", address, f"the term is {why}")
    first, second = (edge.own(n, v) for n, v in zip(edge.names, edge.pair(), strict=True))
    site.pairs.append((factor * edge.scaling, first.float(), second.float()))
    if isinstance(edge, StartedEdge):
        site.pairs.append((-factor * edge.scaling, edge.start_A.float(), edge.start_B.float()))
    if edge.lora_B_bias is not None:
        _add(site, "lora_B_bias", edge.lora_B_bias, factor * edge.scaling)
    if edge.bias is not None:
        _add(site, "bias", edge.bias, factor)


def _add(site: _Site, name: str, value: Tensor, factor: float) -> None:
    before = site.biases.get(name)
    term = value.float() * factor
    site.biases[name] = term if before is None else before + term


def _sum(address: str, module: nn.Module | None, site: _Site, rank: int | None) -> Sum:
    layer = Layer.of(module, address)
    shapes = {name: tuple(value.shape) for name, value in site.biases.items()}
    if not site.pairs:
        term, values, discarded = Term(address=address, algorithm="bias", shapes=shapes), {}, 0.0
    else:
        first, second = _side_by_side(site.pairs, layer.groups)
        discarded = 0.0
        if rank is not None and rank < first.shape[0]:
            if layer.groups > 1:
                why = f"the rank {first.shape[0]} of a grouped convolution can't be lowered"
                raise _no_sum("the sum has no such rank", address, why)
            first, second, discarded = _lowered(first, second, rank)
        names = ("lora_A", "lora_B")
        if layer.kind == "embedding":
            names = ("lora_embedding_A", "lora_embedding_B")
        values = dict(zip(names, (first, second), strict=True))
        shapes |= {name: tuple(value.shape) for name, value in values.items()}
        term = Term(address=address, algorithm="lora", shapes=shapes, rank=first.shape[0])
    with blank():
        edge = edge_for(module, term)
    for name, value in {**values, **site.biases}.items():
        made = value.to(site.like).contiguous()
        edge._parameters[name] = nn.Parameter(made, requires_grad=False)
    return Sum(term, edge, discarded)


def _side_by_side(
    pairs: Sequence[tuple[float, Tensor, Tensor]], groups: int
) -> tuple[Tensor, Tensor]:
    """A of all pairs under one another, with their factors, and B side by side.

    B of a grouped convolution has the ranks of one group, so A's go together group by group.
    """
    firsts = [(factor * first).unflatten(0, (groups, -1)) for factor, first, _ in pairs]
    return torch.cat(firsts, 1).flatten(0, 1), torch.cat([second for *_, second in pairs], 1)


def _lowered(first: Tensor, second: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest product of a rank, and the share of the squared singular values beyond it."""
    outer, upper = torch.linalg.qr(second.flatten(1).double())
    inner, lower = torch.linalg.qr(first.flatten(1).T.double())
    left, values, right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    energy = values.square()
    beyond = energy[rank:].sum() / energy.sum().clamp(min=torch.finfo(torch.float64).tiny)
    root = values[:rank].sqrt()
    low = (root[:, None] * (right[:rank] @ inner.T)).float()
    high = ((outer @ left[:, :rank]) * root).float()
    kept = low.shape[0]
    return (
        low.reshape(kept, *first.shape[1:]),
        high.reshape(second.shape[0], kept, *second.shape[2:]),
        float(beyond),
    )


def _no_sum(what: str, where: str, why: str) -> InarchError:
    remedy = "let them act side by side, or merge them: model.merge()"
    return InarchError("IA499", what, where=where, why=why, remedy=remedy)
