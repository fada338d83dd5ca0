"""`inarch.load`: found by the checkpoint's own configuration; each mistake said clearly."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import inarch
import inarch.loading
from inarch.adapters import Model
from inarch.errors import InarchError
from inarch.plugins import Index
from inarch.plugins.manifest import ModelEntry
from inarch.tree import Chain


class Small(Model):
    @classmethod
    def parse_config(cls, config: dict[str, Any]) -> int:
        return int(config["width"])

    @classmethod
    def build(cls, config: int) -> dict[str, Chain]:
        return {"": Chain(up=nn.Linear(config, 2 * config), drop=nn.Dropout(0.5))}


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ModelEntry(id="small", model_types=["small"], roles={"mlp.up": "up"})
    monkeypatch.setattr(inarch.loading, "index", lambda: Index(models={"small": entry}))
    monkeypatch.setattr(inarch.loading, "load_object", lambda _group, _name: Small)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "small", "width": 3}))
    save_file(Small.build(3)[""].state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def refusal(*args: Any, **options: Any) -> InarchError:
    with pytest.raises(InarchError) as caught:
        inarch.load(*args, **options)
    return caught.value


def test_a_model_is_loaded_frozen_in_evaluation_mode_with_its_roles(folder: Path) -> None:
    model = inarch.load(folder)
    assert isinstance(model, Small)
    assert (model.family, model.roles) == ("small", {"mlp.up": "up"})
    assert not model.tree.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.float16", torch.float64, None])
def test_weights_take_the_dtype_asked_for(folder: Path, dtype: Any) -> None:
    wanted = {"bfloat16": torch.bfloat16, "torch.float16": torch.float16, None: torch.float32}
    assert inarch.load(folder, dtype=dtype).dtype == wanted.get(dtype, dtype)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_loaded_model_can_be_copied_and_pickled(folder: Path, how: Any) -> None:
    model = inarch.load(folder)
    other = how(model)
    x = torch.ones(2, 3)
    assert torch.equal(other.tree(x), model.tree(x))
    assert other.fingerprint() == model.fingerprint()
    name, tensor = next(iter(model.state_dict().items()))
    assert torch.equal(other.checkpoint.read(name, None, torch.device("cpu")), tensor)


def test_building_draws_no_random_number(folder: Path) -> None:
    state = torch.get_rng_state()
    inarch.load(folder)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("weight", "bias", "told", "expected"),
    [
        (torch.bfloat16, torch.float32, None, torch.float32),
        (torch.bfloat16, torch.float32, "bfloat16", torch.bfloat16),
        (torch.bfloat16, torch.float16, None, torch.float32),
        (torch.float16, torch.float16, "float32", torch.float16),
        (torch.float8_e4m3fn, torch.float16, None, torch.float16),
        (torch.float8_e4m3fn, torch.float8_e5m2, None, torch.bfloat16),
    ],
)
def test_a_file_of_several_dtypes_is_a_model_of_one(
    folder: Path, weight: torch.dtype, bias: torch.dtype, told: str | None, expected: torch.dtype
) -> None:
    tensors = load_file(folder / "model.safetensors")
    stored = {name: t.to(bias if "bias" in name else weight) for name, t in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | ({"dtype": told} if told else {})))
    model = inarch.load(folder)
    assert {p.dtype for p in model.parameters()} == {expected}
    assert all(torch.equal(model.state_dict()[n], t.to(expected)) for n, t in stored.items())
    assert torch.isfinite(model.tree(torch.ones(2, 3, dtype=expected))).all()


@pytest.mark.parametrize("dtype", ["int8", "bf16", "", "float8_e4m3fn", torch.int64, 3])
def test_a_dtype_weights_can_t_have_is_refused(folder: Path, dtype: Any) -> None:
    assert refusal(folder, dtype=dtype).code == "IA209"


@pytest.mark.parametrize("device", ["warp", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(folder: Path, device: str) -> None:
    error = refusal(folder, device=device)
    assert (error.code, device in error.what) == ("IA209", True)


def test_a_configuration_nobody_reads_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt9"}')
    error = refusal(folder)
    assert (error.code, "gpt9" in error.what) == ("IA306", True)


def test_a_configuration_that_names_no_model_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"width": 3}')
    error = refusal(folder)
    assert error.code == "IA306"
    assert "None" not in str(error)
    assert "model_type" in error.remedy


def test_a_tensor_of_none_of_a_model_s_trees_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Twofold(Small):
        @classmethod
        def build(cls, config: int) -> dict[str, Chain]:
            return {"one": Chain(up=nn.Linear(config, 2)), "two": Chain(up=nn.Linear(config, 2))}

    monkeypatch.setattr(inarch.loading, "load_object", lambda _group, _name: Twofold)
    state = {f"{n}.{k}": v for n, t in Twofold.build(3).items() for k, v in t.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    assert set(inarch.load(folder).trees) == {"one", "two"}
    save_file(state | {"three.up.bias": torch.ones(2)}, folder / "model.safetensors")
    error = refusal(folder)
    assert error.code == "IA206"
    assert error.where.endswith("three.up.bias")


def test_a_name_that_is_neither_path_nor_checkpoint_is_refused() -> None:
    assert refusal("no-such-model").code == "IA201"


def test_the_hub_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    error = refusal("owner/name")
    assert (error.code, error.remedy) == ("IA208", "pip install 'inarch[hub]'")


def test_a_snapshot_of_the_hub_is_loaded_without_its_pickles(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot(name: str, *, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(folder)

    hub = SimpleNamespace(snapshot_download=snapshot)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert inarch.load("owner/name").family == "small"
    assert asked["name"] == "owner/name"
    assert "*.safetensors" in asked["patterns"]
    assert not [p for p in asked["patterns"] if p.endswith((".bin", ".pt"))]


def test_a_hub_that_can_t_be_reached_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = ModuleType("huggingface_hub")

    def snapshot(*_: Any, **__: Any) -> str:
        raise ConnectionError("offline")

    hub.snapshot_download = snapshot  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    error = refusal("owner/name")
    assert (error.code, "offline" in error.why) == ("IA208", True)


def test_an_adapted_model_keeps_the_family_and_the_checkpoint(folder: Path) -> None:
    model = inarch.load(folder)
    again = model.without()
    assert (again.family, again.checkpoint) == ("small", model.checkpoint)
    assert again.fingerprint() == model.fingerprint()
