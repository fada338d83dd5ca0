"""The two collectives of tensor parallelism, as modules that stand in a tree's source.

Beside them that of adapters whose terms depend on all parts of a layer.

Source: Shoeybi et al. 2019, "Megatron-LM", arXiv:1909.08053, section 3: `f` and `g`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


class _Shared(torch.autograd.Function):
    """The value as it is; the gradient is the sum of what the processes make of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _summed(gradients[0], ctx.group), None


class _Summed(torch.autograd.Function):
    """The sum of what the processes have; the gradient as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Totalled(torch.autograd.Function):
    """The sum of what the processes have, of which each makes its own part of the loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _summed(gradients[0], ctx.group), None


def shared(x: Tensor, *, group: dist.ProcessGroup) -> Tensor:
    """A whole value for this process's part of a layer, for `Split.shared`."""
    return _Shared.apply(x, group)


def total(x: Tensor, *, group: dist.ProcessGroup) -> Tensor:
    """The sum over the processes that share a layer, for `Split.total`."""
    return _Totalled.apply(x, group)


def _summed(x: Tensor, group: Any) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class _Collective(nn.Module):
    """A step that the processes take together.

    Args:
        group: the processes that share the layers.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group


class ToParts(_Collective):
    """Before layers that are split by columns: every process has the same value."""

    def forward(self, x: Tensor) -> Tensor:
        return _Shared.apply(x, self.group)


class FromParts(_Collective):
    """After layers that are split by rows: the parts of a sum, added up."""

    def forward(self, x: Tensor) -> Tensor:
        return _Summed.apply(x, self.group)
