"""Counters: the same on every machine, so they can be asserted where times can't."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inarch.resolve.operations import Operations


def operations(run: Callable[[], object]) -> int:
    """The aten operations of a call, views left out."""
    with Operations() as counted:
        run()
    return counted.count


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
