"""An adapter's file is read as it was when its header was, or not at all."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import inarch.weights.adapter_file as adapter_file
from inarch.distribute import save_tensors
from inarch.errors import InarchError
from inarch.weights import open_adapter

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    save_file({name: torch.full((2,), float(i)) for i, name in enumerate("abc")}, path)
    return path


def test_it_is_opened_once_for_all_its_tensors(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    real = adapter_file.safe_open

    def counted(path: Path, **options: str) -> object:
        opened.append(path)
        return real(path, **options)

    monkeypatch.setattr(adapter_file, "safe_open", counted)
    header = open_adapter(file)
    values = [float(header.load(name, CPU, None)[0]) for name in "abc"]
    assert (values, opened) == ([0.0, 1.0, 2.0], [file])
    header.close()
    assert float(header.load("b", CPU, None)[0]) == 1.0


@pytest.mark.parametrize("opened", [False, True])
def test_another_file_in_its_place_is_not_read(file: Path, opened: bool) -> None:
    header = open_adapter(file)
    if opened:
        header.load("a", CPU, None)
    other = file.with_name("other.safetensors")
    save_file({name: torch.full((2,), 9.0) for name in "abc"}, other)
    other.replace(file)
    with pytest.raises(InarchError) as caught:
        header.load("b", CPU, None)
    assert caught.value.code == "IA202"


def test_a_file_that_is_gone_is_an_error(file: Path) -> None:
    header = open_adapter(file)
    header.load("a", CPU, None)
    file.unlink()
    with pytest.raises(InarchError) as caught:
        header.load("a", CPU, None)
    assert caught.value.code == "IA201"


@pytest.mark.parametrize(
    "entries",
    [
        {"__metadata__": ["format"]},
        {"__metadata__": {"format": 3}},
        {"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        b'{"\xd6": 1}',
    ],
)
def test_a_header_that_says_what_can_t_be_is_refused(tmp_path: Path, entries: Any) -> None:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(InarchError) as caught:
        open_adapter(path)
    assert caught.value.code == "IA202"


@pytest.fixture
def narrow() -> Iterator[None]:
    """A disk on which no file has room for a thousand bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    "write",
    [
        lambda path, tensors: adapter_file.write_adapter(path, tensors, {}),
        lambda path, tensors: save_tensors(tensors, path),
    ],
)
def test_what_the_disk_has_no_room_for_is_said_of_the_file(
    tmp_path: Path, write: Callable[[Path, dict[str, torch.Tensor]], None]
) -> None:
    path = tmp_path / "mine"
    with pytest.raises(OSError, match="File too large") as caught:
        write(path, {"a": torch.zeros(1000)})
    assert caught.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir()] in ([], ["mine"])
