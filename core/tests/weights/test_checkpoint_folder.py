"""Checkpoint folders: strict both ways, all or nothing, one error for whatever is wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from inarch.errors import InarchError
from inarch.tree import Chain
from inarch.weights import FolderCheckpoint, fill, open_adapter, open_checkpoint, read_header

CPU = torch.device("cpu")


def tree() -> Chain:
    chain = Chain(a=nn.Linear(3, 4), b=nn.BatchNorm1d(4), c=nn.Linear(4, 3, bias=False))
    return chain


def tied() -> Chain:
    chain = Chain(a=nn.Linear(3, 3, bias=False), b=nn.Linear(3, 3, bias=False))
    return chain.tie("b.weight", "a.weight")


def on_meta(make: Any) -> Chain:
    with torch.device("meta"):
        return make()


@pytest.fixture
def values() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {k: v.clone() for k, v in tree().state_dict().items()}
    return {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}


def folder(path: Path, values: dict[str, torch.Tensor], shards: int = 1) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"model_type": "small"}')
    if shards == 1:
        save_file(values, path / "model.safetensors")
        return path
    names = list(values)
    where: dict[str, str] = {}
    for i in range(shards):
        own = {name: values[name] for name in names[i::shards]}
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file(own, path / file)
        where |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def refusal(path: Path, make: Any = tree) -> InarchError:
    target = on_meta(make)
    with pytest.raises(InarchError) as caught:
        fill(target, open_checkpoint(path))
    assert all(p.is_meta for p in target.parameters())
    return caught.value


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_every_tensor_arrives_frozen_and_as_it_is(
    tmp_path: Path, values: dict[str, torch.Tensor], shards: int
) -> None:
    target = on_meta(tree)
    fill(target, open_checkpoint(folder(tmp_path / "c", values, shards)))
    state = target.state_dict()
    assert list(state) == list(tree().state_dict())
    assert all(torch.equal(state[name], values[name]) for name in values)
    assert not any(p.requires_grad for p in target.parameters())


def test_floating_tensors_take_the_dtype_and_others_keep_theirs(
    tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    target = on_meta(tree)
    fill(target, open_checkpoint(folder(tmp_path / "c", values)), torch.bfloat16)
    assert target.a.weight.dtype == torch.bfloat16
    assert torch.equal(target.a.weight, values["a.weight"].bfloat16())
    assert target.b.num_batches_tracked.dtype == torch.int64


def test_plain_reading_maps_the_file_and_makes_no_copy(
    tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    checkpoint = FolderCheckpoint(folder(tmp_path / "c", values))
    first = checkpoint.read("a.weight", None, CPU)
    second = checkpoint.read("a.bias", None, CPU)
    assert first.dtype == second.dtype == torch.float32


def test_everything_that_is_wrong_is_in_one_error(
    tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    del values["a.bias"]
    values["d.weight"] = torch.ones(2)
    values["c.weight"] = torch.ones(3, 5)
    error = refusal(folder(tmp_path / "c", values))
    assert error.code == "IA206"
    assert "missing: a.bias [4]" in error.why
    assert "unexpected: d.weight [2]" in error.why
    assert "c.weight is [3, 5], the tree has [3, 4]" in error.why


def test_integers_where_weights_should_be_are_refused(
    tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    values["a.bias"] = values["a.bias"].to(torch.int32)
    error = refusal(folder(tmp_path / "c", values))
    assert error.code == "IA206"
    assert "a.bias is torch.int32" in error.why
    assert error.where.endswith("a.bias")


def test_a_long_list_of_wrong_tensors_says_how_many_more_there_are(
    tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    values |= {f"strange.{i}": torch.ones(1) for i in range(20)}
    error = refusal(folder(tmp_path / "c", values))
    assert "20 tensors unexpected" in error.what
    assert "and 14 more" in error.why


def test_a_header_whose_shape_is_not_its_bytes_is_refused(
    tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    file = folder(tmp_path / "c", values) / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"shape":[4]', b'"shape":[9]', 1))
    assert refusal(file.parent).code == "IA202"


def test_a_tied_weight_may_be_absent_and_is_shared(tmp_path: Path) -> None:
    value = torch.randn(3, 3)
    target = on_meta(tied)
    fill(target, open_checkpoint(folder(tmp_path / "c", {"a.weight": value})))
    assert target.b.weight is target.a.weight
    assert torch.equal(target.a.weight, value)


def test_a_tied_weight_that_is_there_is_not_unexpected(tmp_path: Path) -> None:
    value = torch.randn(3, 3)
    target = on_meta(tied)
    given = {"a.weight": value, "b.weight": value.clone()}
    fill(target, open_checkpoint(folder(tmp_path / "c", given)))
    assert target.b.weight is target.a.weight


def test_ignored_patterns_may_be_in_the_file(
    tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    values["x.inv_freq"] = torch.ones(2)
    target = on_meta(tree)
    fill(target, open_checkpoint(folder(tmp_path / "c", values)), ignored=("*.inv_freq",))


def test_a_truncated_file_is_named(tmp_path: Path, values: dict[str, torch.Tensor]) -> None:
    path = folder(tmp_path / "c", values) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    error = refusal(path.parent)
    assert (error.code, error.where) == ("IA202", str(path))
    assert "cut off" in error.why


@pytest.mark.parametrize("start", [b"", b"\0" * 4, b"\xff" * 64, b"{}", b"x" * 4096])
def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(start)
    with pytest.raises(InarchError) as caught:
        read_header(path)
    assert caught.value.code == "IA202"


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_renamed_to_safetensors_is_refused(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    with pytest.raises(InarchError) as caught:
        open_adapter(path)
    assert caught.value.code == "IA203"
    assert "save_file" in caught.value.remedy


def test_a_file_of_torch_save_is_refused_whatever_its_name(tmp_path: Path) -> None:
    for name in ("adapter_model.safetensors", "adapter_model.bin", "model.pt"):
        torch.save({"a": torch.ones(1)}, tmp_path / name)
        with pytest.raises(InarchError) as caught:
            open_adapter(tmp_path / name)
        assert caught.value.code == "IA203"


def test_a_folder_of_pickles_is_refused_with_the_conversion(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert refusal(tmp_path).code == "IA203"


def test_a_missing_shard_is_named(tmp_path: Path, values: dict[str, torch.Tensor]) -> None:
    path = folder(tmp_path / "c", values, 2)
    (path / "model-00002-of-00002.safetensors").unlink()
    error = refusal(path)
    assert (error.code, "model-00002" in error.where) == ("IA201", True)


def test_an_index_that_names_an_absent_tensor_is_refused(
    tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    path = folder(tmp_path / "c", values, 2)
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))
    error = refusal(path)
    assert (error.code, "ghost" in error.why) == ("IA202", True)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "IA204"),
        ({"readme.txt": "x"}, "IA204"),
        ({"config.json": "{}"}, "IA204"),
        ({"config.json": "{"}, "IA205"),
        ({"config.json": "[]"}, "IA205"),
    ],
)
def test_a_folder_that_is_no_checkpoint_says_what_it_lacks(
    tmp_path: Path, files: dict[str, str], code: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert refusal(tmp_path).code == code


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").code == "IA201"


def test_the_fingerprint_is_of_the_weights_and_not_of_the_files(
    tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    one = open_checkpoint(folder(tmp_path / "one", values)).fingerprint()
    sharded = open_checkpoint(folder(tmp_path / "two", values, 3)).fingerprint()
    assert one == sharded
    values["a.weight"] = values["a.weight"] + 1e-3
    assert open_checkpoint(folder(tmp_path / "three", values)).fingerprint() != one


@pytest.mark.parametrize(("how", "code"), [("gone", "IA201"), ("another", "IA202")])
def test_a_fingerprint_is_of_the_file_whose_header_was_read(
    tmp_path: Path, values: dict[str, torch.Tensor], how: str, code: str
) -> None:
    checkpoint = open_checkpoint(folder(tmp_path / "one", values))
    assert checkpoint.tensors
    file, other = tmp_path / "one" / "model.safetensors", folder(tmp_path / "two", values)
    file.unlink()
    if how == "another":
        (other / file.name).rename(file)
    with pytest.raises(InarchError) as caught:
        checkpoint.fingerprint()
    assert (caught.value.code, caught.value.where) == (code, str(file))


def test_an_adapter_folder_gives_tensors_settings_and_metadata(tmp_path: Path) -> None:
    value = torch.randn(2, 3)
    save_file({"x": value}, tmp_path / "adapter_model.safetensors", {"made": "here"})
    (tmp_path / "adapter_config.json").write_text('{"r": 2}')
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        header = open_adapter(path)
        assert header.settings == {"r": 2}
        assert header.metadata == {"made": "here"}
        assert header.shape("x") == (2, 3)
        assert torch.equal(header.load("x", CPU, torch.float64), value.double())
        assert header.used == set()
        header.read("x")
        assert header.used == {"x"}


def test_a_folder_of_several_adapter_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InarchError) as caught:
        open_adapter(tmp_path)
    assert (caught.value.code, "a.safetensors" in caught.value.why) == ("IA204", True)
