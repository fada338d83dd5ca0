"""Windows of latents: taken out as rows of a batch, and put together as a mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Windows:
    """How latents are covered.

    Attributes:
        size: height and width of a window.
        stride: from one to the next; the last one ends where the latents do.
        circular: whether windows go on at the left where they end at the right.
    """

    size: int
    stride: int
    circular: bool = False

    def places(
        self, height: int, width: int, device: torch.device | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """The rows and the columns of each window, from the top left, columns on a device."""
        tall, wide = min(self.size, height), min(self.size, width)
        around = self.circular and width > self.size
        lefts = range(0, width, self.stride) if around else self._starts(width)
        for top in self._starts(height):
            for left in lefts:
                columns = (torch.arange(wide, device=device) + left) % width
                yield slice(top, top + tall), columns

    def count(self, height: int, width: int) -> int:
        around = self.circular and width > self.size
        lefts = len(range(0, width, self.stride)) if around else len(self._starts(width))
        return len(self._starts(height)) * lefts

    def _starts(self, length: int) -> list[int]:
        if length <= self.size:
            return [0]
        last = length - self.size
        return sorted({*range(0, last, self.stride), last})


def size_of(x: Tensor) -> tuple[int, int]:
    """Height and width of [batch, channels, height, width]."""
    return x.shape[2], x.shape[3]


def parted(x: Tensor, *, windows: Windows = Windows(64, 16)) -> Tensor:
    """[batch, channels, height, width] as windows, [batch * count, channels, size, size]."""
    places = windows.places(*size_of(x), x.device)
    views = [x[:, :, rows][..., columns] for rows, columns in places]
    return torch.stack(views, dim=1).flatten(0, 1)


def joined(x: Tensor, height: int, width: int, *, windows: Windows = Windows(64, 16)) -> Tensor:
    """The mean of windows where they overlap: [batch, channels, height, width]."""
    views = x.unflatten(0, (-1, windows.count(height, width)))
    total = x.new_zeros((len(views), x.shape[1], height, width))
    times = x.new_zeros((height, width))
    for i, (rows, columns) in enumerate(windows.places(height, width, x.device)):
        total[:, :, rows].index_add_(3, columns, views[:, i])
        times[rows].index_add_(1, columns, torch.ones_like(views[0, i, 0]))
    return total / times


def repeated(x: Tensor, height: int, width: int, *, windows: Windows = Windows(64, 16)) -> Tensor:
    """A row for each window of what has a row for each picture; one row serves all."""
    return x if len(x) == 1 else x.repeat_interleave(windows.count(height, width), dim=0)
