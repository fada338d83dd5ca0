"""Files of the kit's low-rank adapter, and what swaps of them give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import inarch
from inarch.adapters import Model
from inarch.errors import InarchError

WEIGHTS = "adapter_model.safetensors"


def saved(base: Model, folder: Path, seed: int, **options: Any) -> Path:
    model = base.adapt(inarch.adapter("lowrank", **options))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.adapter_parameters("lowrank").values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model.save_adapter("lowrank", folder)


def made_of(base: Model, file: Path) -> Model:
    return base.adapt(inarch.adapter("lowrank", weights=file))


def refusal(model: Model, weights: Any, name: str = "lowrank") -> InarchError:
    with pytest.raises(InarchError) as caught:
        model.swap(name, weights)
    return caught.value
