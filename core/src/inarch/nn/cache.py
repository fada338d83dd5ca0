"""The key and value cache: an adapter like any other, so no model asks whether there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inarch.tree import Edit


@dataclass(slots=True)
class CacheClock:
    """How many positions the caches of one generation hold; all layers read the same clock."""

    start: int = 0


class KeyValueCache(nn.Module):
    """Keeps a layer's keys and values in buffers of fixed shape, made when the first arrive.

    Args:
        capacity: positions that fit.
        clock: where the next ones go.
    """

    def __init__(self, capacity: int, clock: CacheClock) -> None:
        super().__init__()
        self.capacity = capacity
        self.clock = clock
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The same query over all keys and values so far, [batch, heads, so far, head_dim]."""
        if self.keys is None or self.values is None:
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self.keys = torch.empty(shape, dtype=key.dtype, device=key.device)
            self.values = torch.empty(shape, dtype=value.dtype, device=value.device)
        start = self.clock.start
        end = start + key.shape[2]
        self.keys[:, :, start:end] = key
        self.values[:, :, start:end] = value
        return query, self.keys[:, :, :end], self.values[:, :, :end], mask

    def extra_repr(self) -> str:
        return f"capacity={self.capacity}"


def cache_edits(addresses: Sequence[str], capacity: int, clock: CacheClock) -> list[Edit]:
    """A cache before each attention.

    Args:
        addresses: of the steps that take (query, key, value, mask).
        capacity: positions that fit.
        clock: to be advanced by as many positions as each forward was given, after it.
    """
    return [Edit.before(a, KeyValueCache(capacity, clock), "kv_cache") for a in addresses]
