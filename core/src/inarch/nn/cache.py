"""The key and value cache: an adapter like any other, so no model asks whether there is one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from inarch.tree import Edit

SLOTS = "slots"
"""The input that a tree with caches asks for: which places of the text its tokens have."""


class KeyValueCache(nn.Module):
    """Keeps a layer's keys and values in buffers of fixed shape, made when the first arrive.

    The first forward may bring more positions than tokens, as an adapter puts virtual ones before
    them: the buffers are longer by as many.

    Attributes:
        capacity: tokens that fit, read when a text begins.
    """

    def __init__(self) -> None:
        super().__init__()
        self.capacity = 0
        self.virtual = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        slots: range | Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The same query over the keys and values kept, [batch, heads, kept, head_dim].

        Args:
            query, key, value, mask: see `inarch.nn.attend`.
            slots: a range gives the keys so far, and begins a text where it begins at 0. A tensor
                [time] gives the whole buffers, whose shape never changes: what is not of the text
                yet is for the mask to hide.
        """
        if isinstance(slots, Tensor):
            return self._all(query, key, value, mask, slots)
        if slots.start == 0:
            self._begin(key, value, len(slots))
        keys, values = self.kept
        start = self.virtual + slots.start if slots.start else 0
        time = key.shape[2]
        keys.narrow(2, start, time).copy_(key)
        values.narrow(2, start, time).copy_(value)
        return query, keys.narrow(2, 0, start + time), values.narrow(2, 0, start + time), mask

    def _all(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, slots: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        keys, values = self.kept
        places = slots + self.virtual if self.virtual else slots
        keys.index_copy_(2, places, key)
        values.index_copy_(2, places, value)
        return query, keys, values, mask

    def _begin(self, key: Tensor, value: Tensor, given: int) -> None:
        """Empty buffers. They hold zeros, since what a mask hides must still be a number."""
        self.virtual = key.shape[2] - given
        shape = (*key.shape[:2], self.virtual + self.capacity, key.shape[3])
        self.keys = _emptied(self.keys, key, shape)
        self.values = _emptied(self.values, value, shape)

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """Keys and values, [batch, heads, virtual + capacity, head_dim]."""
        if self.keys is None or self.values is None:
            raise RuntimeError("a text begins with its first token")
        return self.keys, self.values

    def forget(self) -> None:
        """Give the buffers back."""
        self.keys = self.values = None


def _emptied(kept: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros: the same buffer where it will do, so that a recorded graph finds it again."""
    wanted = (shape, like.dtype, like.device)
    if kept is not None and (tuple(kept.shape), kept.dtype, kept.device) == wanted:
        return kept.zero_()
    return like.new_zeros(shape)


def cache_edits(addresses: Sequence[str], caches: Sequence[KeyValueCache]) -> list[Edit]:
    """A cache before each attention.

    Args:
        addresses: of the steps that take (query, key, value, mask).
        caches: one for each.
    """
    return [
        Edit.before(address, cache, "kv_cache", inputs=(SLOTS,))
        for address, cache in zip(addresses, caches, strict=True)
    ]
