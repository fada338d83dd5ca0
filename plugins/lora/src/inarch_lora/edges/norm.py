"""Beside a normalisation: another weight and bias for the same normalised value."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.nn import RMSNorm
from inarch_lora.edges.site import SiteEdge

NORMS = (nn.LayerNorm, nn.GroupNorm, RMSNorm)


class NormEdge(SiteEdge):
    """Changes of a normalisation's weight and bias, `w_norm` and `b_norm`, as LyCORIS has them."""

    w_norm: Tensor | None
    b_norm: Tensor | None

    def __init__(self, site: nn.Module, names: Collection[str], *, factor: float = 1.0) -> None:
        super().__init__(factor=factor)
        self.groups = site.num_groups if isinstance(site, nn.GroupNorm) else 0
        self.layered = isinstance(site, nn.LayerNorm)
        self.eps = float(getattr(site, "eps", 0.0))
        for name in ("w_norm", "b_norm"):
            shape = site.get_parameter("weight").shape
            value = nn.Parameter(torch.empty(shape)) if name in names else None
            self.register_parameter(name, value)

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        weight = self.base_weight() * 0 if self.w_norm is None else self.w_norm
        if self.groups:
            term = F.group_norm(x, self.groups, weight, self.b_norm, self.eps)
        elif self.layered:
            term = F.layer_norm(x, weight.shape, weight, self.b_norm, self.eps)
        else:
            term = F.rms_norm(x, weight.shape, weight, self.eps)
            term = term if self.b_norm is None else term + self.b_norm
        term = term * self.acting()
        return term if plus is None else plus + term

    def deltas(self) -> dict[str, Tensor]:
        acting = self.strength * self.factor
        pairs = (("weight", self.w_norm), ("bias", self.b_norm))
        return {name: value.float() * acting for name, value in pairs if value is not None}
