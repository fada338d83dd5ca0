"""LoRAs of a convolution on different rows: one grouped convolution, and one batched product.

A's convolution has a group for each slot: the rows that stand in one place of every slot are the
channels of one image. Where channels lie last in memory that image would have to be laid out anew,
which takes longer than what it saves, so each slot's A runs on its own rows there. B is one pixel
wide, as may A be, and is multiplied; what was there is added in the same operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from inarch_lora.edges.rows import RowBank


class ConvRows(RowBank):
    """`x` is [batch, inputs, *size], and a slot's A [rank, inputs, *kernel]."""

    __slots__ = ()

    @staticmethod
    def ordered(slots: Sequence[Sequence[int]]) -> list[int]:
        """The first place of every slot, then the second of every slot."""
        return [row for rows in zip(*slots, strict=True) for row in rows]

    def add(self, x: Tensor, plus: Tensor, matrices: tuple[Tensor, Tensor], write: bool) -> Tensor:
        if plus.is_contiguous():
            total = self._channels_first(self.placed(x), self.placed(plus), matrices, write)
            return self.put(plus, total, write)
        x, plus = x.movedim(1, -1), plus.movedim(1, -1)
        total = self._channels_last(self.placed(x), self.placed(plus), matrices, write)
        return self.put(plus, total, write).movedim(-1, 1)

    def _channels_first(
        self, x: Tensor, total: Tensor, matrices: tuple[Tensor, Tensor], write: bool
    ) -> Tensor:
        """[places, channels, *size], all three of them."""
        first, second = matrices
        slots, places = len(first), len(x)
        if self._of_one_pixel(first):
            z = torch.bmm(_each(first.flatten(2), places), x.flatten(2))  # [places, rank, pixels]
        else:
            side_by_side = x.reshape(-1, slots * x.shape[1], *x.shape[2:])
            z = self.form.convolve(
                side_by_side, first.flatten(0, 1), groups=slots, **self.form.geometry
            ).reshape(places, first.shape[1], -1)
        b = _each(second, places).transpose(1, 2)
        flat = total.flatten(2)
        out = self.target(flat, z, second, write)
        return torch.baddbmm(flat, b, z, alpha=self.strength, out=out).view(total.shape)

    def _channels_last(
        self, x: Tensor, total: Tensor, matrices: tuple[Tensor, Tensor], write: bool
    ) -> Tensor:
        """[places, *size, channels], all three of them."""
        first, second = matrices
        slots, places = len(first), len(x)
        if self._of_one_pixel(first):
            a = _each(first.flatten(2), places).transpose(1, 2)
            z = torch.bmm(x.flatten(1, -2), a)  # [places, pixels, rank]
        else:
            images = x.movedim(-1, 1)
            own = [
                self.form.convolve(images[slot::slots], a, **self.form.geometry)
                for slot, a in enumerate(first)
            ]
            z = torch.stack(own, 1).flatten(0, 1).flatten(2).transpose(1, 2)
        b = _each(second, places)
        flat = total.flatten(1, -2)
        out = self.target(flat, z, second, write)
        return torch.baddbmm(flat, z, b, alpha=self.strength, out=out).view(total.shape)

    def _of_one_pixel(self, first: Tensor) -> bool:
        """Whether A sees each pixel alone, and every one."""
        stride, padding = (self.form.geometry[name] for name in ("stride", "padding"))
        whole = isinstance(padding, str) or set(padding) == {0}
        return math.prod(first.shape[3:]) == 1 and set(stride) == {1} and whole


def _each(matrices: Tensor, places: int) -> Tensor:
    """The matrices of each place: a slot's, as often as it has places."""
    slots = len(matrices)
    return matrices.expand(places // slots, *matrices.shape).flatten(0, 1)
