"""Tensors of a run over any number of processes, in a folder that any other number can read.

`torch.distributed.checkpoint` (DCP) writes one safetensors file for each process and no pickle.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata as _Tensor


def save_tensors(tensors: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write tensors, each process what lies in it; whole ones are written once.

    Args:
        tensors: by name, the same names everywhere; DTensors where a process has a part.
        folder: new, on a disk that all processes share.

    Raises:
        OSError: it can't be written, here or by another process.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    writer = dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)
    given: dict[str, Any] = dict(tensors)
    try:
        with _quietly():
            dcp.save(given, storage_writer=writer, no_dist=not dist.is_initialized())
    except OSError as error:
        if error.filename is None:  # what a write raises, not what opening does
            error.filename = str(path)
        raise


def shapes_in(folder: str | Path) -> dict[str, torch.Size]:
    """The shapes of the tensors in a folder, by name."""
    stored = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {name: about for name, about in stored.items() if isinstance(about, _Tensor)}
    return {name: about.size for name, about in tensors.items()}


def load_tensors(tensors: Mapping[str, Tensor], folder: str | Path) -> None:
    """Read into tensors in place, whatever number of processes wrote them.

    Args:
        tensors: by name; of those a process has a part of as a DTensor, it reads its part.
        folder: as `save_tensors` left it.

    Raises:
        Exception: as reading raised it, here or in another process.
    """
    reader = dcp.HuggingFaceStorageReader(str(folder))
    given: dict[str, Any] = dict(tensors)
    with _quietly():
        dcp.load(given, storage_reader=reader, no_dist=not dist.is_initialized())


@contextlib.contextmanager
def _quietly() -> Generator[None, None, None]:
    """Without DCP's warning that one process is one process, and without its own exception.

    It gathers what any process raised, of which the first is raised here as it was.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except dcp.CheckpointException as error:
            _, (cause, _) = min(error.failures.items())
            raise cause from None
