"""The layout of a safetensors file, without reading a tensor and without torch."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inarch.errors import InarchError

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
ADAPTER_NAMES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter.safetensors",
)
KINDS = {
    **dict.fromkeys(("F64", "I64"), 8),
    **dict.fromkeys(("F32", "I32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
"""Dtypes that are read, with their bytes."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a tensor lies in a file: its sizes, its dtype as the file names it, its bytes."""

    shape: tuple[int, ...]
    kind: str
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a safetensors header says."""

    path: Path
    tensors: dict[str, Placed]
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


def read_layout(path: Path) -> Layout:
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
        metadata = {str(n): _string(v) for n, v in entries.pop("__metadata__", {}).items()}
        tensors = {name: _info(entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _broken(path, f"no header of safetensors in its {size} bytes") from None
    end = 8 + length + max((info.span[1] for info in tensors.values()), default=0)
    if end != size:
        kind = "it is cut off" if size < end else "it has bytes no tensor owns"
        raise _broken(path, f"{kind}: its header describes {end} bytes, and it has {size}")
    return Layout(path, tensors, metadata)


def _info(entry: dict[str, Any]) -> Placed:
    first, last = entry["data_offsets"]
    shape, kind = tuple(entry["shape"]), entry["dtype"]
    if any(type(number) is not int or number < 0 for number in (first, last, *shape)):
        raise ValueError(f"{[first, last]} and {list(shape)} are no numbers of bytes and sizes")
    if last - first != math.prod(shape) * KINDS[kind]:
        raise ValueError(f"{last - first} bytes are no {list(shape)} of {kind}")
    return Placed(shape, kind, (first, last))


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no string")
    return value


def _broken(path: Path, why: str) -> InarchError:
    return InarchError(
        "IA202",
        f"`{path.name}` is no whole safetensors file",
        where=str(path),
        why=why,
        remedy="download or save it again",
    )


def adapter_file(path: Path) -> Path:
    """The safetensors file of an adapter: itself, or the one in the folder it was saved in.

    Raises:
        InarchError: IA203 for a pickle, IA204 where a folder holds no weights or several.
    """
    if path.is_file() or not path.exists():
        return path
    found = [path / name for name in ADAPTER_NAMES if (path / name).is_file()]
    found = found or sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    pickles = sorted(p for p in path.iterdir() if p.suffix in PICKLES)
    if pickles and not found:
        refuse_pickle(pickles[0])
    names = ", ".join(p.name for p in found)
    raise InarchError(
        "IA204",
        f"the folder `{path.name}` holds {'several' if found else 'no'} adapter weights",
        where=str(path),
        why=f"found: {names}" if found else f"an adapter's weights are called {ADAPTER_NAMES[0]}",
        remedy="pass the file itself" if found else "pass the folder the adapter was saved in",
    )
