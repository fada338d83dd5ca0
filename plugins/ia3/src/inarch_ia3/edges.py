"""(IA)^3's vectors: a factor of what comes out of a layer, or of what goes into it.

Shapes are PEFT's, so that files map one to one. The user's scale s goes from none of the effect to
all of it: the factor is 1 + s (l - 1).

Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
In-Context Learning", section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inarch.adapters import Edge
from inarch.adapters.placement import SUMMED, Placement, Split, shard
from inarch.errors import InarchError
from inarch.nn import TransposedLinear


class OutputFactor(Edge):
    """The factor of a layer's output.

    Args:
        shape: of the vector as PEFT keeps it: [outputs, 1], or [1, outputs, 1, ...] for a
            convolution.
        along: the shape in which it multiplies the layer's weight.
    """

    rowwise = True

    def __init__(self, shape: tuple[int, ...], along: tuple[int, ...]) -> None:
        super().__init__()
        self.along = along
        self.ia3_l = nn.Parameter(torch.empty(shape))

    def reset_parameters(self) -> None:
        """Ones: untrained, every value is multiplied by 1, which changes no bit."""
        nn.init.ones_(self.ia3_l)

    def factor(self) -> Tensor:
        """[features], or [1, channels, 1, ...] for a convolution."""
        vector = self.ia3_l.flatten() if self.ia3_l.dim() == 2 else self.ia3_l
        if torch.compiler.is_compiling():  # reading `strength` would guard on its value
            return torch.lerp(torch.ones_like(vector), vector, self.scale.to(vector.dtype))
        if self.strength == 1.0:
            return vector
        return torch.lerp(torch.ones_like(vector), vector, self.strength)

    def forward(self, x: Tensor) -> Tensor:
        """The factor, whatever the layer is given."""
        return self.factor()

    cut_with = "columns"
    """How a layer is split where the vector is cut with it; elsewhere each process needs all."""

    def placements(self, split: Split) -> Mapping[str, Placement]:
        if split.kind == "inside":
            return super().placements(split)
        if split.kind == "whole":
            return {}
        features = self.ia3_l.shape.index(self.ia3_l.numel())
        return {"ia3_l": shard(features) if split.kind == self.cut_with else SUMMED}

    def merge(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        factor = self.factor().float().flatten()
        merged = {"weight": parameters["weight"] * factor.view(self.along)}
        if "bias" in parameters:
            merged["bias"] = parameters["bias"] * factor
        return {**parameters, **merged}


class InputFactor(OutputFactor):
    """The factor of a feed-forward layer's input.

    Args:
        shape: of the vector as PEFT keeps it: [1, inputs], or [1, inputs, 1, ...].
        along: the shape in which it multiplies the layer's weight.
        groups: of a convolution, whose weight holds the inputs of one group.
    """

    cut_with = "rows"

    def __init__(self, shape: tuple[int, ...], along: tuple[int, ...], groups: int = 1) -> None:
        super().__init__(shape, along)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """`x` times the factor; [..., inputs], or [batch, inputs, ...]."""
        return x * self.factor()

    def merge(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight, factor = parameters["weight"], self.factor().float().flatten()
        if self.groups == 1:
            return {**parameters, "weight": weight * factor.view(self.along)}
        grouped = weight.unflatten(0, (self.groups, -1))  # [groups, outputs of one, its inputs, ..]
        own = factor.view(self.groups, 1, -1, *(1 for _ in weight.shape[2:]))
        return {**parameters, "weight": (grouped * own).flatten(0, 1)}


def edge_for(site: nn.Module | None, address: str, *, feedforward: bool) -> OutputFactor:
    """The vector for a layer.

    Args:
        site: the base's layer.
        address: where it stands.
        feedforward: whether what goes into it is multiplied, not what comes out.

    Raises:
        InarchError: IA430 for what is no layer (IA)^3 can scale.
    """
    layer: Any = site
    if isinstance(site, nn.Linear):
        if feedforward:
            return InputFactor((1, layer.in_features), (1, -1))
        return OutputFactor((layer.out_features, 1), (-1, 1))
    if isinstance(site, TransposedLinear):
        inputs, outputs = layer.weight.shape
        return (
            InputFactor((1, inputs), (-1, 1))
            if feedforward
            else OutputFactor((outputs, 1), (1, -1))
        )
    if type(site) in (nn.Conv2d, nn.Conv3d):
        ones = (1,) * len(layer.kernel_size)
        if feedforward:
            return InputFactor((1, layer.in_channels, *ones), (1, -1, *ones), layer.groups)
        return OutputFactor((1, layer.out_channels, *ones), (-1, 1, *ones))
    kind = "function" if site is None else type(site).__name__
    raise InarchError(
        "IA430",
        f"(IA)^3 has no factor for a {kind}",
        where=address,
        why="it scales linear layers, GPT-2's transposed ones, and 2d and 3d convolutions",
        remedy='name layers, such as targets=["attention.key", "attention.value", "mlp.down"]',
    )
