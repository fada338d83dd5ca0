"""Small random Llamas, and folders of the adapters library with what it gave for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import inarch
from inarch.testing import tiny_models

GOLDEN = Path(__file__).with_name("golden.safetensors")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Golden:
    """What the adapters library gave for one case.

    Attributes:
        model: inarch's, of the same weights.
        folder: as the library saved it.
        ids: token ids.
        logits: for them.
        gradients: of the mean of the logits' squares, by the library's names.
        saved: the file's tensors.
    """

    model: Any
    folder: Path
    ids: Tensor
    logits: Tensor
    gradients: dict[str, Tensor]
    saved: dict[str, Tensor]


def cases() -> list[str]:
    with safe_open(GOLDEN, "pt") as file:
        return sorted(name for name in file.metadata() if name != "model")


def golden(name: str, folder: Path) -> Golden:
    with safe_open(GOLDEN, "pt") as file:
        settings = file.metadata()

        def under(start: str) -> dict[str, Tensor]:
            keys = [key for key in file.keys() if key.startswith(start)]  # noqa: SIM118
            return {key.removeprefix(start): file.get_tensor(key) for key in keys}

        base, saved = under("base/"), under(f"{name}/saved/")
        rest = file.get_tensor("ids"), file.get_tensor(f"{name}/logits"), under(f"{name}/gradient/")
    for at, config, tensors, file_name in (
        ("base", settings["model"], base, "model.safetensors"),
        ("theirs", settings[name], saved, "adapter.safetensors"),
    ):
        (folder / at).mkdir()
        save_file(tensors, folder / at / file_name)
        which = "config.json" if at == "base" else "adapter_config.json"
        (folder / at / which).write_text(json.dumps(json.loads(config)))
    return Golden(inarch.load(folder / "base"), folder / "theirs", *rest, saved)


@pytest.fixture
def norms(tmp_path: Path) -> Golden:
    return golden("houlsby_norms", tmp_path)


@pytest.fixture(params=cases())
def library(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    return golden(request.param, tmp_path)


@pytest.fixture
def pfeiffer(tmp_path: Path) -> Golden:
    return golden("pfeiffer", tmp_path)


@pytest.fixture(params=["float32", "float64"])
def llama(request: pytest.FixtureRequest) -> Any:
    """A tiny Llama with grouped queries."""
    [tiny, *_] = [one for one in tiny_models() if one.family == "llama"]
    return tiny.build(dtype=getattr(torch, request.param))


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 31, (3, 9), generator=torch.Generator().manual_seed(1))
