"""What a picture in the making takes of a reference: attention to it, and its statistics."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.adapters import Edge
from inarch.adapters.placement import Placement, Split

_LEAST_VARIANCE = 1e-6


class ReferenceEdge(Edge):
    """What a reference changes, taken whole by the rows for a prompt.

    Args:
        unprompted: how much of it the rows for no prompt take, which come first.
    """

    def __init__(self, unprompted: float) -> None:
        super().__init__()
        self.unprompted = unprompted
        self.part, self.parts = 0, 1

    def reset_parameters(self) -> None:
        """It has none."""

    def placements(self, split: Split) -> Mapping[str, Placement]:
        """What a process saw of the reference is its heads' part, as what it asks is."""
        return {} if split.kind == "inside" else super().placements(split)

    def placed(self, split: Split, site: nn.Module | None) -> None:
        self.part, self.parts = split.part, split.parts

    def share(self, x: Tensor, prompted: tuple[int, int]) -> Tensor:
        """How much of the change each row of `x` takes, [batch, 1, 1, 1]."""
        wanted, rows = prompted
        share = x.new_ones(rows, 1, 1, 1)
        share[: rows - wanted] = self.unprompted
        if torch.compiler.is_compiling():  # reading `strength` would guard on its value
            return (share * self.scale).to(x.dtype)
        return share * self.strength


class ReferenceAttention(ReferenceEdge):
    """The change that a layer's attention undergoes when it looks at the reference's tokens too."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        seen: Tensor,
        prompted: tuple[int, int],
    ) -> Tensor:
        """The term of one layer, [batch, heads, tokens, head_dim].

        Args:
            query, key, value: [batch, heads, tokens, head_dim].
            mask: [.., tokens, keys], True where a query may look, or None for everywhere.
            seen: [batch, 2, seen tokens, heads * head_dim], the reference's keys and values.
            prompted: how many rows are for a prompt, the last ones, and how many there are.
        """
        alone = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        if mask is not None:
            mask = F.pad(mask, (0, seen.shape[2]), value=True)
        if seen.shape[-1] != key.shape[1] * key.shape[3]:  # of all heads
            seen = seen.chunk(self.parts, -1)[self.part]
        seen_key, seen_value = seen.unflatten(-1, (key.shape[1], -1)).transpose(2, 3).unbind(1)
        keys = torch.cat([key, seen_key], dim=2)
        values = torch.cat([value, seen_value], dim=2)
        beside = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return (beside - alone) * self.share(query, prompted)


class ReferenceStatistics(ReferenceEdge):
    """Every channel with the mean and the deviation it has in the reference."""

    def forward(self, x: Tensor, style: Tensor, prompted: tuple[int, int]) -> Tensor:
        """What flows on, [batch, channels, height, width].

        Args:
            x: of the same shape.
            style: [batch, 2, channels, 1, 1], the reference's mean and deviation.
            prompted: how many rows are for a prompt, the last ones, and how many there are.
        """
        (own_mean, own_deviation), (mean, deviation) = style_of(x).unbind(1), style.unbind(1)
        restyled = (x - own_mean) / own_deviation * deviation + mean
        return torch.lerp(x, restyled, self.share(x, prompted))


def style_of(x: Tensor) -> Tensor:
    """Mean and deviation over the pixels of [batch, channels, height, width].

    Returns:
        [batch, 2, channels, 1, 1].
    """
    variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
    return torch.stack([mean, variance.clamp_min(_LEAST_VARIANCE).sqrt()], dim=1)
