"""What all edges of this package share: the layer they stand beside, and how strongly they act."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.adapters import Edge
from inarch.adapters.placement import FIRST, Placement, Split, shard


class _Held:
    """Holds a module without registering it as a child."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module

    def __call__(self) -> nn.Module | None:
        return self.module

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.module is self.module

    def __hash__(self) -> int:
        return id(self.module)


def squares(value: Tensor) -> Tensor:
    """As precise as the sum of them that processes make together should be."""
    return value.to(torch.promote_types(value.dtype, torch.float32)).square()


class SiteEdge(Edge):
    """An edge that may read the base's own layer, which is never changed and never its child.

    Attributes:
        base: called, the layer; None before the edge is settled.
        factor: of the block it stands in, beside the user's scale.
        dropout: the share of inputs dropped in training.
        total: the sum over processes that share the layer, where the term depends on all of its
            weight and here is a part; see `Split.total`.
        biases: names of parameters for which a file holds the layer's whole bias.
    """

    rowwise = True
    total: Callable[[Tensor], Tensor] | None = None
    biases: tuple[str, ...] = ()
    from_file = ("dropout",)

    def __init__(self, *, factor: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.factor = factor
        self.dropout = dropout
        self.base = _Held(None)

    def settle(self, site: nn.Module | None, *, loaded: bool) -> None:
        self.__dict__["base"] = _Held(site)  # past nn.Module, which looks for tensors in it
        for name in self.biases if loaded and site is not None else ():
            bias = getattr(self, name)
            if bias is not None:
                with torch.no_grad():
                    bias -= site.get_parameter("bias")

    def placed(self, split: Split, site: nn.Module | None) -> None:
        self.base = _Held(site)
        self.total = split.total if self.crosses(split) else None

    def crosses(self, split: Split) -> bool:
        """Whether what it adds beside a part of the layer depends on the other parts."""
        return False

    def base_weight(self) -> Tensor:
        """The base's weight, which the edge reads."""
        site = self.base()
        if site is None:
            raise RuntimeError("the edge was not settled beside a layer")
        return site.get_parameter("weight").detach()

    def acting(self) -> float | Tensor:
        """The user's scale times the block's; under compilation the first is a tensor.

        Reading `strength` there would guard on its value, and compile again for another.
        """
        return (self.scale if torch.compiler.is_compiling() else self.strength) * self.factor

    def along_site(self, split: Split, *names: str) -> dict[str, Placement]:
        """How numbers for each output lie: cut with the outputs, or once in a sum."""
        rule = shard(0) if split.kind == "columns" else FIRST
        return {name: rule for name in names if self._parameters.get(name) is not None}

    def dropped(self, x: Tensor) -> Tensor:
        """The inputs as dropout leaves them in training; token ids stay, as in PEFT."""
        if self.training and self.dropout and x.is_floating_point():
            return F.dropout(x, self.dropout)
        return x
