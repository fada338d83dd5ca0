"""Checkpoints of foundation models: what is in them, read tensor by tensor when asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch.identity import fingerprint
from inarch.plugins import index, load_object
from inarch.weights.files import weights_of
from inarch.weights.header import PICKLES, Header, TensorInfo, read_header, refuse_changed
from inarch.weights.mapped import MappedFile

if TYPE_CHECKING:
    from inarch.nn.tokenizer import Tokenizer

_WINDOW = 1 << 26
"""Bytes of a file that are read to be cast or brought elsewhere before it is mapped anew."""
_AGAIN = "download or save it again"


class Checkpoint(Protocol):
    """A checkpoint in any format. Tensors have transformers' names, which are the tree's."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as transformers' config.json has it."""
        ...

    @property
    def generation_config(self) -> dict[str, Any]: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Shape and dtype of each tensor, from headers alone."""
        ...

    def read(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        """One tensor, in the dtype asked for or its own, on the device."""
        ...

    def tokenizer(self) -> Tokenizer | None: ...

    def fingerprint(self) -> str:
        """What identifies the weights, whatever the files around them are called."""
        ...


def files_of(checkpoint: Checkpoint) -> list[Path]:
    """The files a checkpoint's tensors are in, where its format says so as `files`."""
    return getattr(checkpoint, "files", [])


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder of transformers or diffusers, or a file or folder of an installed format.

    Raises:
        InarchError: IA201 to IA204.
    """
    if not path.exists():
        raise InarchError(
            "IA201",
            f"there is no checkpoint at `{path}`",
            where=str(path),
            remedy="pass a folder with config.json and safetensors, or a file of an installed "
            "format",
        )
    found = _format_of(path)
    if found is not None:
        return load_object("inarch.formats", found)(path)
    if path.is_file():
        suffixes = sorted(s for entry in index().formats.values() for s in entry.suffixes)
        if path.suffix in PICKLES:
            read_header(path)
        raise InarchError(
            "IA204",
            f"`{path.name}` is in no format of a checkpoint that is installed",
            where=str(path),
            why=f"files of a checkpoint end in: {', '.join(suffixes) or 'none is installed'}; "
            "a transformers checkpoint is a folder",
            remedy="pip install inarch-gguf" if path.suffix == ".gguf" else "pass the folder",
        )
    if (path / "model_index.json").is_file():
        from inarch.weights.parts import open_parts

        return open_parts(path)
    return FolderCheckpoint(path)


def _format_of(path: Path) -> str | None:
    """The installed format whose magic bytes or suffix a file has."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(16)
    for entry in index().formats.values():
        if (
            entry.magic and start.startswith(entry.magic.encode())
        ) or path.suffix in entry.suffixes:
            return entry.id
    return None


class FolderCheckpoint:
    """A model's folder: config.json, safetensors in one file or in shards, a tokenizer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "config.json").is_file():
            present = sorted(p.name for p in path.iterdir())[:8]
            raise InarchError(
                "IA204",
                f"`{path.name}` is no checkpoint folder: it has no config.json",
                where=str(path),
                why=f"it holds: {', '.join(present) or 'nothing'}",
                remedy="pass the folder that holds config.json and the safetensors files",
            )
        self._open: dict[Path, MappedFile] = {}
        self._passed = 0
        self.config = read_json(path / "config.json")
        if "_class_name" in self.config:  # diffusers' word for it
            self.config.setdefault("architectures", [self.config["_class_name"]])
        settings = path / "generation_config.json"
        self.generation_config = read_json(settings) if settings.is_file() else {}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    @cached_property
    def _tensors(self) -> Mapping[str, TensorInfo]:
        return {n: info for header in self._headers for n, info in header.tensors.items()}

    @cached_property
    def _headers(self) -> list[Header]:
        found = weights_of(self.path)
        if found.suffix == ".json":
            return self._sharded(read_json(found), found)
        return [read_header(found)]

    def _sharded(self, listed: dict[str, Any], path: Path) -> list[Header]:
        """The shards' headers, held against the index that names them."""
        wanted: dict[str, str] = listed.get("weight_map", {})
        headers = {name: read_header(self.path / name) for name in sorted(set(wanted.values()))}
        absent = [f"{t} in {f}" for t, f in wanted.items() if t not in headers[f].tensors]
        unlisted = [t for h in headers.values() for t in h.tensors if t not in wanted]
        if absent or unlisted or not wanted:
            facts = [f"absent: {a}" for a in absent[:4]] + [
                f"not listed: {u}" for u in unlisted[:4]
            ]
            raise InarchError(
                "IA202",
                "the index of the shards and the shards disagree",
                where=str(path),
                why="\n".join(facts) or "it lists no tensor",
                remedy="download or save the checkpoint again",
            )
        return list(headers.values())

    @cached_property
    def _files(self) -> dict[str, Header]:
        return {name: header for header in self._headers for name in header.tensors}

    @property
    def files(self) -> list[Path]:
        """The files that its tensors are in."""
        return [header.path for header in self._headers]

    def read(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        header = self._files[name]
        file = self._open.get(header.path)
        if file is None:
            file = self._open[header.path] = MappedFile(header)
        mapped = file.tensor(name)
        tensor = mapped.to(device=device, dtype=dtype)
        if tensor is not mapped or device.type != "cpu":
            # Pages that were read stay in memory as long as the file is mapped, as a second copy.
            self._passed += mapped.nbytes
            if self._passed > _WINDOW:
                self._passed = 0
                self.close()
        return tensor

    def close(self) -> None:
        """Forget the open files; tensors that were read keep their mapping."""
        self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Copies open the files for themselves."""
        return {**vars(self), "_open": {}}

    def tokenizer(self) -> Tokenizer | None:
        from inarch.nn.tokenizer import Tokenizer

        return (
            Tokenizer.from_folder(self.path) if (self.path / "tokenizer.json").is_file() else None
        )

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        for header in self._headers:
            refuse_changed(header.path, header.stamp)
        return fingerprint((header.path, header.tensors) for header in self._headers)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InarchError: IA205.
    """
    try:
        value: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InarchError(
            "IA205", f"`{path.name}` can't be read", where=str(path), why=str(error), remedy=_AGAIN
        ) from None
    if not isinstance(value, dict):
        raise InarchError(
            "IA205", f"`{path.name}` holds no JSON object", where=str(path), remedy=_AGAIN
        )
    return value
