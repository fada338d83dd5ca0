"""Attention and its masks. A mask is boolean, True where a query may look, or None for causal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def split_heads(x: Tensor, *, head_dim: int = 64) -> Tensor:
    """[batch, time, heads * head_dim] to [batch, heads, time, head_dim]."""
    return torch.unflatten(x, -1, (-1, head_dim)).transpose(1, 2)  # the method is in Python


def merge_heads(x: Tensor) -> Tensor:
    """[batch, heads, time, head_dim] to [batch, time, heads * head_dim]."""
    return x.transpose(1, 2).flatten(2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, window: int | None = None
) -> Tensor:
    """Scaled dot-product attention; several query heads may share one of key and value.

    What a mask doesn't tell of stands before the rest: keys that an adapter puts in front of the
    model's own are seen by every query, and queries it puts there see what is before them.

    Args:
        query: [batch, heads, time, head_dim].
        key, value: [batch, key_heads, keys, head_dim], where key_heads divides heads.
        mask: [batch or 1, 1, times, keys], True where a query may look, for the last queries and
            keys or all of them. None is causal, the last query being the last key.
        window: how many keys back a query sees, its own included, where the mask doesn't tell.
    """
    time, keys = query.shape[2], key.shape[2]
    if mask is not None and mask.shape[2:] != (time, keys):
        mask = _extended(mask, time, keys, window)
    elif mask is None and (1 < time != keys or (window is not None and keys > window)):
        mask = causal_mask(time, keys, window=window, device=query.device)
    causal = mask is None and time > 1
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )


def _extended(mask: Tensor, time: int, keys: int, window: int | None) -> Tensor:
    """A mask of the last queries and keys as one of `time` queries and `keys` keys.

    Of the keys before, a query sees as many as its window has left, so that padding between
    them and the text takes no place in it.
    """
    rows, columns = time - mask.shape[2], keys - mask.shape[3]
    before = mask.new_ones((*mask.shape[:3], columns))
    if window is not None:
        nearest = torch.arange(columns, 0, -1, device=mask.device)
        before = nearest <= window - mask.sum(-1, keepdim=True)
    own = torch.cat((before, mask), dim=3)
    if rows == 0:
        return own
    first = _causal(time, keys, window, mask.device)[:rows].expand(len(mask), 1, -1, -1)
    return torch.cat((first, own), dim=2)


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
    allowed = _causal(time, keys, window, device)
    if padding is None:
        return allowed[None, None]
    columns = torch.arange(keys, device=device)
    own = columns == columns[keys - time :, None]
    return (allowed & padding[:, None, :].bool() | own)[:, None]


def _causal(time: int, keys: int, window: int | None, device: torch.device | str) -> Tensor:
    """[time, keys]: which of the keys so far each of the last queries sees."""
    columns = torch.arange(keys, device=device)
    rows = columns[keys - time :, None]
    allowed = columns <= rows
    return allowed if window is None else allowed & (columns > rows - window)


def positions_of(padding: Tensor) -> Tensor:
    """The position of each token, [batch, time], where False in `padding` is none."""
    return (padding.long().cumsum(-1) - 1).clamp(min=0)
