"""Counters: the same on every machine, so they can be asserted where times can't."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operations(TorchDispatchMode):
    """Counts aten operations that make something new, and the bytes that live at one time.

    Views are left out, as in `inarch plan`'s proof, whichever library makes them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def total(self) -> int:
        return sum(self.by_name.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        new = [t for t in tree_leaves(result) if isinstance(t, Tensor) and _storage(t) not in given]
        if new or func._schema.is_mutable:
            self.by_name[str(func)] += 1
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        for made in new:
            storage = made.untyped_storage()
            self._alive[_storage(made)] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def operations(run: Callable[[], object]) -> int:
    """The aten operations of a call, views left out."""
    with Operations() as counted:
        run()
    return counted.total


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors made by a call take at one time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with Operations() as counted:
        run()
    return counted.peak


def calls(run: Callable[[], object]) -> int:
    """The calls of Python functions and of C functions that a call makes.

    It grows with the work as the time does, and is the same on every run: what others left to the
    garbage collector, whose finalizers are calls too, is collected before.
    """
    count = 0

    def seen(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.collect()
    collects, old = gc.isenabled(), sys.getprofile()
    gc.disable()
    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(old)
        if collects:
            gc.enable()
    return count


def bits_changed(before: Tensor, after: Tensor) -> int:
    """How many bits of two tensors of one dtype differ."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = kinds[before.element_size()]
    changed = before.contiguous().view(kind) ^ after.contiguous().view(kind)
    changed = changed.flatten().contiguous().view(torch.uint8)
    return sum(int(((changed >> bit) & 1).sum()) for bit in range(8))
