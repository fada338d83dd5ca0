"""The key and value cache: an adapter like any other, so no model asks whether there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inarch.tree import Edit


@dataclass(slots=True)
class CacheClock:
    """How many tokens the caches of one generation hold; all layers read the same clock.

    Attributes:
        start: tokens of earlier forwards.
        given: tokens of this one; None for as many as positions arrive.
    """

    start: int = 0
    given: int | None = None


class KeyValueCache(nn.Module):
    """Keeps a layer's keys and values in buffers of fixed shape, made when the first arrive.

    The first forward may bring more positions than tokens, as an adapter puts virtual ones before
    them: the buffers are longer by as many.

    Args:
        capacity: tokens that fit.
        clock: where the next ones go.
    """

    def __init__(self, capacity: int, clock: CacheClock) -> None:
        super().__init__()
        self.capacity = capacity
        self.clock = clock
        self.virtual = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The same query over all keys and values so far, [batch, heads, so far, head_dim]."""
        if self.keys is None or self.values is None:
            given = self.clock.given
            self.virtual = 0 if given is None else key.shape[2] - given
            shape = (*key.shape[:2], self.virtual + self.capacity, key.shape[3])
            self.keys = torch.empty(shape, dtype=key.dtype, device=key.device)
            self.values = torch.empty(shape, dtype=value.dtype, device=value.device)
        start = self.virtual + self.clock.start if self.clock.start else 0
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
        capacity: tokens that fit.
        clock: to be advanced by as many tokens as each forward was given, after it.
    """
    return [Edit.before(a, KeyValueCache(capacity, clock), "kv_cache") for a in addresses]
