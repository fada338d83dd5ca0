"""LoRA's terms, one class for each kind of layer: `scale * alpha / rank * B(A(x))`.

Shapes and names are PEFT's, so that files map one to one. Each takes the sum so far as `plus` and
folds the addition and the scale into the second product: two operations for a layer.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.adapters import Edge
from inarch.errors import InarchError


class LoRAEdge(Edge):
    """What the terms share: rank, scaling, dropout, and PEFT's two kinds of bias.

    Args:
        first: the shape of A.
        second: the shape of B.
        scaling: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
        dropout: the share of inputs dropped in training.
        outputs: the size of the two biases; 0 for neither.
        lora_bias: whether B has a bias, which scales as the term does.
        bias: whether the layer's own bias is adapted, as a difference from it.
    """

    names = ("lora_A", "lora_B")

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
    ) -> None:
        super().__init__()
        self.scaling = scaling
        self.dropout = dropout
        self.base: Callable[[], nn.Module | None] = _nothing
        a, b = self.names
        self.register_parameter(a, nn.Parameter(torch.empty(first)))
        self.register_parameter(b, nn.Parameter(torch.empty(second)))
        own = nn.Parameter(torch.empty(outputs)) if lora_bias else None
        self.register_parameter("lora_B_bias", own)
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs)) if bias else None)

    @property
    def rank(self) -> int:
        return self.get_parameter(self.names[0]).shape[0]

    def reset_parameters(self) -> None:
        """A as PEFT draws it, everything else zero: the term adds nothing yet."""
        nn.init.kaiming_uniform_(self.get_parameter(self.names[0]), a=math.sqrt(5))
        for name, parameter in self.named_parameters():
            if name != self.names[0]:
                nn.init.zeros_(parameter)

    def settle(self, site: nn.Module | None, *, loaded: bool) -> None:
        self.base = _Held(site)
        if loaded:
            _as_difference(self.bias, site)

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """The term of `x`, [..., inputs], added to `plus`, [..., outputs], where it is given."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        z = self.down(x)
        if torch.compiler.is_compiling():  # reading `strength` would guard on its value
            term = self.up(z * self.scale, plus, self.scaling)
        else:
            term = self.up(z, plus, self.scaling * self.strength)
        if self.lora_B_bias is None and self.bias is None:
            return term
        return self._biased(term)

    def _biased(self, term: Tensor) -> Tensor:
        strength = self.scale if torch.compiler.is_compiling() else self.strength
        if self.lora_B_bias is not None:
            term = term + self.along_outputs(self.lora_B_bias) * (strength * self.scaling)
        return term if self.bias is None else term + self.along_outputs(self.bias) * strength

    def along_outputs(self, bias: Tensor) -> Tensor:
        return bias

    @abstractmethod
    def down(self, x: Tensor) -> Tensor:
        """A(x)."""

    @abstractmethod
    def up(self, z: Tensor, plus: Tensor | None, strength: float) -> Tensor:
        """plus + strength * B(z)."""

    @abstractmethod
    def product(self) -> Tensor:
        """B A in float32, in the layout of the base's weight."""

    def delta(self) -> Tensor:
        if self.lora_B_bias is not None or self.bias is not None:
            raise InarchError(
                "IA409",
                "a LoRA that adapts biases can't be merged",
                why="merging makes a new weight and leaves the bias as it is",
                remedy="run it unmerged",
            )
        return self.product() * self.scaling


def _nothing() -> None:
    return None


class _Held:
    """Holds a module without registering it as a child."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module

    def __call__(self) -> nn.Module | None:
        return self.module


def _as_difference(bias: Tensor | None, site: nn.Module | None) -> None:
    """A file has the whole bias; what is added is its difference from the base's."""
    if bias is not None and site is not None:
        with torch.no_grad():
            bias -= site.get_parameter("bias")


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

    def down(self, x: Tensor) -> Tensor:
        return F.linear(x, self.lora_A)

    def up(self, z: Tensor, plus: Tensor | None, strength: float) -> Tensor:
        return _add_product(z, self.lora_B, plus, strength)

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

    def down(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.lora_embedding_A.t())

    def up(self, z: Tensor, plus: Tensor | None, strength: float) -> Tensor:
        return _add_product(z, self.lora_embedding_B, plus, strength)

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
        self.convolve = _CONVOLUTIONS[type(site)]
        self.geometry = {name: getattr(site, name) for name in ("stride", "padding", "dilation")}
        self.groups = int(getattr(site, "groups", 1))

    def down(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.lora_A, **self.geometry)

    def up(self, z: Tensor, plus: Tensor | None, strength: float) -> Tensor:
        term = self.convolve(z, self.lora_B, groups=self.groups)
        return term * strength if plus is None else torch.add(plus, term, alpha=strength)

    def along_outputs(self, bias: Tensor) -> Tensor:
        return bias.view(-1, *(1 for _ in self.lora_B.shape[2:]))

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


class BiasEdge(Edge):
    """A bias that differs from the base's, beside a layer that has no other term (`bias="all"`)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(outputs))
        self.base: Callable[[], nn.Module | None] = _nothing
        self.trailing = 0

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def settle(self, site: nn.Module | None, *, loaded: bool) -> None:
        self.base = _Held(site)
        if loaded:
            _as_difference(self.bias, site)
        self.trailing = 0 if site is None else len(getattr(site, "kernel_size", ()))

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        strength = self.scale if torch.compiler.is_compiling() else self.strength
        term = self.bias.view(-1, *(1 for _ in range(self.trailing))) * strength
        return term if plus is None else plus + term


_CONVOLUTIONS: dict[type, Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}


def edge_for(site: nn.Module, address: str, rank: int, scaling: float, **options: Any) -> LoRAEdge:
    """The term for a layer.

    Raises:
        InarchError: IA421 for a layer LoRA has no term for, IA422 for a rank its groups don't
            divide.
    """
    from inarch.nn.linear import TransposedLinear

    if isinstance(site, nn.Linear):
        shapes = (rank, site.in_features), (site.out_features, rank)
        return LinearLoRA(*shapes, scaling, outputs=site.out_features, **options)
    if isinstance(site, TransposedLinear):
        inputs, outputs = site.weight.shape
        return TransposedLoRA((rank, inputs), (outputs, rank), scaling, outputs=outputs, **options)
    if isinstance(site, nn.Embedding):
        shapes = (rank, site.num_embeddings), (site.embedding_dim, rank)
        return EmbeddingLoRA(*shapes, scaling, outputs=site.embedding_dim, **options)
    if type(site) in _CONVOLUTIONS:
        return _conv_edge(site, address, rank, scaling, **options)
    raise InarchError(
        "IA421",
        f"LoRA has no term for a {type(site).__name__}",
        where=address,
        why="it adapts linear layers, GPT-2's transposed ones, embeddings and convolutions",
        remedy='name other targets, such as targets=["attention.*"]',
    )


def _conv_edge(site: Any, address: str, rank: int, scaling: float, **options: Any) -> ConvLoRA:
    if rank % site.groups:
        raise InarchError(
            "IA422",
            f"the rank {rank} is not divided by the {site.groups} groups of the convolution",
            where=address,
            remedy=f"rank={site.groups * max(1, rank // site.groups)}",
        )
    ones = (1,) * len(site.kernel_size)
    first = (rank, site.in_channels, *site.kernel_size)
    second = (site.out_channels, rank // site.groups, *ones)
    return ConvLoRA(site, first, second, scaling, outputs=site.out_channels, **options)
