"""Attention and its masks. A mask is boolean, True where a query may look, or None for causal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def split_heads(x: Tensor, *, head_dim: int = 64) -> Tensor:
    """[batch, time, heads * head_dim] to [batch, heads, time, head_dim]."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[batch, heads, time, head_dim] to [batch, time, heads * head_dim]."""
    return x.transpose(1, 2).flatten(2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention; several query heads may share one of key and value.

    Args:
        query: [batch, heads, time, head_dim].
        key, value: [batch, key_heads, keys, head_dim], where key_heads divides heads.
        mask: [batch or 1, 1, time, keys], True where a query may look. None is causal for as
            many keys as queries, and open for a single query.
    """
    causal = mask is None and query.shape[2] > 1
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )


def causal_mask(
    time: int,
    keys: int,
    *,
    padding: Tensor | None = None,
    window: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor | None:
    """Who may look where, for the last `time` of `keys` positions.

    Args:
        time: queries.
        keys: of which the last `time` are the queries' own.
        padding: [batch, keys], False where there is nothing.
        window: how many keys back a query sees, its own included.
        device: of the mask.

    Returns:
        [batch or 1, 1, time, keys], or None where `attend` needs none. A query that may look
        nowhere, as padding itself, looks at its own key, since an empty softmax is no number.
    """
    narrow = window is not None and keys > window
    if padding is None and not narrow and (time == 1 or time == keys):
        return None
    columns = torch.arange(keys, device=device)
    rows = columns[keys - time :, None]
    allowed = columns <= rows
    if narrow and window is not None:
        allowed &= columns > rows - window
    if padding is None:
        return allowed[None, None]
    allowed = allowed & padding[:, None, :].bool()
    return (allowed | (columns == rows))[:, None]


def positions_of(padding: Tensor) -> Tensor:
    """The position of each token, [batch, time], where False in `padding` is none."""
    return (padding.long().cumsum(-1) - 1).clamp(min=0)
