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


@pytest.fixture
def saved(llamas: tuple[Any, Any], tmp_path: Path) -> Path:
    _, ours = llamas
    return ours.adapt(inarch.adapter("lora", rank=2)).save_adapter("lora", tmp_path / "saved")


def refusal(model: Any, folder: Path) -> InarchError:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InarchError) as caught:
        model.adapt(inarch.adapter("lora", weights=folder))
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


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("modules_to_save", ["lm_head"]),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["x"]),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("peft_type", "IA3"),
    ],
)
def test_a_setting_that_would_change_the_result_is_named(
    llamas: tuple[Any, Any], saved: Path, setting: str, value: Any
) -> None:
    error = refusal(llamas[1], change_settings(saved, **{setting: value}))
    assert error.code == "IA424"
    assert setting in error.where


def test_a_key_that_is_no_lora_s_is_named(llamas: tuple[Any, Any], saved: Path) -> None:
    key = f"{FIRST}.lora_C.weight"
    change_tensors(saved, lambda t: t.update({key: torch.ones(1)}))
    error = refusal(llamas[1], saved)
    assert (error.code, key in error.where) == ("IA423", True)


def test_a_layer_the_model_does_not_have_is_named(llamas: tuple[Any, Any], saved: Path) -> None:
    key = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"
    change_tensors(saved, lambda t: t.update({key: torch.ones(2, 16)}))
    error = refusal(llamas[1], saved)
    assert (error.code, "layers.9" in error.what) == ("IA425", True)


def test_half_a_lora_is_named(llamas: tuple[Any, Any], saved: Path) -> None:
    change_tensors(saved, lambda t: t.pop(f"{FIRST}.lora_B.weight"))
    error = refusal(llamas[1], saved)
    assert (error.code, "layers.0.self_attn.q_proj (lora_B)" in error.why) == ("IA411", True)


def test_a_wrong_shape_is_named_with_both(llamas: tuple[Any, Any], saved: Path) -> None:
    change_tensors(saved, lambda t: t.update({f"{FIRST}.lora_B.weight": torch.ones(15, 2)}))
    error = refusal(llamas[1], saved)
    assert error.code == "IA411"
    assert "[15, 2], the site needs [16, 2]" in error.why


def test_a_rank_the_settings_deny_is_named(llamas: tuple[Any, Any], saved: Path) -> None:
    error = refusal(llamas[1], change_settings(saved, r=4))
    assert error.code == "IA426"


def test_a_target_the_file_has_nothing_for_is_named(llamas: tuple[Any, Any], saved: Path) -> None:
    for part in ("lora_A", "lora_B"):
        change_tensors(saved, lambda t, p=part: t.pop(f"{FIRST}.{p}.weight"))
    error = refusal(llamas[1], saved)
    assert (error.code, "model.layers.0.self_attn.q_proj" in error.where) == ("IA426", True)


def test_an_adapter_of_another_base_is_refused(llamas: tuple[Any, Any], saved: Path) -> None:
    theirs, _ = llamas
    with torch.no_grad():
        theirs.lm_head.weight.add_(1.0)
    theirs.save_pretrained(saved.parent / "other")
    error = refusal(inarch.load(saved.parent / "other"), saved)
    assert error.code == "IA410"


def test_a_target_without_a_weight_is_refused(llamas: tuple[Any, Any]) -> None:
    with pytest.raises(InarchError) as caught:
        llamas[1].adapt(inarch.adapter("lora", targets=["block"]))
    assert caught.value.code == "IA421"


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"rank": "4"}, {"dropout": 1.0}, {"bias": "some"}, {"targts": ["a"]}]
)
def test_an_option_outside_of_its_range_is_refused(
    llamas: tuple[Any, Any], options: dict[str, Any]
) -> None:
    with pytest.raises(InarchError) as caught:
        llamas[1].adapt(inarch.adapter("lora", **options))
    assert caught.value.code == "IA401"


def test_a_file_without_settings_has_alpha_equal_to_rank(
    llamas: tuple[Any, Any], saved: Path
) -> None:
    (saved / "adapter_config.json").unlink()
    adapted = llamas[1].adapt(inarch.adapter("lora", weights=saved / "adapter_model.safetensors"))
    edge = adapted.adapters["lora"].modules["model.layers.0.self_attn.q_proj"]
    assert (edge.rank, edge.scaling) == (2, 1.0)
