"""One allocation that holds many tensors, each of which is a tensor of its own."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack  # pyright: ignore[reportPrivateImportUsage]

_ALIGNMENT = 64
"""Bytes between the beginnings of parameters, which a wide load wants divided by 16."""

Key = tuple[str, str, tuple[str, ...], str]
"""A tensor of an adapter: its edit's address, kind and names, and its name in the step."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Flat:
    """One allocation, and where in it each parameter lies.

    Attributes:
        whole: one-dimensional.
        spans: the first element and the shape of each parameter.
    """

    whole: Tensor
    spans: Mapping[Key, tuple[int, Shape]]

    @classmethod
    def of(cls, shapes: Mapping[Key, Shape], dtype: torch.dtype, device: torch.device) -> Flat:
        """Zeros with room for parameters of some shapes."""
        step, end = max(1, _ALIGNMENT // dtype.itemsize), 0
        spans: dict[Key, tuple[int, Shape]] = {}
        for key in sorted(shapes):
            shape = shapes[key]
            spans[key] = (end, shape)
            end += -(-prod(shape) // step) * step
        return cls(torch.zeros(end, dtype=dtype, device=device), spans)

    def like(self, device: torch.device | None = None) -> Flat:
        """Zeros laid out the same."""
        pinned = device is not None and device.type == "cpu" and self.whole.is_cuda
        place = self.whole.device if device is None else device
        whole = torch.zeros_like(self.whole, device=place, pin_memory=pinned)
        return Flat(whole, self.spans)

    def view(self, key: Key) -> Tensor:
        start, shape = self.spans[key]
        return self.whole.as_strided(shape, _strides(shape), start)

    def tensors(self, keys: Iterable[Key]) -> list[Tensor]:
        """A tensor over each stretch, of its own: a view would be pickled with all of the rest."""
        device, dtype = self.whole.device, self.whole.dtype
        if device.type == "meta":  # where all lie nowhere
            shapes = [self.spans[key][1] for key in keys]
            made = {shape: torch.empty(shape, dtype=dtype, device=device) for shape in {*shapes}}
            return [made[shape].data for shape in shapes]
        if device.type not in ("cpu", "cuda"):
            return [self.view(key).data for key in keys]
        views = map(self.view, keys)
        return [from_dlpack(to_dlpack(v)) if v.numel() else v.data for v in views]

    def addresses(self) -> list[int]:
        """Where in memory each tensor lies that wasn't moved, cast or copied."""
        begin, width = self.whole.data_ptr(), self.whole.dtype.itemsize
        return [begin + start * width for start, _ in self.spans.values()]


@functools.cache
def _strides(shape: Shape) -> Shape:
    """Of a contiguous tensor."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
