"""DoRA: the weight's direction is adapted by LoRA, its magnitude is a parameter of its own.

With m the magnitude and s the scaling times the user's scale, the layer computes what
`m / ||W + s B A|| * (W + s B A)` would; what is added to `W x` is therefore
`(m / ||.|| - 1) * W x + m / ||.|| * s * B A x`. W is the pristine weight, whatever other adapters
add beside it. As in PEFT the norm is a constant to gradients, and the user's scale acts in it too.

Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353, sections
4.1 and 4.3.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inarch.adapters.placement import SUMMED, Placement, Split, shard
from inarch_lora.edges.joint import alone, gathering, learns
from inarch_lora.edges.layer import Layer
from inarch_lora.edges.lora import ConvLoRA, EmbeddingLoRA, LinearLoRA, LoRAEdge, TransposedLoRA
from inarch_lora.edges.site import squares


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A norm and what it was made of: tensors, their versions, where they lay, what lay there.

    And in which dtype: autocast rounds B A, so a norm made under it serves nothing without it.
    """

    of: tuple[tuple[Tensor, int, int, Tensor], ...]
    strength: float | Tensor
    cast: torch.dtype | None
    norm: Tensor

    def stands(
        self, held: Sequence[Tensor], strength: float | Tensor, cast: torch.dtype | None
    ) -> bool:
        """Whether the same would be made again, which every process must answer alike."""
        return (strength, cast) == (self.strength, self.cast) and all(
            value is old and value._version == version and value.data_ptr() == place
            for value, (old, version, place, _) in zip(held, self.of, strict=True)
        )


class _Memory:
    """What an edge keeps, which is no part of what the edge is: any two are equal."""

    def __init__(self) -> None:
        self.kept: _Kept | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Memory)

    def __hash__(self) -> int:
        return hash(_Memory)


def _marked(value: Tensor) -> bool:
    """Whether a change of it leaves a trace."""
    return type(value) is nn.Parameter and not value.is_inference() and not value.is_meta


def _cast(value: Tensor) -> torch.dtype | None:
    """What autocast makes of a product on the device of a value; None without autocast."""
    kind = value.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


class DoRAEdge(LoRAEdge):
    """What the four kinds share; A, B and everything else are LoRA's.

    Args:
        layer: the form of the layer it stands beside.
        args: LoRA's own.
    """

    lora_magnitude_vector: Tensor

    def __init__(self, layer: Layer, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.layer = layer
        self.memory = _Memory()
        ones = (1,) * len(layer.kernel)
        shape = (1, layer.outputs, *ones) if layer.kind == "conv" else (layer.outputs,)
        self.lora_magnitude_vector = nn.Parameter(torch.empty(shape))

    def placements(self, split: Split) -> Mapping[str, Placement]:
        rules = super().placements(split)
        rule = SUMMED if split.kind == "rows" else shard(0)
        return {**rules, "lora_magnitude_vector": rule} if rules else rules

    def crosses(self, split: Split) -> bool:
        """Beside rows, where the norm of an output is over inputs that others have."""
        return split.kind == "rows"

    def placed(self, split: Split, site: nn.Module | None) -> None:
        super().placed(split, site)
        self.layer = Layer.of(site, "")
        self.memory = _Memory()

    def settle(self, site: nn.Module | None, *, loaded: bool) -> None:
        super().settle(site, loaded=loaded)
        self.memory = _Memory()
        if not loaded:
            with torch.no_grad():
                norm = self._norm(1.0)
                self.lora_magnitude_vector.copy_(norm.view_as(self.lora_magnitude_vector))

    @property
    def joins(self) -> Hashable:
        """Each reads its own norm, so several act in turn; the first has the layer's output."""
        return "in turn"

    @classmethod
    def joined(cls, modules: Sequence[DoRAEdge], onto: nn.Module | None) -> JointDoRA:
        return JointDoRA(modules, onto)

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        x = self.dropped(x)
        term = self.term(x, self.layer.run(x, self.base_weight()))
        return term if plus is None else plus + term

    def term(self, x: Tensor, product: Tensor) -> Tensor:
        """What is added to the layer's output for `x`, of which `product` is W x alone."""
        strength = self.whole_scale()
        ratio = self.layer.along_outputs(self._ratio(strength))
        first, second = self.pair()
        low = self.up(self.down(x, first), second, None, 1.0)
        term = (ratio - 1) * product + ratio * low * strength
        if self.bias is not None:
            term = term + self.along_outputs(self.bias) * self.acting()
        return term

    def onto(self, x: Tensor, output: Tensor, layer: nn.Module) -> Tensor:
        """The layer's own output for `x` with the term, which needs no second product with W."""
        bias = getattr(layer, "bias", None)
        product = output if bias is None else output - self.layer.along_outputs(bias)
        return output + self.term(x, product)

    def _ratio(self, strength: float | Tensor) -> Tensor:
        """Magnitude over norm, for each output; a row of zeros has no direction to stretch."""
        norm = self._kept_norm(strength)
        return self.lora_magnitude_vector.reshape(-1) / norm.masked_fill(norm == 0, 1)

    def _norm(self, strength: float | Tensor) -> Tensor:
        """||W + s B A|| of each output, in the weight's dtype."""
        first, second = (self.get_parameter(name).detach() for name in self.names)
        product = second.reshape(-1, first.shape[0]) @ first.flatten(1)
        rows = self.layer.rows(self.base_weight())
        # PEFT's reading of a grouped convolution too, whose B A has the size but not the form of W.
        changed = rows + strength * product.reshape(rows.shape)
        if self.total is None:
            return torch.linalg.norm(changed, dim=1)
        return self.total(squares(changed).sum(1)).sqrt().to(changed.dtype)

    def _kept_norm(self, strength: float | Tensor) -> Tensor:
        """The norm, a constant to gradients, made again where something changed, or may unseen."""
        if torch.compiler.is_compiling():
            return self._norm(strength).detach()
        memory, site = self.memory, self.base()
        held = (*self.pair(), self.base_weight() if site is None else site.get_parameter("weight"))
        learning = torch.is_grad_enabled() and learns(self)  # by any optimiser: some write `data`
        if learning or gathering() or not all(map(_marked, held)):
            memory.kept = None
            return self._norm(strength).detach()
        kept, cast = memory.kept, _cast(held[0])  # another thread may put another there
        if kept is not None and kept.stands(held, strength, cast):
            return kept.norm
        marks = tuple((v, v._version, v.data_ptr(), v.detach()) for v in held)
        with torch.no_grad(), torch.inference_mode(False):
            norm = self._norm(strength)
        if type(norm) is Tensor:  # and not traced, or counted without data
            memory.kept = _Kept(marks, strength, cast, norm)
        return norm

    def deltas(self) -> dict[str, Tensor]:
        strength = self.whole_strength()
        weight = self.layer.rows(self.base_weight().float())
        changed = weight + strength * self.layer.rows(self.product())
        delta = self._ratio(strength).float().unsqueeze(1) * changed - weight
        return {"weight": self.layer.laid_out(delta), **self.bias_deltas()}


class JointDoRA:
    """Computes the terms beside one layer, the first of them from the layer's output, as PEFT does.

    Where it drops inputs, or is watched by a hook, it is called as a module; so it is where a hook
    of the layer may have changed the output.

    Args:
        terms: in the order of the sum.
        onto: the layer whose output the sum so far is, or None.
    """

    def __init__(self, terms: Sequence[DoRAEdge], onto: nn.Module | None) -> None:
        self.terms, self.layer = tuple(terms), onto

    def __call__(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        first, *rest = self.terms
        layer = self.layer
        own = layer is not None and layer is first.base() and not layer._forward_hooks
        if plus is None or layer is None or not own or alone(first):
            total = first(x, plus=plus)
        else:
            total = first.onto(x, plus, layer)
        for term in rest:
            total = term(x, plus=total)
        return total


class LinearDoRA(DoRAEdge, LinearLoRA):
    """Beside a linear layer."""


class TransposedDoRA(DoRAEdge, TransposedLoRA):
    """Beside GPT-2's linear layer."""


class EmbeddingDoRA(DoRAEdge, EmbeddingLoRA):
    """Beside an embedding, whose magnitude is one number for each of its columns."""


class ConvDoRA(DoRAEdge, ConvLoRA):
    """Beside a convolution, whose magnitude is one number for each output channel."""
