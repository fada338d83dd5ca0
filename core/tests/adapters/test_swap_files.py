"""What one file was found to be, the next of the same header is, and anything else is not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from swapping import WEIGHTS, made_of, refusal, saved
from torch import Tensor

from inarch.adapters import Model
from inarch.errors import InarchError
from inarch.weights import read_header


@pytest.fixture
def plugin(base: Model) -> Any:
    """The class of the adapter that these files are of."""
    return type(base.adapt("lowrank").adapters[0].adapter)


@pytest.fixture
def asked(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that the plugin was asked to make edits of."""
    found: list[Path] = []
    edits = plugin.edits

    def noted(self: Any, sites: Any, weights: Any) -> Any:
        if weights is not None:
            found.append(weights.path.parent)
        return edits(self, sites, weights)

    monkeypatch.setattr(plugin, "edits", noted)
    return found


@pytest.mark.parametrize("trained", [False, True])
def test_a_file_like_one_before_is_read_and_not_looked_at_anew(
    base: Model, x: Tensor, files: list[Path], asked: list[Path], trained: bool
) -> None:
    model = made_of(base, files[0])
    expected = [made_of(base, file).tree(x) for file in files]
    if trained:
        model.adapter_parameters("lowrank")["layers.0.fc.down"].detach().add_(1)
    asked.clear()
    for i in (1, 2, 0, 1):
        model.swap("lowrank", files[i])
        assert torch.equal(model.tree(x), expected[i])
    first = model.prepare("lowrank", files[0])
    model.swap("lowrank", model.prepare("lowrank", files[2]))
    model.swap("lowrank", first)
    assert torch.equal(model.tree(x), expected[0])
    # What changed since it was filled is not known to be as its file has it.
    assert asked == ([files[1]] if trained else [])


def test_one_that_was_made_of_no_file_knows_the_second_by_the_first(
    base: Model, x: Tensor, files: list[Path], asked: list[Path]
) -> None:
    model = base.adapt("lowrank")
    for file in files:
        model.swap("lowrank", file)
    assert asked == [files[0]]
    assert torch.equal(model.tree(x), made_of(base, files[2]).tree(x))


def test_a_file_in_another_dtype_is_cast_each_time(
    base: Model, x: Tensor, files: list[Path], asked: list[Path]
) -> None:
    model = made_of(base, files[0])
    for file in files:
        half = {k: v.half() for k, v in load_file(file / WEIGHTS).items()}
        save_file(half, file / WEIGHTS)
        model.swap("lowrank", file)
        assert torch.equal(model.tree(x), made_of(base, file).tree(x))
        assert model.digest == made_of(base, file).digest


@pytest.mark.parametrize("what", ["strings", "settings", "dtypes"])
def test_a_file_that_differs_in_anything_is_looked_at_anew(
    base: Model, x: Tensor, files: list[Path], asked: list[Path], what: str
) -> None:
    model = made_of(base, files[0])
    model.swap("lowrank", files[0])
    tensors = load_file(files[1] / WEIGHTS)
    strings = read_header(files[1] / WEIGHTS).metadata
    if what == "strings":
        save_file(tensors, files[1] / WEIGHTS, {**strings, "inarch.asks": '{"steps": 4}'})
    elif what == "settings":
        (files[1] / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    else:
        doubled = {k: v.double() if "down" in k else v for k, v in tensors.items()}
        save_file(doubled, files[1] / WEIGHTS, strings)
    asked.clear()
    model.swap("lowrank", files[1])
    assert asked == [files[1]]
    assert model.asks == ({"steps": 4} if what == "strings" else {})
    assert torch.equal(model.tree(x), made_of(base, files[1]).tree(x))


def test_after_files_of_one_structure_another_structure_still_says_why_it_is_refused(
    base: Model, x: Tensor, files: list[Path], tmp_path: Path
) -> None:
    model = made_of(base, files[0])
    for file in files[1:]:
        model.swap("lowrank", file)
    expected = model.tree(x)
    error = refusal(model, saved(base, tmp_path / "wide", 7, rank=3))
    assert "layers.0.fc: down is [3, 6], and the adapter's is [2, 6]" in error.why
    renamed = {k.replace("s.1", "s.9"): v for k, v in load_file(files[0] / WEIGHTS).items()}
    save_file(renamed, tmp_path / "renamed.safetensors")
    assert "layers.1.fc" in str(refusal(model, tmp_path / "renamed.safetensors"))
    assert refusal(model, tmp_path / "nowhere").code == "IA201"
    pickle_ = tmp_path / "weights.bin"
    pickle_.write_bytes((files[0] / WEIGHTS).read_bytes())
    assert refusal(model, pickle_).code == "IA203"
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(
        (files[0] / WEIGHTS).read_bytes().replace(b"layers", b"\xd6\xd6\xd6\xd6\xd6\xd6")
    )
    assert refusal(model, broken).code == "IA202"
    assert torch.equal(model.tree(x), expected)


def test_a_file_that_changes_while_it_is_read_changes_nothing(
    base: Model, x: Tensor, files: list[Path]
) -> None:
    model = made_of(base, files[0])
    model.swap("lowrank", files[1])
    expected, member = model.tree(x), model.adapters["lowrank"]
    [pattern] = member.slot.patterns
    draft = pattern.of(model, member, files[2])
    assert draft is not None
    file = files[2] / WEIGHTS
    whole = file.read_bytes()
    for changed in (whole[:-8], whole + b"12345678"):
        file.write_bytes(changed)
        with pytest.raises(InarchError) as caught:
            pattern.flats(draft)
        assert caught.value.code == "IA202"
    assert torch.equal(model.tree(x), expected)


def test_an_adapter_that_does_not_say_so_is_made_anew_of_each_file(
    base: Model,
    files: list[Path],
    plugin: Any,
    asked: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugin, "by_header", False)
    model = made_of(base, files[0])
    asked.clear()
    for file in files[1:]:
        model.swap("lowrank", file)
    assert asked == files[1:]


def test_a_copy_of_a_model_has_memory_and_knowledge_of_its_own(
    base: Model, x: Tensor, files: list[Path]
) -> None:
    model = made_of(base, files[0])
    model.swap("lowrank", files[1])
    twin = copy.deepcopy(model)
    assert twin.adapters["lowrank"].slot.patterns == ()
    for file in (files[2], files[0], files[2]):
        twin.swap("lowrank", file)
        assert torch.equal(twin.tree(x), made_of(base, file).tree(x))
    assert torch.equal(model.tree(x), made_of(base, files[1]).tree(x))
