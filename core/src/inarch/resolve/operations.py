"""Counting what a forward does: operations, and the memory that their results take."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Alive = dict[int, tuple[StorageWeakRef, int]]


class Operations(TorchDispatchMode):
    """Counts operations, views left out, and the bytes of what they make that live at one time.

    Args:
        alive: what earlier runs of the same tree made and keep, by storage; it is brought forward.

    Attributes:
        count: of operations that made something new or changed something.
        peak: the most bytes that lived at one time.
    """

    def __init__(self, alive: Alive | None = None) -> None:
        super().__init__()
        self.count = 0
        self.peak = 0
        self._alive: Alive = {} if alive is None else alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for gone in [k for k, v in self._alive.items() if v[0].expired()]:
            del self._alive[gone]
        given = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        new = [t for t in tree_leaves(result) if isinstance(t, Tensor) and _storage(t) not in given]
        self.count += bool(new) or bool(func._schema.is_mutable)
        for made in new:
            storage = made.untyped_storage()
            self._alive[_storage(made)] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
