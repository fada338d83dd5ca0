"""A safetensors file mapped into memory: its tensors cost nothing until they are used."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inarch.weights.header import Header, refuse_changed


class MappedFile:
    """Tensors of one file, each a storage of its own, as safetensors' own reading gives them.

    A page is read when it is touched, and is private: what is written to it stays in memory.

    Args:
        header: of the file, as it was read.

    Raises:
        InarchError: IA201 where the file is gone by now, IA202 where it is another.
    """

    def __init__(self, header: Header) -> None:
        path, size = header.path, header.stamp[1]
        refuse_changed(path, header.stamp)
        with path.open("rb") as file:
            self._start = 8 + int.from_bytes(file.read(8), "little")
        self._infos = header.tensors
        self._bytes = torch.UntypedStorage.from_file(str(path), False, size)

    def tensor(self, name: str) -> Tensor:
        """A tensor as it lies in the file."""
        info = self._infos[name]
        first, last = (self._start + offset for offset in info.span)
        own: Any = self._bytes[first:last]
        if first % info.dtype.itemsize:  # in files whose header was not filled up to eight bytes
            own = own.clone()
        tensor = torch.empty(0, dtype=info.dtype)
        return tensor.set_(own, 0, info.shape)  # pyright: ignore[reportCallIssue] wants strides


def read_ahead(paths: Iterable[Path]) -> None:
    """Have the system read files while something else is done, where it can be asked to.

    A mapped file is otherwise read a few pages at a time, at the moment they are touched.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
