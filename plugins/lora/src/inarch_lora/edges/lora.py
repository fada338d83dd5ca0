"""LoRA's terms, one class for each kind of layer: `scale * alpha / rank * B(A(x))`.

Shapes and names are PEFT's, so that files map one to one. Each takes the sum so far as `plus` and
folds the addition and the scale into the second product: two operations for a layer.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.adapters.placement import SUMMED, Placement, Split, shard
from inarch.errors import InarchError
from inarch_lora.edges.joint import JointLoRA
from inarch_lora.edges.layer import Layer
from inarch_lora.edges.site import SiteEdge


class LoRAEdge(SiteEdge):
    """What the terms share: rank, scaling, dropout, and PEFT's two kinds of bias.

    Args:
        first: the shape of A.
        second: the shape of B.
        scaling: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
        dropout: the share of inputs dropped in training.
        outputs: the size of the two biases; 0 for neither.
        lora_bias: whether B has a bias, which scales as the term does.
        bias: whether the layer's own bias is adapted, as a difference from it.
        factor: of the block, beside the user's scale.
    """

    names = ("lora_A", "lora_B")
    biases = ("bias",)
    bias: Tensor | None
    lora_B_bias: Tensor | None

    def __init__(
        self,
        first: tuple[int, ...],
        second: tuple[int, ...],
        scaling: float,
        *,
        dropout: float = 0.0,
        outputs: int = 0,
        lora_bias: bool = False,
        bias: bool = False,
        factor: float = 1.0,
    ) -> None:
        super().__init__(factor=factor, dropout=dropout)
        self.scaling = scaling
        a, b = self.names
        self.register_parameter(a, nn.Parameter(torch.empty(first)))
        self.register_parameter(b, nn.Parameter(torch.empty(second)))
        own = nn.Parameter(torch.empty(outputs)) if lora_bias else None
        self.register_parameter("lora_B_bias", own)
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs)) if bias else None)

    @property
    def rank(self) -> int:
        return self.get_parameter(self.names[0]).shape[0]

    @property
    def joins(self) -> Hashable:
        """What stands beside one layer has its sizes, so any may be one of rank sum with others.

        Biases, and what computes otherwise, stand alone.
        """
        held = self._parameters
        plain = type(self).forward is LoRAEdge.forward
        return (plain and held["lora_B_bias"] is None and held["bias"] is None) or None

    @classmethod
    def joined(cls, modules: Sequence[LoRAEdge]) -> JointLoRA:
        return JointLoRA(modules)

    def reset_parameters(self) -> None:
        """A as PEFT draws it, everything else zero: the term adds nothing yet."""
        nn.init.kaiming_uniform_(self.get_parameter(self.names[0]), a=math.sqrt(5))
        for name, parameter in self.named_parameters():
            if name != self.names[0]:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """The term of `x`, [..., inputs], added to `plus`, [..., outputs], where it is given."""
        first, second = self.pair()
        z = self.down(self.dropped(x), first)
        if torch.compiler.is_compiling():
            term = self.up(z * self.scale, second, plus, self.scaling * self.factor)
        else:
            term = self.up(z, second, plus, self.scaling * self.factor * self.strength)
        if self.lora_B_bias is None and self.bias is None:
            return term
        return self._biased(term)

    def _biased(self, term: Tensor) -> Tensor:
        acting = self.acting()
        if self.lora_B_bias is not None:
            term = term + self.along_outputs(self.lora_B_bias) * (acting * self.scaling)
        return term if self.bias is None else term + self.along_outputs(self.bias) * acting

    def placements(self, split: Split) -> Mapping[str, Placement]:
        """Beside columns A is whole and B is cut, beside rows the other way, and no value crosses.

        What is whole gets a part of its gradient in each process: a part of the outputs, or inputs.
        """
        first, second = self.names
        if split.kind == "inside":
            return super().placements(split)
        if split.kind == "whole":
            return {}
        rules = {first: SUMMED, second: shard(0)}
        if split.kind == "rows":
            rules = {first: shard(1), second: SUMMED}
        return {**rules, **self.along_site(split, "lora_B_bias", "bias")}

    def along_outputs(self, bias: Tensor) -> Tensor:
        return bias

    def along_ranks(self, strengths: Tensor) -> Tensor:
        """One number for each rank, as it broadcasts over what A gives."""
        return strengths

    @abstractmethod
    def pair(self) -> tuple[Tensor, Tensor]:
        """A and B."""

    @abstractmethod
    def down(self, x: Tensor, first: Tensor) -> Tensor:
        """A(x), for A of any rank."""

    @abstractmethod
    def up(self, z: Tensor, second: Tensor, plus: Tensor | None, strength: float) -> Tensor:
        """plus + strength * B(z), for B of any rank."""

    @abstractmethod
    def product(self) -> Tensor:
        """B A in float32, in the layout of the base's weight."""

    def delta(self) -> Tensor:
        return self.product() * (self.scaling * self.factor)

    def deltas(self) -> dict[str, Tensor]:
        return {**super().deltas(), **self.bias_deltas()}

    def bias_deltas(self) -> dict[str, Tensor]:
        """What the two kinds of bias add to the layer's own, at the present strength."""
        acting = self.strength * self.factor
        parts: list[Tensor] = []
        if self.lora_B_bias is not None:
            parts.append(self.lora_B_bias.float() * (acting * self.scaling))
        if self.bias is not None:
            parts.append(self.bias.float() * acting)
        return {"bias": sum(parts[1:], parts[0])} if parts else {}


def _add_product(z: Tensor, second: Tensor, plus: Tensor | None, strength: float) -> Tensor:
    """`plus + strength * z @ second.T` in one operation; z [..., rank], second [outputs, rank]."""
    if plus is None:
        return F.linear(z, second) * strength
    flat = plus.reshape(-1, second.shape[0])
    z = z.reshape(-1, second.shape[1])
    return torch.addmm(flat, z, second.t(), alpha=strength).view(plus.shape)


class LinearLoRA(LoRAEdge):
    """Beside a linear layer: A [rank, inputs], B [outputs, rank]."""

    lora_A: Tensor
    lora_B: Tensor

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.lora_A, self.lora_B

    def down(self, x: Tensor, first: Tensor) -> Tensor:
        return F.linear(x, first)

    def up(self, z: Tensor, second: Tensor, plus: Tensor | None, strength: float) -> Tensor:
        return _add_product(z, second, plus, strength)

    def product(self) -> Tensor:
        return self.lora_B.float() @ self.lora_A.float()


class TransposedLoRA(LinearLoRA):
    """Beside GPT-2's linear layer, whose weight is [inputs, outputs]; A and B are as ever."""

    def product(self) -> Tensor:
        return super().product().T


class EmbeddingLoRA(LoRAEdge):
    """Beside an embedding: A [rank, tokens], B [width, rank]; x are token ids."""

    names = ("lora_embedding_A", "lora_embedding_B")
    lora_embedding_A: Tensor
    lora_embedding_B: Tensor

    def reset_parameters(self) -> None:
        """As PEFT: A zero and B normal."""
        nn.init.zeros_(self.lora_embedding_A)
        nn.init.normal_(self.lora_embedding_B)

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.lora_embedding_A, self.lora_embedding_B

    def down(self, x: Tensor, first: Tensor) -> Tensor:
        return F.embedding(x, first.t())

    def up(self, z: Tensor, second: Tensor, plus: Tensor | None, strength: float) -> Tensor:
        return _add_product(z, second, plus, strength)

    def product(self) -> Tensor:
        return (self.lora_embedding_B.float() @ self.lora_embedding_A.float()).T


class ConvLoRA(LoRAEdge):
    """Beside a convolution: A [rank, inputs, *kernel], B [outputs, rank / groups, 1, ...].

    As in PEFT, A sees all input channels and B keeps the base's groups.
    """

    lora_A: Tensor
    lora_B: Tensor

    def __init__(self, site: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        layer = Layer.of(site, "")
        self.convolve, self.geometry, self.groups = layer.convolve, layer.geometry, layer.groups

    @property
    def joins(self) -> Hashable:
        # A grouped convolution's B has the ranks of each group apart, not side by side.
        return super().joins if self.groups == 1 else None

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.lora_A, self.lora_B

    def down(self, x: Tensor, first: Tensor) -> Tensor:
        return self.convolve(x, first, **self.geometry)

    def up(self, z: Tensor, second: Tensor, plus: Tensor | None, strength: float) -> Tensor:
        term = self.convolve(z, second, groups=self.groups)
        return term * strength if plus is None else torch.add(plus, term, alpha=strength)

    def along_outputs(self, bias: Tensor) -> Tensor:
        return bias.view(-1, *(1 for _ in self.lora_B.shape[2:]))

    def along_ranks(self, strengths: Tensor) -> Tensor:
        return self.along_outputs(strengths)

    def product(self) -> Tensor:
        if self.groups > 1:
            raise InarchError(
                "IA409",
                "a LoRA of a grouped convolution can't be merged",
                why="its A mixes the groups, and the base's weight can't",
                remedy="run it unmerged",
            )
        second = self.lora_B.float().flatten(1)
        return torch.einsum("or,ri...->oi...", second, self.lora_A.float())
