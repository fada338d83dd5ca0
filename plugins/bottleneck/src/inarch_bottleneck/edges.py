"""Bottlenecks: `up(act(down(x)))`, added to what comes out of a site or beside it.

Source: Houlsby et al. 2019, section 2.1; the parallel form and its scaling: He et al. 2021, section
4. Layer norms, learned scalings and stochastic depth as the adapters library has them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.adapters import Edge
from inarch_bottleneck.settings import ACTIVATIONS, Shape

_EPS = 1e-5


class BottleneckEdge(Edge):
    """What bottlenecks have in common.

    Args:
        width: of the stream.
        narrow: of the bottleneck.
        shape: the rest.
    """

    rowwise = True

    norm_before_weight: Tensor
    norm_before_bias: Tensor
    norm_after_weight: Tensor
    norm_after_bias: Tensor

    def __init__(self, width: int, narrow: int, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.activation = ACTIVATIONS[shape.activation]
        self.down_weight = nn.Parameter(torch.empty(narrow, width))
        self.down_bias = nn.Parameter(torch.empty(narrow))
        self.up_weight = nn.Parameter(torch.empty(width, narrow))
        self.up_bias = nn.Parameter(torch.empty(width))
        if isinstance(shape.scaling, str):
            self.scaling = nn.Parameter(torch.empty(width if shape.scaling == "channel" else 1))
        else:
            self.scaling = float(shape.scaling)
        for name, there in (("before", shape.norm_before), ("after", shape.norm_after)):
            for part in ("weight", "bias"):
                parameter = nn.Parameter(torch.empty(width)) if there else None
                self.register_parameter(f"norm_{name}_{part}", parameter)

    def reset_parameters(self) -> None:
        """As He et al.: the second product is zero, so that nothing is added yet."""
        nn.init.kaiming_uniform_(self.down_weight, a=math.sqrt(5))
        for name, parameter in self.named_parameters():
            if name == "scaling" or (name.startswith("norm") and name.endswith("weight")):
                nn.init.ones_(parameter)
            elif name != "down_weight":
                nn.init.zeros_(parameter)

    def added(self, x: Tensor) -> Tensor:
        """What the bottleneck makes of `x`, [..., width], before any norm that follows."""
        shape = self.shape
        if shape.norm_before:
            x = F.layer_norm(x, x.shape[-1:], self.norm_before_weight, self.norm_before_bias, _EPS)
        hidden = self.activation(F.linear(x, self.down_weight, self.down_bias))
        up = F.linear(hidden, self.up_weight, self.up_bias)
        if shape.depth and self.training:
            up = up * F.dropout(up.new_ones(len(up), *(1 for _ in up.shape[1:])), shape.depth)
        if shape.scaling != 1.0:
            up = up * self.scaling
        return F.dropout(up, shape.dropout) if shape.dropout and self.training else up

    def normed(self, x: Tensor) -> Tensor:
        if not self.shape.norm_after:
            return x
        return F.layer_norm(x, x.shape[-1:], self.norm_after_weight, self.norm_after_bias, _EPS)

    def joined(self, x: Tensor, added: Tensor) -> Tensor:
        """`x + strength * added`."""
        if torch.compiler.is_compiling():  # reading `strength` would guard on its value
            return x + added * self.scale
        return torch.add(x, added, alpha=self.strength)


class SequentialBottleneck(BottleneckEdge):
    """After a site: what comes out of it, and what the bottleneck makes of that."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same."""
        added = self.added(x)
        if not (self.shape.norm_after and self.shape.norm_whole):
            return self.joined(x, self.normed(added))
        whole = self.normed(added + x)
        if torch.compiler.is_compiling():
            return torch.lerp(x, whole, self.scale.to(x.dtype))
        return torch.lerp(x, whole, self.strength)


class ParallelBottleneck(BottleneckEdge):
    """Beside a site: what the bottleneck makes of what goes into it."""

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """The term of `x`, [..., width], added to `plus` where it is given."""
        term = self.normed(self.added(x))
        if plus is not None:
            return self.joined(plus, term)
        return term * (self.scale if torch.compiler.is_compiling() else self.strength)
