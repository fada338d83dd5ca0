"""A base layer as terms see it: what it computes with another weight, and how that is laid out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.adapters import SiteView
from inarch.errors import InarchError

_CONVOLUTIONS: tuple[tuple[type[Any], Callable[..., Tensor]], ...] = (
    (nn.Conv1d, F.conv1d),
    (nn.Conv2d, F.conv2d),
    (nn.Conv3d, F.conv3d),
)
_GEOMETRY = ("stride", "padding", "dilation")
_FORM = attrgetter("kind", "shape", "inputs", "biased", "groups")


@dataclass(frozen=True)
class Layer:
    """The form of a layer, without its weights.

    Attributes:
        kind: `linear` [outputs, inputs], `transposed` [inputs, outputs] as GPT-2's, `embedding`
            [tokens, outputs], `conv` [outputs, inputs / groups, *kernel].
        shape: of its weight.
        inputs: of a convolution, over all its groups.
    """

    kind: Literal["linear", "transposed", "embedding", "conv"]
    shape: tuple[int, ...]
    inputs: int
    outputs: int
    biased: bool
    groups: int
    geometry: Mapping[str, Any]
    convolve: Callable[..., Tensor]

    @classmethod
    def of(cls, site: nn.Module | None, address: str) -> Layer:
        """The form of the layer that stands at a site.

        Raises:
            InarchError: IA421 for what is no such layer.
        """
        held = {} if site is None else site._parameters
        weight = held["weight"] if "weight" in held else getattr(site, "weight", None)
        with torch._C.DisableTorchFunction():  # a mode would be asked about every shape
            shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
        if isinstance(site, nn.Linear):
            return _linear(shape, held.get("bias") is not None)
        biased = isinstance(getattr(site, "bias", None), nn.Parameter)
        from inarch.nn.linear import TransposedLinear

        if isinstance(site, TransposedLinear):
            return cls("transposed", shape, shape[0], shape[1], biased, 1, {}, F.linear)
        if isinstance(site, nn.Embedding):
            return cls("embedding", shape, shape[0], shape[1], False, 1, {}, F.linear)
        for kind, convolve in _CONVOLUTIONS:
            if isinstance(site, kind):
                geometry = {name: getattr(site, name) for name in _GEOMETRY}
                inputs, groups = site.in_channels, site.groups
                return cls("conv", shape, inputs, shape[0], biased, groups, geometry, convolve)
        raise InarchError(
            "IA421",
            f"LoRA has no term for a {type(site).__name__}"
            if site is not None
            else "LoRA adapts layers, and here is none",
            where=address,
            why="it adapts linear layers, GPT-2's transposed ones, embeddings and convolutions",
            remedy='name other targets, such as targets=["attention.*"]',
        )

    @cached_property
    def form(self) -> Hashable:
        """All of it, to be looked up by."""
        return *_FORM(self), *self.geometry.items()

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.shape[2:]

    def run(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the layer computes of `x` with another weight and no bias."""
        if self.kind == "linear":
            return F.linear(x, weight)
        if self.kind == "transposed":
            return torch.matmul(x, weight)
        if self.kind == "embedding":
            return F.embedding(x, weight)
        return self.convolve(x, weight, groups=self.groups, **self.geometry)

    def rows(self, weight: Tensor) -> Tensor:
        """A weight as [outputs, everything else]."""
        return weight.T if self.kind in ("transposed", "embedding") else weight.flatten(1)

    def laid_out(self, rows: Tensor) -> Tensor:
        """[outputs, everything else] in the layout of the weight."""
        if self.kind in ("transposed", "embedding"):
            return rows.T
        return rows.reshape(self.shape)

    def along_outputs(self, vector: Tensor) -> Tensor:
        """One number for each output, as it broadcasts over what the layer gives."""
        if self.kind != "conv":
            return vector.reshape(-1)
        return vector.reshape(-1, *(1 for _ in self.kernel))


@cache
def _linear(shape: tuple[int, int], biased: bool) -> Layer:
    return Layer("linear", shape, shape[1], shape[0], biased, 1, {}, F.linear)


class Layers(dict[str, Layer]):
    """The forms of a model's layers by their addresses, each read when it is first asked for.

    Args:
        sites: of the model.
    """

    def __init__(self, sites: SiteView) -> None:
        super().__init__()
        self.sites = sites

    def __missing__(self, address: str) -> Layer:
        layer = self[address] = Layer.of(self.sites.module_at(address), address)
        return layer
