"""Small random Stable Diffusion models and ControlNets, in both libraries, of equal weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inarch_stable_diffusion.beside_diffusers import Pair

sys.path.insert(0, str(Path(__file__).parents[3] / "foundation_models/stable_diffusion/tests"))
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["sd1", "xl"])
def each_pair(request: pytest.FixtureRequest) -> Pair:
    """diffusers' UNet and the model, of each family."""
    pytest.importorskip("diffusers")
    return Pair.of(request.param)


@pytest.fixture
def make_pair() -> Callable[..., Any]:
    pytest.importorskip("diffusers")
    return Pair.of
