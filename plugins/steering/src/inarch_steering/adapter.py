"""Steering as an adapter: at each site, an `add` of a vector that is the same at every position.

Source: Turner et al. 2023, "Steering Language Models With Activation Engineering", section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from inarch.adapters import Adapter, Edge, SiteView
from inarch.adapters.placement import FIRST, Placement, Split, shard
from inarch.errors import InarchError
from inarch.tree import Edit
from inarch.weights import WeightsHeader, write_adapter


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("steering", ...)` takes.

    Attributes:
        targets: roles or address patterns, for vectors that are yet to be trained.
        width: of those vectors; None is the width of the model's token embedding.
    """

    targets: tuple[str, ...] = ("block",)
    width: int | None = None


class SteeringVector(Edge):
    """A vector [features], added to every position of what a site gives."""

    rowwise = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        """Zeros: untrained, it steers nowhere."""
        nn.init.zeros_(self.vector)

    def placements(self, split: Split) -> Mapping[str, Placement]:
        """Cut with a layer's outputs; of a sum over processes, once."""
        rules: dict[str, Placement] = {"columns": shard(0), "rows": FIRST}
        if split.kind == "inside":
            return super().placements(split)
        return {} if split.kind == "whole" else {"vector": rules[split.kind]}

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """`plus`, [batch, time, features], moved along the vector by the strength."""
        if torch.compiler.is_compiling():  # reading `strength` would guard on its value
            term = self.vector * self.scale.to(self.vector.dtype)
            return term if plus is None else plus + term
        if plus is None:
            return self.vector * self.strength
        return torch.add(plus, self.vector, alpha=self.strength)


class Steering(Adapter):
    """Vectors at the sites that a file names, or that are to be trained."""

    Options = Options
    options: Options
    for_training = Options.__struct_fields__
    by_header = True

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        if weights is None:
            width = self.options.width or _width(sites)
            for site in sites.find(self.options.targets):
                yield Edit.add(site.address, SteeringVector(width), self.name)
            return
        widths = _widths(sites)
        for key in sorted(weights.keys()):
            shape = tuple(weights.shape(key))
            if len(shape) != 1:
                raise _misplaced(self.name, f"{weights.path}: {key}", f"it is {list(shape)}")
            if key not in sites.all:
                why = "the model has no such site"
                raise _misplaced(self.name, f"{weights.path}: {key}", why)
            if widths.get(key, shape[0]) != shape[0]:
                why = f"it is {list(shape)}, and what flows there has {widths[key]} features"
                raise _misplaced(self.name, f"{weights.path}: {key}", why)
            yield Edit.add(key, SteeringVector(shape[0]), self.name, fills={"vector": key})

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save one file, `steering.safetensors`: each vector under its site's address."""
        tensors = {a: edge.vector for a, edge in edges.items() if isinstance(edge, SteeringVector)}
        write_adapter(folder / "steering.safetensors", tensors, about)


def _widths(sites: SiteView) -> dict[str, int]:
    """How wide the stream is at each block, where the model says so."""
    if not {"block", "embedding.tokens"} <= set(sites.roles):
        return {}
    try:
        width = _width(sites)
        return {site.address: width for site in sites.find(["block"])}
    except InarchError:  # a part of the family that has no such sites
        return {}


def _width(sites: SiteView) -> int:
    found: list[Any] = []
    if "embedding.tokens" in sites.roles:
        found = [site.module for site in sites.find(["embedding.tokens"])]
    if not found or not isinstance(found[0], nn.Embedding):
        raise InarchError(
            "IA481",
            "nothing says how wide a steering vector is",
            why="the model has no role `embedding.tokens`",
            remedy='inarch.adapter("steering", width=768)',
        )
    return found[0].embedding_dim


def _misplaced(name: str, where: str, why: str) -> InarchError:
    return InarchError(
        "IA481",
        f"a vector of adapter `{name}` can't stand where it should",
        where=where,
        why=why,
        remedy="name each vector, [features], by the address of a site: inarch tree MODEL",
    )
