"""What a T2I-Adapter asks for, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_t2i import t2i

import inarch
from inarch.adapters import Request
from inarch.errors import InarchError
from inarch_stable_diffusion.beside_diffusers import Pair

Make = Callable[..., Pair]


def test_its_input_is_listed_and_its_absence_is_clear(make_pair: Make, tmp_path: Path) -> None:
    t2i("grey", tmp_path)
    spec = inarch.adapter("t2i-adapter", weights=tmp_path, name="sketch")
    model = make_pair("deep").model.adapt(spec)
    assert "sketch_image" in model.inputs
    request = Request(64, 128, 1, False, torch.device("cpu"), torch.float32)
    with pytest.raises(InarchError) as raised:
        model.read_inputs({}, request)
    assert raised.value.what == (
        "t2i-adapter `sketch` needs `sketch_image`: [batch, 1, height, width] in 0..1"
    )


def test_a_size_that_its_squares_do_not_fill_is_refused(make_pair: Make) -> None:
    model = make_pair("xl").model.adapt(inarch.adapter("t2i-adapter", name="s", kind="full_xl"))
    request = Request(72, 128, 1, False, torch.device("cpu"), torch.float32)
    with pytest.raises(InarchError) as raised:
        model.read_inputs({"s_image": torch.rand(1, 3, 72, 128)}, request)
    assert raised.value.code == "IA505"
    assert "multiples of 16" in raised.value.remedy


def test_it_rests_as_diffusers_conditioning_factor_says(make_pair: Make) -> None:
    model = make_pair("deep").model.adapt(inarch.adapter("t2i-adapter", name="s", end=0.45))
    count = 10
    acting = [not model.resting(i / count, (i + 1) / count) for i in range(count)]
    assert acting == [i < int(count * 0.45) for i in range(count)]


def test_features_of_other_channels_are_refused(make_pair: Make, tmp_path: Path) -> None:
    t2i("xl", tmp_path)
    with pytest.raises(InarchError) as raised:
        make_pair("deep").model.adapt(inarch.adapter("t2i-adapter", weights=tmp_path))
    assert raised.value.code == "IA456"


@pytest.mark.parametrize("key", ["adapter.body.2.resnets.1.block2.bias", "adapter.extra.bias"])
def test_a_missing_and_an_unknown_key_are_refused(
    make_pair: Make, tmp_path: Path, key: str
) -> None:
    t2i("full", tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    if tensors.pop(key, None) is None:
        tensors[key] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(InarchError) as raised:
        make_pair("deep").model.adapt(inarch.adapter("t2i-adapter", weights=tmp_path))
    assert raised.value.code == "IA411"
    assert key in raised.value.why


def test_a_file_of_something_else_is_refused(make_pair: Make, tmp_path: Path) -> None:
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "it.safetensors")
    spec = inarch.adapter("t2i-adapter", weights=tmp_path / "it.safetensors")
    with pytest.raises(InarchError) as raised:
        make_pair("deep").model.adapt(spec)
    assert raised.value.code == "IA455"


@pytest.mark.parametrize("options", [{"start": 0.6, "end": 0.4}, {"kind": "other"}, {"layers": 0}])
def test_options_out_of_range_are_refused(make_pair: Make, options: dict[str, Any]) -> None:
    with pytest.raises(InarchError) as raised:
        make_pair("deep").model.adapt(inarch.adapter("t2i-adapter", **options))
    assert raised.value.code == "IA401"
