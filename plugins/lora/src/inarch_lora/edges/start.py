"""LoRA that was trained from a product which training took out of the base's weight.

PiSSA and OLoRA begin with A0 and B0 made from the weight W, and train A and B beside W - s B0 A0.
Here no base is changed: A0 and B0 are made again from the pristine weight, as PEFT makes them, and
the term is the difference `s * (B A - B0 A0)`. Any number of such adapters stand side by side.

Source: Meng et al. 2024, "PiSSA", arXiv:2404.02948, section 3; Buyukakyuz 2024, "OLoRA",
arXiv:2406.01775, section 3; PEFT's `pissa_init` and `olora_init`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inarch.adapters.placement import Placement, Split
from inarch_lora.edges.layer import Layer
from inarch_lora.edges.lora import LinearLoRA, LoRAEdge, TransposedLoRA
from inarch_lora.terms import Start


class StartedEdge(LoRAEdge):
    """A term less the one it started from.

    Args:
        layer: the form of the layer it stands beside.
        start: how A0 and B0 are made.
        args: LoRA's own.
    """

    start_A: Tensor
    start_B: Tensor

    def __init__(self, layer: Layer, start: Start, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.layer = layer
        self.start = start
        for own, name in zip(("start_A", "start_B"), self.names, strict=True):
            shape = self.get_parameter(name).shape
            self.register_buffer(own, torch.empty(shape), persistent=False)

    def placements(self, split: Split) -> Mapping[str, Placement]:
        rules = super().placements(split)
        own = zip(("start_A", "start_B"), self.names, strict=True)
        return {**rules, **{start: rules[name] for start, name in own}} if rules else rules

    def settle(self, site: nn.Module | None, *, loaded: bool) -> None:
        super().settle(site, loaded=loaded)
        first, second = self.get_parameter("lora_A"), self.get_parameter("lora_B")
        with torch.no_grad():
            rows = self.layer.rows(self.base_weight()).float()
            made = _MADE[self.start](rows, self.rank, self.scaling)
            self.start_A, self.start_B = (m.to(first.dtype).contiguous() for m in made)
            if not loaded:
                first.copy_(self.start_A)
                second.copy_(self.start_B)

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        first, second = self.pair()
        low = self.up(self.down(self.dropped(x), first), second, None, 1.0)
        # FSDP2 casts parameters to what it computes in, and no buffers.
        begun, ended = (s.to(first.dtype) for s in (self.start_A, self.start_B))
        start = nn.functional.linear(nn.functional.linear(x, begun), ended)
        # The difference comes first, so that what is untrained adds exactly nothing.
        term = (low - start) * self.whole_scale()
        if self.lora_B_bias is not None or self.bias is not None:
            term = self._biased(term)
        return term if plus is None else plus + term

    def delta(self) -> Tensor:
        start = self.layer.laid_out(self.start_B.float() @ self.start_A.float())
        return (self.product() - start) * (self.scaling * self.factor)


def _pissa(rows: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """The principal singular values and vectors."""
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    root = torch.diag(torch.sqrt(values[:rank] / scaling))
    return root @ right[:rank], left[:, :rank] @ root


def _olora(rows: Tensor, rank: int, _scaling: float) -> tuple[Tensor, Tensor]:
    """The first orthonormal columns and the rows that belong to them."""
    left, right = torch.linalg.qr(rows)
    return right[:rank], left[:, :rank]


_MADE = {"pissa": _pissa, "olora": _olora}


class StartedLinear(StartedEdge, LinearLoRA):
    """Beside a linear layer."""


class StartedTransposed(StartedEdge, TransposedLoRA):
    """Beside GPT-2's linear layer, whose weight is factored as [outputs, inputs]."""
