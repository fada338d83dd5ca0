"""A GGUF file as a checkpoint: transformers' names, tensors dequantised as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from inarch.errors import InarchError
from inarch.nn.tokenizer import Tokenizer
from inarch.weights import TensorInfo, combined, sample_offsets
from inarch.weights.header import refuse_changed, stamp_of
from inarch_gguf import architecture
from inarch_gguf.tokenizer import tokenizer_of

_CHUNK = 1 << 20
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class GGUFCheckpoint:
    """One GGUF file; satisfies `inarch.weights.Checkpoint`.

    Raises:
        InarchError: IA202 for a file that is cut off or no GGUF, IA251 for one whose architecture
            is not known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = _Reader(path)
            self._fields = {k: f.contents() for k, f in reader.fields.items()}
            found = {t.name: _Stored.of(t) for t in reader.tensors}
        except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
            raise self._broken(str(error)) from None
        end = max((t.offset + t.size for t in found.values()), default=0)
        if end > path.stat().st_size:
            raise self._broken(f"its tensors end at byte {end}, the file at {path.stat().st_size}")
        if "token_embd.weight" not in found and self._fields.get("general.architecture") == "llama":
            raise self._broken("it has no tensor token_embd.weight")
        shapes = {name: t.shape for name, t in found.items()}
        self._config = architecture.config(self._fields, shapes, str(path))
        self._stamp = stamp_of(path.stat())
        factors = found.pop(architecture.ROPE_FACTORS, None)
        table = architecture.names(self._config["num_hidden_layers"])
        self._stored = {table.get(name, name): stored for name, stored in found.items()}
        if factors is not None:
            values = self._read(factors, torch.float32).numpy()
            if not np.allclose(values, 1.0):
                scaling = architecture.llama3_scaling(values, self._config)
                self._config["rope_scaling"] = scaling

    def _broken(self, why: str) -> InarchError:
        return InarchError(
            "IA202",
            f"`{self.path.name}` is no whole GGUF file",
            where=str(self.path),
            why=why,
            remedy="download it again",
        )

    @property
    def config(self) -> dict[str, Any]:
        return self._config

    @property
    def generation_config(self) -> dict[str, Any]:
        return {k: v for k, v in self._config.items() if k.endswith("_token_id")}

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(
                stored.shape,
                _PLAIN.get(stored.kind.name, torch.float32),
                stored.kind.name,
                (stored.offset, stored.offset + stored.size),
            )
            for name, stored in self._stored.items()
        }

    def read(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        """A tensor, dequantised by stretches of rows straight into the dtype asked for."""
        stored = self._stored[name]
        tensor = self._read(stored, dtype or _PLAIN.get(stored.kind.name, torch.float32))
        heads = architecture.permuted_heads(name, self._config)
        if heads:
            half = stored.shape[0] // heads // 2
            rows = tensor.view(heads, half, 2, *stored.shape[1:])
            tensor = rows.transpose(1, 2).reshape(stored.shape)
        return tensor.to(device)

    def _read(self, stored: _Stored, dtype: torch.dtype) -> Tensor:
        rows = stored.shape[0] if len(stored.shape) > 1 else 1
        width = stored.size // rows
        tensor = torch.empty(stored.shape, dtype=dtype, device="cpu")
        flat = tensor.view(rows, -1)
        step = max(1, _CHUNK // flat.shape[1])
        with self.path.open("rb") as file:
            file.seek(stored.offset)
            for start in range(0, rows, step):
                count = min(step, rows - start)
                data = np.fromfile(file, np.uint8, count * width).reshape(count, width)
                flat[start : start + count] = torch.from_numpy(_dequantised(data, stored.kind))
        return tensor

    def tokenizer(self) -> Tokenizer | None:
        return tokenizer_of(self._fields, str(self.path))

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        refuse_changed(self.path, self._stamp)
        digests: list[tuple[str, bytes]] = []
        with self.path.open("rb") as file:
            for name, stored in self._stored.items():
                digest = sha256(f"{name} {list(stored.shape)} {stored.kind.name} ".encode())
                for offset in sample_offsets(stored.size):
                    file.seek(stored.offset + offset)
                    digest.update(file.read(min(32, stored.size - offset)))
                digests.append((name, digest.digest()))
        return combined(digests)


class _Reader(gguf.GGUFReader):
    """The package's reader over a plain array: slices of a memmap are many times slower."""

    def __setattr__(self, name: str, value: Any) -> None:
        plain = name == "data" and isinstance(value, np.memmap)
        super().__setattr__(name, value.view(np.ndarray) if plain else value)


class _Stored:
    """Where a tensor stands in the file and how it is stored."""

    __slots__ = ("kind", "offset", "shape", "size")

    def __init__(
        self, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType, offset: int, size: int
    ) -> None:
        self.shape, self.kind, self.offset, self.size = shape, kind, offset, size

    @classmethod
    def of(cls, tensor: gguf.ReaderTensor) -> _Stored:
        shape = tuple(int(n) for n in reversed(tensor.shape.tolist()))
        return cls(shape, tensor.tensor_type, int(tensor.data_offset), int(tensor.n_bytes))


def _dequantised(data: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType) -> Any:
    try:
        return dequantize(data, kind)
    except NotImplementedError:
        raise InarchError(
            "IA252",
            f"tensors stored as {kind.name} can't be dequantised",
            why="the gguf package has no conversion for them",
            remedy="use a file quantised as Q8_0, Q4_K or another common type",
        ) from None
