"""What doesn't fit is refused by name, whatever else of the file does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
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


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lora_alpha", "8"),
        ("lora_alpha", True),
        ("lora_alpha", float("nan")),
        ("alpha_pattern", {"q_proj": "4"}),
        ("alpha_pattern", ["q_proj"]),
        ("r", "two"),
        ("r", None),
        ("r", 0),
        ("rank_pattern", {"q_proj(": 2}),
        ("lora_dropout", "often"),
        ("target_modules", 3),
        ("target_modules", "q_proj("),
        ("layers_to_transform", "0"),
        ("peft_type", ["LORA"]),
    ],
)
def test_a_setting_that_can_t_be_what_it_is_is_named(
    llamas: tuple[Any, Any], saved: Path, setting: str, value: Any
) -> None:
    error = refusal(llamas[1], change_settings(saved, **{setting: value}))
    assert (error.code, f": {setting} = " in error.where) == ("IA426", True)


@pytest.mark.parametrize("shape", [(), (0,), (0, 16)])
@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_a_lora_without_a_rank_is_named(
    llamas: tuple[Any, Any], tmp_path: Path, form: str, shape: tuple[int, ...]
) -> None:
    made = llamas[1].adapt(inarch.adapter("lora", rank=2, format=form))
    file = next(made.save_adapter("lora", tmp_path / "saved").glob("*.safetensors"))
    tensors = load_file(file)
    first = next(key for key in tensors if "lora_A" in key or "lora_down" in key)
    save_file({**tensors, first: torch.ones(shape)}, file)
    error = refusal(llamas[1], tmp_path / "saved")
    assert (error.code, first in error.where) == ("IA426", True)


@pytest.mark.parametrize("value", [torch.tensor(float("nan")), torch.ones(2), torch.ones(0)])
def test_an_alpha_of_a_file_that_is_no_number_is_named(
    llamas: tuple[Any, Any], tmp_path: Path, value: torch.Tensor
) -> None:
    made = llamas[1].adapt(inarch.adapter("lora", rank=2, format="kohya"))
    file = next(made.save_adapter("lora", tmp_path / "saved").glob("*.safetensors"))
    tensors = load_file(file)
    alpha = next(key for key in tensors if key.endswith(".alpha"))
    save_file({**tensors, alpha: value}, file)
    error = refusal(llamas[1], tmp_path / "saved")
    assert (error.code, alpha in error.where) == ("IA426", True)


def test_weights_that_are_integers_are_refused(llamas: tuple[Any, Any], saved: Path) -> None:
    def rounded(tensors: dict[str, Any]) -> None:
        for key, tensor in tensors.items():
            tensors[key] = (tensor * 100).to(torch.int8)

    error = refusal(llamas[1], change_tensors(saved, rounded))
    assert (error.code, "int8" in error.why) == ("IA411", True)


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
    "options",
    [
        {"rank": 0},
        {"rank": "4"},
        {"dropout": 1.0},
        {"bias": "some"},
        {"targts": ["a"]},
        {"targets": []},
        {"alpha": float("nan")},
        {"alpha_pattern": {"q_proj": float("inf")}},
        {"block_scales": {"model.layers.0": float("nan")}},
        {"rank_pattern": {"q_proj(": 2}},
    ],
)
def test_an_option_outside_of_its_range_is_refused(
    llamas: tuple[Any, Any], options: dict[str, Any]
) -> None:
    with pytest.raises(InarchError) as caught:
        llamas[1].adapt(inarch.adapter("lora", **options))
    assert caught.value.code == "IA401"


def test_a_file_of_peft_without_its_settings_needs_to_be_told_alpha(
    llamas: tuple[Any, Any], saved: Path
) -> None:
    (saved / "adapter_config.json").unlink()
    file = saved / "adapter_model.safetensors"
    for place in (saved, file):
        error = refusal(llamas[1], place)
        assert (error.code, "alpha=2" in error.remedy) == ("IA436", True)
    told = inarch.adapter("lora", weights=file, alpha=6)
    edge = llamas[1].adapt(told).adapters["lora"].modules[FIRST.removeprefix("base_model.model.")]
    assert (edge.rank, edge.scaling) == (2, 3.0)


def test_alpha_is_not_told_of_a_file_that_records_it(
    llamas: tuple[Any, Any], saved: Path, tmp_path: Path
) -> None:
    spec = inarch.adapter("lora", weights=saved, alpha=6)
    kohya = inarch.adapter("lora", rank=2, format="kohya", name="flat")
    folder = llamas[1].adapt(kohya).save_adapter("flat", tmp_path / "flat")
    for one in (spec, inarch.adapter("lora", weights=folder, alpha=6)):
        with pytest.raises(InarchError) as caught:
            llamas[1].adapt(one)
        assert (caught.value.code, "`alpha`" in caught.value.what) == ("IA401", True)


@pytest.mark.parametrize(
    "options", [{"rank": 2}, {"targets": ["attention.*"]}, {"use_dora": True, "dropout": 0.1}]
)
def test_an_option_of_training_beside_weights_is_refused_by_name(
    llamas: tuple[Any, Any], saved: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(InarchError) as caught:
        llamas[1].adapt(inarch.adapter("lora", weights=saved, **options))
    assert caught.value.code == "IA401"
    assert all(f"`{option}`" in caught.value.remedy for option in options)


@pytest.mark.parametrize("targets", [["no_such_layer"], "nothing.*", ["k_proj"]])
def test_targets_that_are_not_the_file_s_layers_are_refused(
    llamas: tuple[Any, Any], saved: Path, targets: Any
) -> None:
    change_settings(saved, target_modules=targets)
    for part in ("lora_A", "lora_B"):
        change_tensors(saved, lambda t, p=part: only(t, "q_proj", p))
    error = refusal(llamas[1], saved)
    assert (error.code, "q_proj" in error.where) == ("IA426", True)


def test_targets_of_another_family_beside_the_file_s_are_taken_as_peft_takes_them(
    llamas: tuple[Any, Any], saved: Path
) -> None:
    theirs, ours = llamas
    file = saved / "adapter_config.json"
    targets = json.loads(file.read_text())["target_modules"]
    change_settings(saved, target_modules=[*targets, "query_key_value"])
    ids = torch.tensor([[1, 5, 2, 8]])
    expected = PeftModel.from_pretrained(theirs, saved)(ids).logits
    torch.testing.assert_close(ours.adapt(inarch.adapter("lora", weights=saved))(ids), expected)


def only(tensors: dict[str, Any], layer: str, part: str) -> None:
    for key in [key for key in tensors if f".{part}." in key and f".{layer}." not in key]:
        tensors.pop(key)
