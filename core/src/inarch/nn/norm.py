"""Normalisations that several foundation models share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Torch's, with less Python around its operation: of few numbers it is the longer part."""

    def forward(self, input: Tensor) -> Tensor:
        own = self._parameters
        try:
            weight, bias = own["weight"], own["bias"]
        except KeyError:  # pruned or parametrised, it is computed from others
            return super().forward(input)
        return torch.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class GroupNorm(nn.GroupNorm):
    """Torch's, with less Python around its operation: of few numbers it is the longer part."""

    def forward(self, input: Tensor) -> Tensor:
        own = self._parameters
        try:
            weight, bias = own["weight"], own["bias"]
        except KeyError:  # as above
            return super().forward(input)
        return torch.group_norm(input, self.num_groups, weight, bias, self.eps)


class RMSNorm(nn.Module):
    """Root mean square normalisation, in float32, then scaled in the input's dtype.

    Rounded where Llama rounds, so that half precision gives the very same bits.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight = self._parameters.get("weight")
        if weight is None:  # as above
            weight = self.weight
        if x.dtype == weight.dtype == torch.float32:  # where nothing is rounded in between
            return torch.rms_norm(x, weight.shape, weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return weight * wide.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"
