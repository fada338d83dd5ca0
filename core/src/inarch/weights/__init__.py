"""Checkpoints and adapter files: opened by their headers, read tensor by tensor."""

from inarch.identity import combined, fingerprint, sample_offsets
from inarch.weights.adapter_file import WeightsHeader, open_adapter, write_adapter, write_settings
from inarch.weights.blank import blank
from inarch.weights.checkpoint import Checkpoint, FolderCheckpoint, files_of, open_checkpoint
from inarch.weights.fill import check_names, fill
from inarch.weights.header import TensorInfo, read_header
from inarch.weights.mapped import MappedFile, read_ahead
from inarch.weights.parts import PartsCheckpoint, RenamedCheckpoint, missing_part

__all__ = [
    "Checkpoint",
    "FolderCheckpoint",
    "MappedFile",
    "PartsCheckpoint",
    "RenamedCheckpoint",
    "TensorInfo",
    "WeightsHeader",
    "blank",
    "check_names",
    "combined",
    "files_of",
    "fill",
    "fingerprint",
    "missing_part",
    "open_adapter",
    "open_checkpoint",
    "read_ahead",
    "read_header",
    "sample_offsets",
    "write_adapter",
    "write_settings",
]
