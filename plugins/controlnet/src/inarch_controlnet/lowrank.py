"""Control-LoRA: layers whose weights are the base's plus a product of two thin matrices.

The sum is made once, when the adapter is put in, so a layer costs what the base's does.

Source: Stability AI's control-lora, `sd_xl_control_lora` files; the sum as ComfyUI makes it.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.errors import InarchError


class LowRankLayer(nn.Module):
    """A linear layer or convolution over the base's weight.

    Args:
        base: the base's layer, which is read and never changed.
        rank: of the product.
    """

    weight: Tensor

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        out, inputs, *kernel = base.weight.shape
        self.up = nn.Parameter(torch.empty(out, rank, *(1 for _ in kernel)))
        self.down = nn.Parameter(torch.empty(rank, inputs, *kernel))
        bias = nn.Parameter(torch.empty(out)) if base.bias is not None else None
        self.register_parameter("bias", bias)
        self.register_buffer("weight", None, persistent=False)
        self.base = _Reference(base)

    def settle(self, site: nn.Module | None, *, loaded: bool) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Make the sum anew, for factors that were changed."""
        with torch.no_grad():
            self.weight = self.total()

    def total(self) -> Tensor:
        """The weight: the base's plus the product, summed in float32 and rounded once."""
        weight = self.base.module.weight
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (weight.float() + product.reshape(weight.shape)).to(weight.dtype)

    def train(self, mode: bool = True) -> Self:
        if not mode and self.weight is not None and self.training:
            self.refresh()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.total() if self.up.requires_grad else self.weight
        if weight.dim() == 2:
            return F.linear(x, weight, self.bias)
        base = self.base.module
        return F.conv2d(x, weight, self.bias, base.stride, base.padding)


class _Reference:
    """A module of the base: pickled and copied as what it is, never a part of the adapter."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reference:
        return self


def low_rank(module: nn.Module, address: str, rank: int) -> LowRankLayer:
    """The layer over the base's `module`.

    Raises:
        InarchError: IA452 for a module that has no such weight.
    """
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        return LowRankLayer(module, rank)
    raise InarchError(
        "IA452",
        f"the file has factors for a {type(module).__name__}",
        where=address,
        why="a Control-LoRA changes linear layers and convolutions",
        remedy="pass the file of a Control-LoRA for this model",
    )
