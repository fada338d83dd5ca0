"""The header of a safetensors file: names, shapes and dtypes, without reading a tensor."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inarch.errors import InarchError

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
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


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
    """A safetensors file's header."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def refuse_pickle(path: Path) -> None:
    """Refuse a file that is a pickle, by its suffix or by its first bytes.

    Raises:
        InarchError: IA203, with the conversion.
    """
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
    # A safetensors file begins with the length of its JSON, which may be any bytes.
    other = start[8:] != b"{"
    zipped, pickled = other and start[:2] == b"PK", other and start[:1] == b"\x80"
    if path.suffix in PICKLES or zipped or pickled:
        looks = "a zip of pickles, as torch.save writes" if zipped else "a pickle"
        raise InarchError(
            "IA203",
            f"`{path.name}` is a pickle, and pickles run code when they are read",
            where=str(path),
            why=f"its suffix is {path.suffix}"
            if path.suffix in PICKLES
            else f"its first bytes are those of {looks}, whatever its name says",
            remedy="convert it where you trust it: safetensors.torch.save_file("
            'torch.load(PATH, weights_only=True), "model.safetensors")',
        )


def read_header(path: Path) -> Header:
    """Read and check a safetensors header.

    Source: the safetensors format, 8 bytes of length (little endian), then JSON, then the data.

    Raises:
        InarchError: IA201 for no such file, IA203 for a pickle, IA202 for a file that is cut off
            or no safetensors.
    """
    if not path.is_file():
        raise InarchError(
            "IA201",
            f"there is no file `{path.name}`",
            where=str(path),
            remedy="check the path; one in a stack file counts from the file's folder",
        )
    refuse_pickle(path)
    size = os.path.getsize(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 0 < length <= min(size - 8, 100_000_000) else b""
    try:
        entries: dict[str, Any] = json.loads(text)
        metadata: dict[str, str] = entries.pop("__metadata__", {})
        tensors = {name: _info(entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _broken(path, f"no header of safetensors in its {size} bytes") from None
    end = 8 + length + max((info.span[1] for info in tensors.values()), default=0)
    if end != size:
        kind = "it is cut off" if size < end else "it has bytes no tensor owns"
        raise _broken(path, f"{kind}: its header describes {end} bytes, and it has {size}")
    return Header(path, tensors, metadata)


def _info(entry: dict[str, Any]) -> TensorInfo:
    first, last = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
    if last - first != math.prod(shape) * dtype.itemsize or first < 0:
        raise ValueError(f"{last - first} bytes are no {list(shape)} of {dtype}")
    return TensorInfo(shape, dtype, entry["dtype"], (first, last))


def _broken(path: Path, why: str) -> InarchError:
    return InarchError(
        "IA202",
        f"`{path.name}` is no whole safetensors file",
        where=str(path),
        why=why,
        remedy="download or save it again",
    )
