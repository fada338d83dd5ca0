"""Small random parts of Stable Diffusion, in diffusers and in inarch, of equal weights.

The modules beside this file import each other by name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from inarch_stable_diffusion.beside_diffusers import SMALL, randomised
from inarch_stable_diffusion.unet import unet
from inarch_stable_diffusion.unet_config import parse_unet


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def unets() -> Any:
    """A function from settings to diffusers' UNet and ours."""
    diffusers = pytest.importorskip("diffusers")

    def build(seed: int = 0, **settings: Any) -> tuple[Any, Any]:
        theirs = randomised(diffusers.UNet2DConditionModel(**{**SMALL, **settings}), seed)
        ours = unet(parse_unet(dict(theirs.config))).eval()
        ours.load_state_dict(theirs.state_dict())
        return theirs, ours

    return build
