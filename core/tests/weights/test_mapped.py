"""Tensors of a mapped file are those that safetensors reads, and cost nothing until used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from inarch.errors import InarchError
from inarch.weights import MappedFile, read_header
from inarch.weights.header import DTYPES


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> MappedFile:
    save_file(tensors, path)
    return MappedFile(read_header(path))


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_a_tensor_is_what_safetensors_reads(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes = ((), (0,), (3,), (2, 0, 4), (5, 7), (2, 3, 1, 1))
    noise = {str(i): (torch.randn(shape) * 3).to(dtype) for i, shape in enumerate(shapes)}
    file = saved(tmp_path / "a.safetensors", noise)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as theirs:
        for name in noise:
            ours, expected = file.tensor(name), theirs.get_tensor(name)
            assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
            assert ours.stride() == expected.stride()
            assert torch.equal(*(x.flatten().view(torch.uint8) for x in (ours, expected)))
            assert ours.untyped_storage().nbytes() == ours.nbytes


def test_tensors_of_a_file_whose_header_was_not_filled_up(tmp_path: Path) -> None:
    values = torch.randn(6)
    header = {"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + 3)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + values.numpy().tobytes())
    tensor = MappedFile(read_header(path)).tensor("a")
    assert torch.equal(tensor, values)
    assert tensor.data_ptr() % 4 == 0


def test_what_is_written_to_a_tensor_is_in_no_other_and_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    file = saved(path, {"a": torch.zeros(4), "b": torch.ones(4)})
    before = path.read_bytes()
    file.tensor("a").fill_(7)
    assert torch.equal(file.tensor("b"), torch.ones(4))
    assert path.read_bytes() == before


def test_a_tensor_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensor = saved(path, {"a": torch.arange(4.0)}).tensor("a")
    path.unlink()
    assert torch.equal(tensor, torch.arange(4.0))


def test_a_file_that_was_cut_since_is_refused_before_it_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(4096)}, path)
    header = read_header(path)
    os.truncate(path, 4096)
    with pytest.raises(InarchError) as caught:
        MappedFile(header)
    assert caught.value.code == "IA202"
