"""Checkpoints as they lie in folders, of each class and age."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import inarch
from inarch.errors import InarchError
from inarch_clip.config import parse


@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPVisionModel"])
def test_names_with_and_without_their_tower_are_the_same_model(
    theirs: Any, saved: Any, kind: str
) -> None:
    folder = saved(theirs(kind))
    tower = "text_model" if "Text" in kind else "vision_model"
    bare = inarch.load(folder).state_dict()
    tensors = load_file(folder / "model.safetensors")
    assert not any(name.startswith(tower) for name in tensors)
    save_file({f"{tower}.{n}": t for n, t in tensors.items()}, folder / "model.safetensors")
    published = inarch.load(folder).state_dict()
    assert set(published) == set(bare)
    assert all(torch.equal(published[name], bare[name]) for name in bare)


def test_positions_that_old_files_hold_are_passed_over(theirs: Any, saved: Any) -> None:
    folder = saved(theirs("CLIPModel"))
    tensors = load_file(folder / "model.safetensors")
    for tower, count in (("text_model", 24), ("vision_model", 10)):
        tensors[f"{tower}.embeddings.position_ids"] = torch.arange(count)[None]
    save_file(tensors, folder / "model.safetensors")
    assert "text_model.embeddings.position_ids" not in inarch.load(folder).state_dict()


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_checkpoint_that_does_not_fit_is_refused(theirs: Any, saved: Any, change: str) -> None:
    folder = saved(theirs("CLIPTextModel"))
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layers.1.mlp.fc1.bias"
    if change == "missing":
        del tensors[name]
    else:
        tensors["encoder.layers.9.mlp.fc1.bias"] = tensors[name].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InarchError) as caught:
        inarch.load(folder)
    assert caught.value.code == "IA206"
    assert "mlp.fc1.bias" in str(caught.value)


def test_the_old_form_of_a_tower_s_settings_counts(theirs: Any, saved: Any) -> None:
    folder = saved(theirs("CLIPModel", text_config={"hidden_act": "gelu"}))
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["text_config_dict"] = config.pop("text_config")
    file.write_text(json.dumps(config))
    assert inarch.load(folder).config.text.hidden_act == "gelu"


def test_what_a_file_leaves_out_is_what_transformers_takes() -> None:
    transformers = pytest.importorskip("transformers")
    ours, expected = parse({"model_type": "clip"}), transformers.CLIPConfig()
    for part, config in ((ours.text, expected.text_config), (ours.vision, expected.vision_config)):
        for name in part.__struct_fields__:
            if name not in ("eos_token_id", "projection_dim"):
                assert getattr(part, name) == getattr(config, name), name
    assert ours.text.eos_token_id == expected.text_config.eos_token_id
    assert ours.text.projection_dim == ours.vision.projection_dim == expected.projection_dim


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ({"hidden_act": "mish"}, "mish"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"eos_token_id": [98, 99]}, "eos_token_id"),
    ],
    ids=str,
)
def test_settings_that_make_another_model_are_refused_by_name(
    setting: dict[str, Any], names: str
) -> None:
    with pytest.raises(InarchError) as caught:
        parse({"model_type": "clip_text_model", **setting})
    assert caught.value.code == "IA210"
    assert names in str(caught.value)


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(InarchError) as caught:
        parse({"model_type": "clip_vision_model", "image_size": [224, 112]})
    assert caught.value.code == "IA210"
    square = parse({"model_type": "clip_vision_model", "image_size": [224, 224]})
    assert square.vision is not None
    assert square.vision.image_size == 224


def test_one_tower_has_one_task(theirs: Any, saved: Any, tmp_path: Path) -> None:
    text = inarch.load(saved(theirs("CLIPTextModel")))
    vision = inarch.load(saved(theirs("CLIPVisionModel")))
    for model, call in (
        (text, lambda: text.embed_image(torch.zeros(3, 4, 4))),
        (vision, lambda: vision.embed_text("a cat")),
        (text, lambda: text(torch.tensor([[1]]), torch.zeros(1, 3, 30, 30))),
    ):
        with pytest.raises(InarchError) as caught:
            call()
        assert caught.value.code == "IA506"
        assert str(model.checkpoint.path) in str(caught.value)
