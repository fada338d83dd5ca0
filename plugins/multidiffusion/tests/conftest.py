"""Small random pipelines are made by the tests of Stable Diffusion."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

_TESTS = Path(__file__).parents[3] / "foundation_models" / "stable_diffusion" / "tests"
sys.path.insert(0, str(_TESTS))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
