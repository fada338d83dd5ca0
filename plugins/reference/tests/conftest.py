"""Small random pipelines and IP-Adapters are made by the tests of their packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

_HERE = Path(__file__).parent
_PLUGINS = _HERE.parents[1]
_SOURCES = (
    _HERE,
    _PLUGINS.parent / "foundation_models" / "stable_diffusion" / "tests",
    _PLUGINS / "ip_adapter" / "tests",
)
sys.path[:0] = [str(folder) for folder in _SOURCES]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
