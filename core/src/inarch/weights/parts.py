"""Checkpoints of several parts, and checkpoints seen under other names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch.weights.checkpoint import Checkpoint, FolderCheckpoint, files_of, read_json
from inarch.weights.header import TensorInfo

if TYPE_CHECKING:
    from inarch.nn.tokenizer import Tokenizer

INDEX = "model_index.json"


class PartsCheckpoint:
    """A checkpoint whose tensors are those of its parts, each under the name of its part.

    Args:
        path: of the whole.
        parts: by name; a tree of that name is filled from it.
        named: parts that the checkpoint says it has, whether it does or not.
        config: what stands beside the parts' own configurations, which are under their names.
    """

    def __init__(
        self,
        path: Path,
        parts: Mapping[str, Checkpoint],
        config: Mapping[str, Any],
        named: Iterable[str] = (),
    ) -> None:
        self.path = path
        self.parts = dict(parts)
        self.named = frozenset(named)
        self.config: dict[str, Any] = {
            **config,
            **{name: part.config for name, part in parts.items()},
        }
        self.generation_config: dict[str, Any] = {}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    @cached_property
    def _tensors(self) -> Mapping[str, TensorInfo]:
        return {
            f"{name}.{key}": info
            for name, part in self.parts.items()
            for key, info in part.tensors.items()
        }

    def read(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        part, _, key = name.partition(".")
        return self.parts[part].read(key, dtype, device)

    @property
    def files(self) -> list[Path]:
        """The files that its parts' tensors are in."""
        return [path for part in self.parts.values() for path in files_of(part)]

    def tokenizer(self) -> Tokenizer | None:
        return None

    def fingerprint(self) -> str:
        whole = sha256()
        for name, part in sorted(self.parts.items()):
            whole.update(f"{name} {part.fingerprint()} ".encode())
        return f"inarch1:{whole.hexdigest()}"


class RenamedCheckpoint:
    """A checkpoint whose tensors have other names than in its file.

    Args:
        inner: the checkpoint.
        rename: from a name in the file to the one it is known by.
    """

    def __init__(self, inner: Checkpoint, rename: Callable[[str], str]) -> None:
        self.inner = inner
        self.path = inner.path
        self.config = inner.config
        self.generation_config = inner.generation_config
        self._rename = rename

    @cached_property
    def _names(self) -> dict[str, str]:
        return {self._rename(name): name for name in self.inner.tensors}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    @cached_property
    def _tensors(self) -> Mapping[str, TensorInfo]:
        return {new: self.inner.tensors[old] for new, old in self._names.items()}

    def read(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        return self.inner.read(self._names[name], dtype, device)

    @property
    def files(self) -> list[Path]:
        return files_of(self.inner)

    def tokenizer(self) -> Tokenizer | None:
        return self.inner.tokenizer()

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


def open_parts(path: Path) -> PartsCheckpoint:
    """A diffusers pipeline's folder: `model_index.json`, and a folder for each part.

    Parts without a configuration of their own, such as tokenizers, are left to who needs them;
    what a part's weights are is looked at when they are needed.

    Raises:
        InarchError: IA205 for an index that can't be read.
    """
    index = read_json(path / INDEX)
    named = [n for n, kind in index.items() if isinstance(kind, list) and any(kind)]
    parts = {
        name: FolderCheckpoint(path / name)
        for name in named
        if (path / name / "config.json").is_file()
    }
    config: dict[str, Any] = {n: v for n, v in index.items() if not isinstance(v, list)}
    config["architectures"] = [index.get("_class_name")]
    settings = path / "scheduler" / "scheduler_config.json"
    if settings.is_file():
        config["scheduler"] = read_json(settings)
    return PartsCheckpoint(path, parts, config, named)


def missing_part(checkpoint: PartsCheckpoint, name: str, needed: str) -> InarchError:
    """The error for a part that a model can't do without."""
    return InarchError(
        "IA204",
        f"`{checkpoint.path.name}` has no {needed}",
        where=str(checkpoint.path / name),
        why=f"there is no folder `{name}` with a config.json in it; the parts are: "
        f"{', '.join(checkpoint.parts) or 'none'}",
        remedy="download or save the checkpoint again, with all its folders",
    )
