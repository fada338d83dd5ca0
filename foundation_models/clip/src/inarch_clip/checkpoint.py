"""A CLIP's checkpoint as the trees need it: names with their tower's, and CLIP's tokenizer.

Models without projection are written since transformers 5 without the tower's name before their
tensors' (`encoder.layers.0...`), and were before, as published files are, with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inarch.nn import Tokenizer
from inarch.weights import Checkpoint, files_of
from inarch.weights.header import TensorInfo
from inarch_clip.tokens import ClipTokenizer, has_tokenizer

_TOWERS = {"clip_text_model": "text_model.", "clip_vision_model": "vision_model."}
_BARE = ("embeddings.", "encoder.", "final_layer_norm.", "pre_layrnorm.", "post_layernorm.")


class ClipCheckpoint:
    """A checkpoint of a CLIP or of one of its towers.

    Args:
        inner: as it lies there.
    """

    def __init__(self, inner: Checkpoint) -> None:
        self.inner = inner
        self.path: Path = inner.path
        self._tower = _TOWERS.get(str(inner.config.get("model_type")), "")

    @property
    def config(self) -> dict[str, Any]:
        return self.inner.config

    @property
    def generation_config(self) -> dict[str, Any]:
        return self.inner.generation_config

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        found = self.inner.tensors.items()
        return {f"{self._prefix(name)}{name}": info for name, info in found}

    def read(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        bare = name.removeprefix(self._tower)
        return self.inner.read(bare if bare in self.inner.tensors else name, dtype, device)

    @property
    def files(self) -> list[Path]:
        return files_of(self.inner)

    def tokenizer(self) -> Tokenizer | None:
        folder = self.path if self.path.is_dir() else self.path.parent
        return ClipTokenizer.from_folder(folder) if has_tokenizer(folder) else None

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def _prefix(self, name: str) -> str:
        return self._tower if name.startswith(_BARE) else ""
