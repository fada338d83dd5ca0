"""Checkpoints of several folders, in the names and variants that diffusers gives them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inarch.errors import InarchError
from inarch.weights import FolderCheckpoint, PartsCheckpoint, RenamedCheckpoint, open_checkpoint

CPU = torch.device("cpu")
STEM = "diffusion_pytorch_model"


def part(path: Path, value: float, name: str = f"{STEM}.safetensors") -> Path:
    path.mkdir(exist_ok=True, parents=True)
    (path / "config.json").write_text('{"_class_name": "Thing", "size": 3}')
    save_file({"weight": torch.full((3,), value)}, path / name)
    return path


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    part(tmp_path / "one", 1.0)
    part(tmp_path / "two", 2.0, "model.safetensors")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"beta": 0.5}')
    index = {
        "_class_name": "ThingPipeline",
        "one": ["diffusers", "Thing"],
        "two": ["transformers", "Thing"],
        "three": [None, None],
        "tokenizer": ["transformers", "Tokenizer"],
        "scheduler": ["diffusers", "Scheduler"],
        "asked": True,
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return tmp_path


def test_every_part_is_under_its_own_name(pipeline: Path) -> None:
    checkpoint = open_checkpoint(pipeline)
    assert isinstance(checkpoint, PartsCheckpoint)
    assert set(checkpoint.tensors) == {"one.weight", "two.weight"}
    assert checkpoint.read("two.weight", None, CPU).tolist() == [2.0] * 3
    assert checkpoint.config["architectures"] == ["ThingPipeline"]
    assert checkpoint.config["one"]["size"] == 3
    assert checkpoint.config["scheduler"] == {"beta": 0.5}
    assert checkpoint.config["asked"] is True


def test_the_fingerprint_follows_every_part(pipeline: Path) -> None:
    before = open_checkpoint(pipeline).fingerprint()
    assert open_checkpoint(pipeline).fingerprint() == before
    part(pipeline / "two", 2.5, "model.safetensors")
    assert open_checkpoint(pipeline).fingerprint() != before


def test_weights_of_a_part_nobody_reads_may_be_missing(pipeline: Path) -> None:
    (pipeline / "two" / "model.safetensors").unlink()
    checkpoint = open_checkpoint(pipeline)
    assert checkpoint.config["two"]["size"] == 3
    with pytest.raises(InarchError) as error:
        checkpoint.fingerprint()
    assert (error.value.code, "two" in error.value.where) == ("IA204", True)


@pytest.mark.parametrize("name", [f"{STEM}.fp16.safetensors", "model.fp16.safetensors"])
def test_a_variant_alone_is_what_is_read(tmp_path: Path, name: str) -> None:
    folder = FolderCheckpoint(part(tmp_path / "one", 4.0, name))
    assert folder.read("weight", None, CPU).tolist() == [4.0] * 3


def test_plain_weights_go_before_variants_of_them(tmp_path: Path) -> None:
    part(tmp_path / "one", 4.0, f"{STEM}.fp16.safetensors")
    folder = FolderCheckpoint(part(tmp_path / "one", 5.0))
    assert folder.read("weight", None, CPU).tolist() == [5.0] * 3


def test_of_two_variants_nobody_can_tell_which_is_meant(tmp_path: Path) -> None:
    part(tmp_path / "one", 4.0, f"{STEM}.fp16.safetensors")
    folder = FolderCheckpoint(part(tmp_path / "one", 5.0, f"{STEM}.non_ema.safetensors"))
    with pytest.raises(InarchError) as error:
        _ = folder.tensors
    assert error.value.code == "IA204"
    assert "fp16, non_ema" in error.value.why


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        (f"{STEM}.safetensors.index.json", f"{STEM}-00001-of-00001.safetensors"),
        (f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16-00001-of-00001.safetensors"),
        (f"{STEM}.fp16.safetensors.index.json", f"{STEM}.fp16-00001-of-00001.safetensors"),
    ],
)
def test_shards_are_found_by_their_index(tmp_path: Path, index: str, shard: str) -> None:
    path = part(tmp_path / "one", 6.0, shard)
    (path / index).write_text(json.dumps({"weight_map": {"weight": shard}}))
    assert FolderCheckpoint(path).read("weight", None, CPU).tolist() == [6.0] * 3


def test_other_names_are_read_from_where_they_stand(tmp_path: Path) -> None:
    inner = FolderCheckpoint(part(tmp_path / "one", 7.0))
    renamed = RenamedCheckpoint(inner, lambda name: f"deep.{name}")
    assert list(renamed.tensors) == ["deep.weight"]
    assert renamed.read("deep.weight", torch.float64, CPU).dtype is torch.float64
    assert renamed.fingerprint() == inner.fingerprint()
