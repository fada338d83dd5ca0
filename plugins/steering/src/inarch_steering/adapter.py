"""Steering as an adapter: at each site, an `add` of a vector that is the same at every position.

Source: Turner et al. 2023, "Steering Language Models With Activation Engineering", section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from inarch.adapters import Adapter, Edge, SiteView, TargetSite
from inarch.adapters.placement import FIRST, Placement, Split, shard
from inarch.errors import InarchError
from inarch.nn import RMSNorm, TransposedLinear
from inarch.tree import Edit
from inarch.weights import WeightsHeader, write_adapter


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("steering", ...)` takes.

    Attributes:
        targets: roles or address patterns, for vectors that are yet to be trained.
        width: of those vectors; None is, at each site, what its last layer gives.
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
            for site in sites.find(self.options.targets):
                yield Edit.add(site.address, SteeringVector(self._width(site)), self.name)
            return
        for key in sorted(weights.keys()):
            shape = tuple(weights.shape(key))
            if len(shape) != 1:
                raise _misplaced(self.name, f"{weights.path}: {key}", f"it is {list(shape)}")
            if key not in sites.all:
                why = "the model has no such site"
                raise _misplaced(self.name, f"{weights.path}: {key}", why)
            told = f"it is {list(shape)}"
            self._refuse_unfit(sites.all[key], shape[0], f"{weights.path}: {key}", told)
            yield Edit.add(key, SteeringVector(shape[0]), self.name, fills={"vector": key})

    def _width(self, site: TargetSite) -> int:
        """Of a vector that is yet to be trained.

        Raises:
            InarchError: IA481 at an image, at a layer of another width, or where none is known.
        """
        width = self.options.width or _given(site.module)
        if width is None:
            raise InarchError(
                "IA481",
                f"nothing says how wide a vector of adapter `{self.name}` is",
                where=site.address,
                why="no layer stands there",
                remedy='inarch.adapter("steering", width=768)',
            )
        self._refuse_unfit(site, width, site.address, f"width is {self.options.width}")
        return width

    def _refuse_unfit(self, site: TargetSite, width: int, where: str, told: str) -> None:
        """Refuse a vector that can't be added to what its site gives, if a layer says what."""
        given = _given(site.module)
        if given == 0:
            raise _misplaced(
                self.name, where, "what flows there is an image, whose last axis is no feature"
            )
        if given not in (None, width):
            raise _misplaced(self.name, where, f"{told}, and what flows there has {given} features")

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save one file, `steering.safetensors`: each vector under its site's address."""
        tensors = {a: edge.vector for a, edge in edges.items() if isinstance(edge, SteeringVector)}
        write_adapter(folder / "steering.safetensors", tensors, about)


def _given(module: nn.Module | None) -> int | None:
    """How many features a module's last layer gives; 0 for an image, None if nothing says so."""
    for layer in reversed([] if module is None else list(module.modules())):
        if isinstance(layer, nn.Conv2d | nn.GroupNorm):
            return 0
        if isinstance(layer, nn.Embedding):
            return layer.embedding_dim
        if isinstance(layer, nn.LayerNorm | RMSNorm | TransposedLinear):
            return None if layer.weight is None else layer.weight.shape[-1]
        if isinstance(found := getattr(layer, "out_features", None), int):
            return found
    return None


def _misplaced(name: str, where: str, why: str) -> InarchError:
    return InarchError(
        "IA481",
        f"a vector of adapter `{name}` can't stand where it should",
        where=where,
        why=why,
        remedy="name each vector, [features], by the address of a site: inarch tree MODEL",
    )
