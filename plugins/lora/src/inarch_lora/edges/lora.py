"""LoRA's terms, one class for each kind of layer: `scale * alpha / rank * B(A(x))`.

Shapes and names are PEFT's, so that files map one to one. Each takes the sum so far as `plus` and
folds the addition and the scale into the second product: two operations for a layer.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.adapters.placement import SUMMED, Placement, Split, shard
from inarch.errors import InarchError
from inarch_lora.edges.conv_rows import ConvRows
from inarch_lora.edges.embedding_rows import EmbeddingRows
from inarch_lora.edges.joint import JointLoRA, target
from inarch_lora.edges.layer import Layer
from inarch_lora.edges.lone import LoneLoRA
from inarch_lora.edges.rows import LinearRows, RowBank, RowLoRA
from inarch_lora.edges.site import SiteEdge


class LoRAEdge(SiteEdge):
    """What the terms share: rank, scaling, dropout, and PEFT's two kinds of bias.

    Its tensors may have room for a larger rank than its own. Rows of A and columns of B beyond that
    are zero, and stay so in training, where each keeps the other's gradient at zero.

    Args:
        first: the shape of A.
        second: the shape of B.
        scaling: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
        rank: its own; None for as much as there is room for.
        dropout: the share of inputs dropped in training.
        outputs: the size of the two biases; 0 for neither.
        lora_bias: whether B has a bias, which scales as the term does.
        bias: whether the layer's own bias is adapted, as a difference from it.
        factor: of the block, beside the user's scale.

    Attributes:
        gain: scaling times factor as a 0-dim float32 buffer, for compiled code; see `Edge.scale`.
    """

    names = ("lora_A", "lora_B")
    biases = ("bias",)
    from_file = ("dropout", "scaling", "rank")
    row_bank: ClassVar[type[RowBank]]
    gain: Tensor
    bias: Tensor | None
    lora_B_bias: Tensor | None

    def __init__(
        self,
        first: tuple[int, ...],
        second: tuple[int, ...],
        scaling: float,
        *,
        rank: int | None = None,
        dropout: float = 0.0,
        outputs: int = 0,
        lora_bias: bool = False,
        bias: bool = False,
        factor: float = 1.0,
    ) -> None:
        super().__init__(factor=factor, dropout=dropout)
        self.scaling = scaling
        self.rank = first[0] if rank is None else rank
        self.register_buffer("gain", torch.ones((), dtype=torch.float32), persistent=False)
        a, b = self.names
        self.register_parameter(a, nn.Parameter(torch.empty(first)))
        self.register_parameter(b, nn.Parameter(torch.empty(second)))
        self.biased = lora_bias or bias
        own = nn.Parameter(torch.empty(outputs)) if lora_bias else None
        self.register_parameter("lora_B_bias", own)
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs)) if bias else None)

    def numbers(self) -> Mapping[str, float]:
        return {"gain": self.scaling * self.factor}

    def own(self, name: str, tensor: Tensor) -> Tensor:
        """The part of a parameter that its rank fills: of A the first rows, of B first columns."""
        first, second = self.names
        room = self.get_parameter(first).shape[0]
        if name == first:
            return tensor[: self.rank]
        return tensor[:, : tensor.shape[1] * self.rank // room] if name == second else tensor

    @property
    def plain(self) -> bool:
        """Whether it is B A: no biases, and nothing that is computed otherwise."""
        held = self._parameters
        own = type(self).forward is LoRAEdge.forward
        return own and held["lora_B_bias"] is None and held["bias"] is None

    @property
    def joins(self) -> Hashable:
        """What stands beside one layer has its sizes, so any may be one of rank sum with others."""
        return self.plain or None

    @classmethod
    def joined(cls, modules: Sequence[LoRAEdge], onto: nn.Module | None) -> JointLoRA | LoneLoRA:
        return LoneLoRA(modules[0], onto) if len(modules) == 1 else JointLoRA(modules, onto)

    def on_rows(self, rows: Iterable[int], count: int) -> nn.Module:
        own = tuple(rows)
        return RowLoRA(self, own, count) if self.plain else super().on_rows(own, count)

    def reset_parameters(self) -> None:
        """A as PEFT draws it, everything else zero: the term adds nothing yet."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        if self.rank:
            first = self.get_parameter(self.names[0])
            nn.init.kaiming_uniform_(self.own(self.names[0], first), a=math.sqrt(5))

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """The term of `x`, [..., inputs], added to `plus`, [..., outputs], where it is given."""
        first, second = self.pair()
        if self.training:
            x = self.dropped(x)
        z = self.down(x, first)
        if torch.compiler.is_compiling():
            term = self.up(z * self.whole_scale(), second, plus, 1.0)
        else:
            term = self.up(z, second, plus, self.whole_strength())
        return self._biased(term) if self.biased else term

    def whole_strength(self) -> float:
        """All that B A is multiplied by, for eager code."""
        return self.scaling * self.factor * self.strength

    def whole_scale(self) -> float | Tensor:
        """The same; under compilation a tensor, as `acting`."""
        return self.scale * self.gain if torch.compiler.is_compiling() else self.whole_strength()

    def _biased(self, term: Tensor) -> Tensor:
        if self.lora_B_bias is not None:
            term = term + self.along_outputs(self.lora_B_bias) * self.whole_scale()
        return term if self.bias is None else term + self.along_outputs(self.bias) * self.acting()

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
    def up(
        self, z: Tensor, second: Tensor, plus: Tensor | None, strength: float, write: bool = False
    ) -> Tensor:
        """plus + strength * B(z), for B of any rank; in the memory of plus where that is asked."""

    def operands(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """A and B of any rank, as `add` takes them, with views that need not be made each time."""
        return first, second

    def add(
        self, x: Tensor, operands: tuple[Tensor, ...], plus: Tensor, strength: float, write: bool
    ) -> Tensor:
        """plus + strength * B(A(x)) without gradients, as `up`."""
        first, second, *_ = operands
        return self.up(self.down(x, first), second, plus, strength, write)

    @abstractmethod
    def product(self) -> Tensor:
        """B A in float32, in the layout of the base's weight: a new tensor."""

    def delta(self) -> Tensor:
        return self.product().mul_(self.scaling * self.factor)

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


def _add_product(
    z: Tensor, second: Tensor, plus: Tensor | None, strength: float, write: bool
) -> Tensor:
    """`plus + strength * z @ second.T` in one operation; z [..., rank], second [outputs, rank]."""
    if plus is None:
        return F.linear(z, second) * strength
    if plus.dim() == 1:
        return torch.addmv(plus, second, z, alpha=strength)
    if plus.dim() == 3 and plus.shape[0] == 1:  # with fewer views: beside one token they cost most
        out = target(plus, z, second, write)
        return torch.baddbmm(plus, z, second.t().unsqueeze(0), alpha=strength, out=out)
    out = target(plus, z, second, write and plus.is_contiguous())
    flat = plus.flatten(0, -2)
    total = torch.addmm(
        flat, z.flatten(0, -2), second.t(), alpha=strength, out=None if out is None else flat
    )
    return total.view_as(plus) if out is None else plus


class LinearLoRA(LoRAEdge):
    """Beside a linear layer: A [rank, inputs], B [outputs, rank]."""

    row_bank = LinearRows
    lora_A: Tensor
    lora_B: Tensor

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.lora_A, self.lora_B

    def down(self, x: Tensor, first: Tensor) -> Tensor:
        return F.linear(x, first)

    def up(
        self, z: Tensor, second: Tensor, plus: Tensor | None, strength: float, write: bool = False
    ) -> Tensor:
        return _add_product(z, second, plus, strength, write)

    def operands(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        return first, second, first.t().unsqueeze(0), second.t().unsqueeze(0)

    def add(
        self, x: Tensor, operands: tuple[Tensor, ...], plus: Tensor, strength: float, write: bool
    ) -> Tensor:
        shape = plus.shape
        if len(shape) != 3 or shape[0] != 1:
            return super().add(x, operands, plus, strength, write)
        first, _, columns, rows = operands  # the last two for one sequence, a batch of one
        z = torch.bmm(x, columns) if x.is_cpu else F.linear(x, first)
        if write and plus.dtype == z.dtype == rows.dtype:  # autocast casts nothing in place
            return plus.baddbmm_(z, rows, alpha=strength)
        return torch.baddbmm(plus, z, rows, alpha=strength)

    def product(self) -> Tensor:
        return self.own("lora_B", self.lora_B).float() @ self.own("lora_A", self.lora_A).float()


class TransposedLoRA(LinearLoRA):
    """Beside GPT-2's linear layer, whose weight is [inputs, outputs]; A and B are as ever."""

    def product(self) -> Tensor:
        return super().product().T


class EmbeddingLoRA(LoRAEdge):
    """Beside an embedding: A [rank, tokens], B [width, rank]; x are token ids."""

    names = ("lora_embedding_A", "lora_embedding_B")
    row_bank = EmbeddingRows
    lora_embedding_A: Tensor
    lora_embedding_B: Tensor

    def reset_parameters(self) -> None:
        """As PEFT: A zero and B normal."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        nn.init.normal_(self.own("lora_embedding_B", self.lora_embedding_B))

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.lora_embedding_A, self.lora_embedding_B

    def down(self, x: Tensor, first: Tensor) -> Tensor:
        return F.embedding(x, first.t())

    def up(
        self, z: Tensor, second: Tensor, plus: Tensor | None, strength: float, write: bool = False
    ) -> Tensor:
        return _add_product(z, second, plus, strength, write)

    def product(self) -> Tensor:
        first, second = (self.own(name, self.get_parameter(name)) for name in self.names)
        return (second.float() @ first.float()).T


class ConvLoRA(LoRAEdge):
    """Beside a convolution: A [rank, inputs, *kernel], B [outputs, rank / groups, 1, ...].

    As in PEFT, A sees all input channels and B keeps the base's groups.
    """

    row_bank = ConvRows
    lora_A: Tensor
    lora_B: Tensor

    def __init__(self, site: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        layer = Layer.of(site, "")
        self.convolve, self.geometry, self.groups = layer.convolve, layer.geometry, layer.groups

    @property
    def plain(self) -> bool:
        # A grouped convolution's B has the ranks of each group apart, not side by side.
        return super().plain and self.groups == 1

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.lora_A, self.lora_B

    def down(self, x: Tensor, first: Tensor) -> Tensor:
        return self.convolve(x, first, **self.geometry)

    def up(
        self, z: Tensor, second: Tensor, plus: Tensor | None, strength: float, write: bool = False
    ) -> Tensor:
        term = self.convolve(z, second, groups=self.groups)
        if plus is None:
            return term * strength
        out = target(plus, term, second, write)
        return torch.add(plus, term, alpha=strength, out=out)

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
        second = self.own("lora_B", self.lora_B).float().flatten(1)
        return torch.einsum("or,ri...->oi...", second, self.own("lora_A", self.lora_A).float())
