"""What doesn't fit is refused by name, whatever else of the file does."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import inarch
from inarch.errors import InarchError

FIRST = "model.layers.0.output_adapters.adapters.mine.adapter_down.0.weight"


def refusal(case: Any) -> InarchError:
    before = {k: v.clone() for k, v in case.model.state_dict().items()}
    with pytest.raises(InarchError) as caught:
        case.model.adapt(inarch.adapter("bottleneck", weights=case.folder))
    after = case.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    return caught.value


def change_settings(case: Any, **changes: Any) -> None:
    file = case.folder / "adapter_config.json"
    settings = json.loads(file.read_text())
    settings["config"] |= changes
    file.write_text(json.dumps(settings))


def change_tensors(case: Any, change: Any) -> None:
    file = case.folder / "adapter.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_gating", True),
        ("inv_adapter", "nice"),
        ("phm_layer", True),
        ("cross_adapter", True),
        ("architecture", "lora"),
        ("non_linearity", "prelu"),
        ("scaling", "often"),
        ("dropout", "often"),
        ("stochastic_depth", 2),
        ("leave_out", 3),
        ("leave_out", ["x"]),
        ("original_ln_after", False),
        ("residual_before_ln", False),
        ("residual_before_ln", "post_add"),
    ],
)
def test_a_setting_that_is_not_had_is_named(pfeiffer: Any, setting: str, value: Any) -> None:
    change_settings(pfeiffer, **{setting: value})
    error = refusal(pfeiffer)
    named = setting if setting != "original_ln_after" else "residual_before_ln"
    assert (
        error.code,
        f"adapter_config.json: {named}"
        in error.where.replace("adapter.safetensors", "adapter_config.json"),
    ) == ("IA433", True)


def test_a_norm_of_a_sum_that_is_no_value_of_the_block_is_refused(pfeiffer: Any) -> None:
    change_settings(pfeiffer, ln_after=True, adapter_residual_before_ln=True)
    error = refusal(pfeiffer)
    assert (error.code, "adapter_residual_before_ln" in error.where) == ("IA433", True)


@pytest.mark.parametrize("settings", [{"peft_type": "LORA"}, {"config": -1}])
def test_a_folder_of_another_library_is_refused(pfeiffer: Any, settings: Any) -> None:
    (pfeiffer.folder / "adapter_config.json").write_text(json.dumps(settings))
    error = refusal(pfeiffer)
    assert (error.code, "config" in error.where) == ("IA433", True)


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        FIRST.replace("layers.0", "layers.9"),
        FIRST.replace(".mine.", ".other."),
        FIRST.replace("adapter_down.0.weight", "gate.weight"),
        FIRST.replace("adapter_down.0", "adapter_norm_before"),
        FIRST.replace("output_adapters", "cross_adapters"),
    ],
)
def test_a_key_that_is_no_bottleneck_s_of_this_model_is_named(pfeiffer: Any, key: str) -> None:
    change_tensors(pfeiffer, lambda t: t.update({key: torch.ones(2, 8)}))
    error = refusal(pfeiffer)
    assert (error.code, error.where.endswith(f": {key}")) == ("IA434", True)


def test_a_wrong_shape_is_named_with_both(pfeiffer: Any) -> None:
    change_tensors(pfeiffer, lambda t: t.update({FIRST: torch.ones(2, 7)}))
    error = refusal(pfeiffer)
    assert error.code == "IA411"
    assert f"{FIRST} is [2, 7], the site needs [2, 8]" in error.why


def test_half_a_bottleneck_is_named(pfeiffer: Any) -> None:
    change_tensors(pfeiffer, lambda t: t.pop(FIRST))
    error = refusal(pfeiffer)
    assert (error.code, "layers.0.after_mlp (down_weight)" in error.why) == ("IA411", True)


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("reduction_factor", 2, FIRST),
        ("mh_adapter", True, "layers.0 (attention)"),
        ("output_adapter", False, "layers.0.output_adapters"),
        ("leave_out", [1], "layers.1.output_adapters"),
        ("reduction_factor", {"0": 4}, "reduction_factor"),
        ("reduction_factor", 0, "reduction_factor"),
    ],
)
def test_settings_that_the_file_denies_are_named(
    pfeiffer: Any, setting: str, value: Any, named: str
) -> None:
    change_settings(pfeiffer, **{setting: value})
    error = refusal(pfeiffer)
    assert (error.code, named in error.where) == ("IA435", True)


def test_a_norm_whose_two_keys_differ_is_refused(norms: Any) -> None:
    key = next(key for key in norms.saved if key.endswith("adapter_norm_before.bias"))
    change_tensors(norms, lambda t: t[key].add_(1))
    error = refusal(norms)
    assert (error.code, error.where.endswith(f": {key}")) == ("IA435", True)


def test_a_pickle_is_refused(pfeiffer: Any) -> None:
    (pfeiffer.folder / "adapter.safetensors").unlink()
    torch.save(pfeiffer.saved, pfeiffer.folder / "pytorch_adapter.bin")
    assert refusal(pfeiffer).code == "IA203"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"kind": "compacter"}, "IA401"),
        ({"reduction": 0}, "IA401"),
        ({"dropout": 1.0}, "IA401"),
        ({"rank": 4}, "IA401"),
        ({"activation": "prelu"}, "IA433"),
        ({"attention": False, "mlp": False}, "IA433"),
        ({"leave_out": [0, 1]}, "IA433"),
        ({"reduction": {"0": 4}}, "IA435"),
    ],
)
def test_an_option_outside_of_its_range_is_refused(
    pfeiffer: Any, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(InarchError) as caught:
        pfeiffer.model.adapt(inarch.adapter("bottleneck", **options))
    assert caught.value.code == code
