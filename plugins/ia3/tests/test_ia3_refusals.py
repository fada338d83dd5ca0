"""What doesn't fit is refused by name, whatever else of the file does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import inarch
from inarch.errors import InarchError

FIRST = "base_model.model.model.layers.0.self_attn.k_proj.ia3_l"


@pytest.fixture
def saved(llamas: tuple[Any, Any], tmp_path: Path) -> Path:
    return llamas[1].adapt("ia3").save_adapter("ia3", tmp_path / "saved")


def refusal(model: Any, folder: Path) -> InarchError:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InarchError) as caught:
        model.adapt(inarch.adapter("ia3", weights=folder))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    return caught.value


def change_settings(folder: Path, **changes: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def change_tensors(folder: Path, change: Any) -> Path:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("peft_type", "LORA"),
        ("modules_to_save", ["lm_head"]),
        ("target_modules", 3),
        ("feedforward_modules", "down_proj("),
    ],
)
def test_a_setting_that_is_not_had_is_named(
    llamas: tuple[Any, Any], saved: Path, setting: str, value: Any
) -> None:
    error = refusal(llamas[1], change_settings(saved, **{setting: value}))
    assert (error.code, setting in error.where) == ("IA432", True)


def test_a_key_that_is_no_vector_is_named(llamas: tuple[Any, Any], saved: Path) -> None:
    key = FIRST.replace("ia3_l", "lora_A.weight")
    error = refusal(llamas[1], change_tensors(saved, lambda t: t.update({key: torch.ones(1)})))
    assert (error.code, key in error.where) == ("IA431", True)


def test_a_layer_the_model_does_not_have_is_named(llamas: tuple[Any, Any], saved: Path) -> None:
    key = FIRST.replace("layers.0", "layers.9")
    error = refusal(llamas[1], change_tensors(saved, lambda t: t.update({key: torch.ones(8, 1)})))
    assert (error.code, key in error.where) == ("IA431", True)


def test_a_wrong_shape_is_named_with_both(llamas: tuple[Any, Any], saved: Path) -> None:
    error = refusal(llamas[1], change_tensors(saved, lambda t: t.update({FIRST: torch.ones(5, 1)})))
    assert error.code == "IA411"
    assert f"{FIRST} is [5, 1], the site needs" in error.why


def test_a_target_the_file_has_nothing_for_is_named(llamas: tuple[Any, Any], saved: Path) -> None:
    error = refusal(llamas[1], change_tensors(saved, lambda t: t.pop(FIRST)))
    assert (error.code, "layers.0.self_attn.k_proj" in error.where) == ("IA432", True)


def test_settings_that_take_an_output_for_an_input_are_refused(
    llamas: tuple[Any, Any], saved: Path
) -> None:
    error = refusal(llamas[1], change_settings(saved, feedforward_modules=["k_proj"]))
    assert (error.code, FIRST in error.why) == ("IA411", True)


def test_a_square_convolution_without_settings_can_not_be_told(
    layered: tuple[Any, ...], tmp_path: Path
) -> None:
    name, _, ours, _ = layered
    ours.adapt(inarch.adapter("ia3", targets=["layer"])).save_adapter("ia3", tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    if name != "square_conv2d":
        ours.adapt(inarch.adapter("ia3", weights=tmp_path))
        return
    error = refusal(ours, tmp_path)
    assert (error.code, "layer.ia3_l" in error.where) == ("IA432", True)


def test_a_target_that_is_no_layer_is_refused(llamas: tuple[Any, Any]) -> None:
    for target in ("block", "attention.attend"):
        with pytest.raises(InarchError) as caught:
            llamas[1].adapt(inarch.adapter("ia3", targets=[target]))
        assert (caught.value.code, "layers.0" in caught.value.where) == ("IA430", True)


def test_a_feedforward_layer_that_is_no_target_is_refused(llamas: tuple[Any, Any]) -> None:
    with pytest.raises(InarchError) as caught:
        llamas[1].adapt(inarch.adapter("ia3", targets=["attention.key"], feedforward=["mlp.down"]))
    assert caught.value.code == "IA401"


def test_an_option_it_does_not_have_is_refused(llamas: tuple[Any, Any]) -> None:
    with pytest.raises(InarchError) as caught:
        llamas[1].adapt(inarch.adapter("ia3", rank=4))
    assert caught.value.code == "IA401"
