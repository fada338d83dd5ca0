"""What IP-Adapter adds to an attention: the same queries over a picture's keys and values.

Source: Ye et al. 2023, arXiv:2308.06721, equation 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.adapters import Edge
from inarch.adapters.placement import SUMMED, Placement, Split, Unplaceable, shard


class ZeroLinear(nn.Linear):
    """A linear layer that begins as zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class PictureAttention(Edge):
    """Attention from a layer's queries to the tokens of pictures.

    Args:
        context: the width of a token.
        width: of the layer's keys and values, all heads together.
        factor: of the adapter's scale, at this layer.
    """

    def __init__(self, context: int, width: int, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.to_k_ip = nn.Linear(context, width, bias=False)
        self.to_v_ip = ZeroLinear(context, width, bias=False)

    def reset_parameters(self) -> None:
        """Its layers begin by themselves."""

    shared: Callable[[Tensor], Tensor] | None = None
    """Brings the tokens to this process's heads, where others have other ones."""

    def placements(self, split: Split) -> Mapping[str, Placement]:
        """Cut by heads, as the queries are."""
        if split.kind != "inside":
            return super().placements(split)
        return {"to_k_ip.weight": shard(0), "to_v_ip.weight": shard(0)}

    def placed(self, split: Split, site: nn.Module | None) -> None:
        self.shared = split.shared

    def attended(self, query: Tensor, tokens: Tensor) -> Tensor:
        """[batch, heads, queries, head_dim] and [rows, tokens, context] to the queries' shape.

        There may be fewer rows of tokens than of queries: one that serves all, or one for each
        picture whose windows are rows of the batch, one after another.
        """
        heads = query.shape[1]
        tokens = tokens if self.shared is None else self.shared(tokens)
        key, value = (
            _for_each(projected.unflatten(-1, (heads, -1)).transpose(1, 2), len(query))
            for projected in (self.to_k_ip(tokens), self.to_v_ip(tokens))
        )
        return F.scaled_dot_product_attention(query, key, value)

    def scaled(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # reading `strength` would guard on its value
            return x * (self.scale * self.factor)
        return x * (self.strength * self.factor)

    def forward(self, query: Tensor, *others: Tensor) -> Tensor:
        """The term of one layer.

        Args:
            query: [batch, heads, queries, head_dim].
            others: what else the layer attends with, and last the tokens [batch or 1, pictures,
                tokens, context], all of which are attended to at once.
        """
        return self.scaled(self.attended(query, others[-1].flatten(1, 2)))


class MaskedPictureAttention(PictureAttention):
    """The same, where each picture acts in an area of its own."""

    def forward(self, query: Tensor, *others: Tensor) -> Tensor:
        """The term of one layer, with the areas [1, pictures, height, width] after the tokens."""
        tokens, areas = others[-2:]
        weights = over_queries(areas, query.shape[2]).to(query.dtype)
        total = torch.zeros_like(query)
        for i in range(tokens.shape[1]):
            total = total + self.attended(query, tokens[:, i]) * weights[i]
        return self.scaled(total)


def _for_each(x: Tensor, rows: int) -> Tensor:
    if len(x) in (1, rows):
        return x.expand(rows, -1, -1, -1)
    return x.repeat_interleave(rows // len(x), dim=0)


def over_queries(areas: Tensor, queries: int) -> Tensor:
    """Areas [1, pictures, height, width] in the size of a layer's grid, [pictures, queries, 1].

    The grid has the areas' proportions. Source: diffusers' `IPAdapterMaskProcessor`.
    """
    height, width = areas.shape[-2:]
    rows = int(math.sqrt(queries * height / width))
    rows += int(queries % rows != 0)
    columns = queries // rows
    small = F.interpolate(areas.float(), size=(rows, columns), mode="bicubic")[0].flatten(1)
    missing = queries - small.shape[1]
    small = F.pad(small, (0, missing)) if missing > 0 else small[:, :queries]
    return small[..., None]


class LowRank(nn.Module):
    """The LoRA that FaceID's files hold for every attention: `up(down(x))`, at full strength."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)

    def placements(self, split: Split) -> Mapping[str, Placement]:
        """Cut with the layer's outputs, or with its inputs where a sum is added up after it."""
        if split.kind == "inside":
            raise Unplaceable("it stands beside a layer")
        if split.kind == "whole":
            return {}
        if split.kind == "columns":
            return {"down.weight": SUMMED, "up.weight": shard(0)}
        return {"down.weight": shard(1), "up.weight": SUMMED}

    def placed(self, split: Split, site: nn.Module | None) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))
