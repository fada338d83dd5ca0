"""The header of a safetensors file: names, shapes and dtypes, without reading a tensor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from inarch.errors import InarchError
from inarch.layout import PICKLES, read_layout, refuse_pickle

__all__ = ["DTYPES", "PICKLES", "Header", "TensorInfo", "read_header", "refuse_pickle"]

Stamp = tuple[int, int, int]


def stamp_of(status: os.stat_result) -> Stamp:
    """What tells a file from another that was put in its place."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def changed(path: Path, error: Exception) -> InarchError:
    """The error for a file that is not what it was when its header was read."""
    gone = not path.exists()
    return InarchError(
        "IA201" if gone else "IA202",
        f"`{path.name}` {'is gone' if gone else 'changed'} since its header was read",
        where=str(path),
        why=str(error).splitlines()[0],
        remedy="put the file back, or read what is there from the beginning; nothing was changed",
    )


def refuse_changed(path: Path, stamp: Stamp) -> None:
    """Refuse a file that is not what it was when its header was read.

    Raises:
        InarchError: IA201 where it is gone, IA202 where it is another.
    """
    try:
        if stamp_of(path.stat()) != stamp:
            raise OSError("its size or the time it was written differs")
    except OSError as error:
        raise changed(path, error) from None


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file's header says of a tensor.

    Attributes:
        shape: its sizes.
        dtype: as stored; for quantised formats the dtype of a plain reading.
        kind: the file format's own name of how it is stored.
        span: first and last byte in the file, for sampling.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Header:
    """A safetensors file's header, and what the file was when it was read."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    stamp: Stamp


def read_header(path: Path) -> Header:
    """Read and check a safetensors header.

    Raises:
        InarchError: as `read_layout`.
    """
    layout = read_layout(path)
    stamp = stamp_of(path.stat())
    tensors = {
        name: TensorInfo(placed.shape, DTYPES[placed.kind], placed.kind, placed.span)
        for name, placed in layout.tensors.items()
    }
    return Header(path, tensors, layout.metadata, stamp)
