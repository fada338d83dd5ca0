"""Adapter files: a safetensors file, or a folder with one and its settings beside it."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from inarch.errors import InarchError
from inarch.identity import fingerprint
from inarch.layout import ADAPTER_NAMES, adapter_file
from inarch.weights.checkpoint import read_json
from inarch.weights.header import Stamp, TensorInfo, changed, read_header, refuse_changed

# diffusers keeps a model's settings beside `diffusion_pytorch_model.safetensors`.
_MODEL = "diffusion_pytorch_model"


class WeightsHeader:
    """An adapter's file, opened by its header; tensors are read one by one.

    Attributes:
        path: the safetensors file.
        settings: what stands in adapter_config.json beside it, or in config.json beside a
            diffusion_pytorch_model.safetensors, if anything.
        metadata: the file's own strings.
        used: the keys that `read` was asked for.
        stamp: what tells the file from another that was put in its place.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        header = read_header(path)
        self.path = path
        self.settings = settings
        self.metadata = header.metadata
        self.used: set[str] = set()
        # Writers leave any order, and processes with copies of their own must agree on one.
        self._tensors = dict(sorted(header.tensors.items()))
        self.stamp = header.stamp
        self._fingerprint = ""
        self._open: dict[str, Any] = {}

    def keys(self) -> list[str]:
        return list(self._tensors)

    def info(self, key: str) -> TensorInfo:
        if key not in self._tensors:
            raise InarchError(
                "IA207",
                f"the file has no tensor `{key}`",
                where=str(self.path),
                remedy="save the adapter again",
            )
        return self._tensors[key]

    def shape(self, key: str) -> tuple[int, ...]:
        return self.info(key).shape

    def dtype(self, key: str) -> torch.dtype:
        return self.info(key).dtype

    def read(self, key: str) -> Tensor:
        """A tensor whose value decides something, such as an alpha; it counts as used."""
        self.used.add(key)
        return self.load(key, torch.device("cpu"), None)

    def load(self, key: str, device: torch.device, dtype: torch.dtype | None) -> Tensor:
        """A tensor straight onto a device.

        Raises:
            InarchError: IA201 where the file went since it was opened, IA202 where it changed.
        """
        self.info(key)
        refuse_changed(self.path, self.stamp)
        try:
            place = str(device)
            if place not in self._open:  # opening parses the whole header once more
                self._open[place] = safe_open(self.path, framework="pt", device=place)
            return self._open[place].get_tensor(key).to(dtype=dtype)
        except (OSError, SafetensorError) as error:
            raise changed(self.path, error) from error

    def fingerprint(self) -> str:
        """What identifies its tensors, wherever the file lies.

        Raises:
            InarchError: IA201 where the file went before it was first asked for, IA202 where it
                changed.
        """
        if not self._fingerprint:
            refuse_changed(self.path, self.stamp)
            self._fingerprint = fingerprint([(self.path, self._tensors)])
        return self._fingerprint

    def of(self, path: Path, stamp: Stamp) -> Self:
        """The header of another file, whose header and settings were found to be the same."""
        twin = copy.copy(self)
        twin.path, twin.stamp, twin.used, twin._open = path, stamp, set(self.used), {}
        twin._fingerprint = ""
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Copies open the file for themselves."""
        return {**vars(self), "_open": {}}

    def close(self) -> None:
        """Let go of the file; reading on opens it again."""
        self._open.clear()


def open_adapter(path: str | Path) -> WeightsHeader:
    """Open an adapter's file, or the folder it was saved in.

    Raises:
        InarchError: IA201 where nothing is, IA202 for a broken file, IA203 for a pickle, IA204
            where a folder holds no weights or several.
    """
    found, settings = adapter_files(Path(path))
    return WeightsHeader(found, {} if settings is None else read_json(settings))


def adapter_files(path: Path) -> tuple[Path, Path | None]:
    """An adapter's file, and its settings: in its folder, or beside a file of a known name.

    Raises:
        InarchError: IA203 for a pickle, IA204 where a folder holds no weights or several.
    """
    file = adapter_file(path)
    name = "adapter_config.json" if file.name in ADAPTER_NAMES else ""
    if file.name.startswith(f"{_MODEL}."):
        name = "config.json"
    for settings in (path / "adapter_config.json", *([file.parent / name] if name else [])):
        if settings.is_file():
            return file, settings
    return file, None


def write_adapter(
    path: Path,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, str],
    more: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter's safetensors file, whole or not at all, that records its base.

    Args:
        path: the file.
        tensors: by their keys.
        about: what `Adapter.write` is told: `base`, `fingerprint` and `asks`, where known.
        more: strings of the format's own for the file's header.

    Raises:
        OSError: it can't be written, on a full disk say.
    """
    metadata = {"format": "pt", **(more or {})}
    names = {"fingerprint": "base_fingerprint", "base": "base", "asks": "asks"}
    metadata |= {f"inarch.{names[key]}": value for key, value in about.items() if key in names}
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file({k: t.detach().contiguous().cpu() for k, t in tensors.items()}, partial, metadata)
        partial.replace(path)
    except SafetensorError as error:  # which is no OSError, and says the system's number in words
        partial.unlink(missing_ok=True)
        told = re.search(r"os error (\d+)", str(error))
        number = int(told[1]) if told else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write settings beside an adapter's file as JSON, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(settings, indent=2) + "\n")
    partial.replace(path)
