"""A bias beside a layer that has no other term."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inarch.adapters.placement import Placement, Split
from inarch_lora.edges.layer import Layer
from inarch_lora.edges.site import SiteEdge


class BiasEdge(SiteEdge):
    """A bias that differs from the base's (PEFT's `bias="all"`); a file holds the whole bias."""

    biases = ("bias",)

    def __init__(self, layer: Layer, *, factor: float = 1.0) -> None:
        super().__init__(factor=factor)
        self.layer = layer
        self.bias = nn.Parameter(torch.empty(layer.outputs))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        term = self.layer.along_outputs(self.bias) * self.acting()
        return term if plus is None else plus + term

    def placements(self, split: Split) -> Mapping[str, Placement]:
        return {} if split.kind == "whole" else self.along_site(split, "bias")

    def placed(self, split: Split, site: nn.Module | None) -> None:
        super().placed(split, site)
        self.layer = Layer.of(site, "")

    def deltas(self) -> dict[str, Tensor]:
        return {"bias": self.bias.float() * (self.strength * self.factor)}
