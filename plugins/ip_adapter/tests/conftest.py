"""Small random Stable Diffusion models, in both libraries, of equal weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "foundation_models/stable_diffusion/tests"))
sys.path.insert(0, str(Path(__file__).parent))

from small_ip_adapters import Pair


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_pair() -> Callable[..., Any]:
    pytest.importorskip("diffusers")
    return Pair.of
