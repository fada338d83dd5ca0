"""What identifies a base's weights: a hash over every tensor's name, shape and a sample of it.

A sample, since hashing gigabytes would cost more than loading them; fine-tuning moves every
tensor it touches all over, so a sample of each tells two bases apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

_SAMPLES, _WIDTH = 16, 32


class Spanned(Protocol):
    """A tensor's place in a file, of `Placed` or `TensorInfo`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def kind(self) -> str: ...
    @property
    def span(self) -> tuple[int, int]: ...


def fingerprint(files: Iterable[tuple[Path, Mapping[str, Spanned]]]) -> str:
    """The fingerprint of the tensors in some files, equal however they are sharded.

    Args:
        files: each file with its tensors; spans count from the end of the safetensors header.

    Returns:
        "inarch1:" and a SHA-256 in hexadecimal.
    """
    digests: list[tuple[str, bytes]] = []
    for path, tensors in files:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            for name, info in tensors.items():
                digest = hashlib.sha256(f"{name} {list(info.shape)} {info.kind} ".encode())
                for offset in sample_offsets(info.span[1] - info.span[0]):
                    file.seek(start + info.span[0] + offset)
                    digest.update(file.read(min(_WIDTH, info.span[1] - info.span[0] - offset)))
                digests.append((name, digest.digest()))
    return combined(digests)


def sample_offsets(size: int) -> list[int]:
    """Where in a tensor of `size` bytes the sampled stretches begin."""
    if size <= _SAMPLES * _WIDTH:
        return list(range(0, size, _WIDTH))
    step = (size - _WIDTH) // (_SAMPLES - 1)
    return [i * step for i in range(_SAMPLES)]


def combined(digests: Iterable[tuple[str, bytes]]) -> str:
    """One fingerprint from a digest for each tensor, in the order of their names."""
    whole = hashlib.sha256()
    for name, digest in sorted(digests):
        whole.update(name.encode() + b" " + digest)
    return f"inarch1:{whole.hexdigest()}"


def of_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """Names, shapes and samples of tensors that came from no file."""
    digest = hashlib.sha256()
    for name, tensor in named:
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)].float().cpu()
        digest.update(f"{name} {list(tensor.shape)} ".encode() + sample.numpy().tobytes())
    return f"inarch1:{digest.hexdigest()}"
