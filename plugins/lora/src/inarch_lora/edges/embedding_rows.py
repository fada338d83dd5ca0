"""LoRAs of an embedding on different rows: each row looks up columns of its own A."""

from __future__ import annotations

import torch
from torch import Tensor

from inarch_lora.edges.rows import RowBank


class EmbeddingRows(RowBank):
    """`x` are token ids [batch, ...], and a slot's A is [rank, tokens].

    An id is looked up in its own slot: one beyond the tokens is an error there as it is alone.
    """

    __slots__ = ()

    def add(self, x: Tensor, plus: Tensor, matrices: tuple[Tensor, Tensor], write: bool) -> Tensor:
        first, second = matrices
        slots, rank = first.shape[:2]
        total = self.placed(plus)
        ids = self.placed(x).reshape(slots, 1, -1).long()
        z = first.gather(2, ids.expand(-1, rank, -1))  # [slots, rank, ids]
        flat = total.reshape(slots, -1, plus.shape[-1])
        out = self.target(flat, z, second, write)
        flat = torch.baddbmm(flat, z.transpose(1, 2), second, alpha=self.strength, out=out)
        return self.put(plus, flat.view(total.shape), write)
