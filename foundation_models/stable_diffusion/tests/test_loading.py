"""Pipelines' folders: strict, all or nothing, in the variants and old names that are published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_pipelines import saved

import inarch
from inarch.errors import InarchError

STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return saved(tmp_path_factory.mktemp("made"), xl=True)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def rewritten(path: Path, change: Any) -> None:
    state = load_file(path)
    save_file({k: v.contiguous() for k, v in change(state).items()}, path)


def test_every_tree_has_the_very_tensors_of_its_folder(folder: Path) -> None:
    model = inarch.load(folder)
    assert list(model.trees) == ["unet", "vae", "text_encoder", "text_encoder_2"]
    for name in ("unet", "vae"):
        state = load_file(folder / name / f"{STEM}.safetensors")
        own = model.trees[name].state_dict()
        assert set(state) == set(own)
        assert all(torch.equal(own[key], state[key]) for key in state)
    second = load_file(folder / "text_encoder_2" / "model.safetensors")
    assert set(second) == set(model.trees["text_encoder_2"].state_dict())


def test_text_encoders_are_read_with_their_towers_name_and_without(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    before = inarch.load(folder).trees["text_encoder"].state_dict()

    def published(state: dict[str, Any]) -> dict[str, Any]:
        named = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
        return named | {"text_model.embeddings.position_ids": torch.arange(77)[None]}

    rewritten(path, published)
    after = inarch.load(folder).trees["text_encoder"].state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_the_old_names_of_the_autoencoders_attention_are_read(folder: Path) -> None:
    path = folder / "vae" / f"{STEM}.safetensors"
    before = inarch.load(folder).trees["vae"].state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def aged(state: dict[str, Any]) -> dict[str, Any]:
        for new, name in old.items():
            state = {
                k.replace(f"attentions.0.{new}", f"attentions.0.{name}"): v
                for k, v in state.items()
            }
        return state

    rewritten(path, aged)
    assert any("proj_attn" in key for key in load_file(path))
    after = inarch.load(folder).trees["vae"].state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_half_precision_variants_are_found_and_the_autoencoder_stays_in_float32(
    folder: Path,
) -> None:
    for path in folder.rglob("*.safetensors"):
        rewritten(path, lambda state: {k: v.half() for k, v in state.items()})
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    model = inarch.load(folder)
    kinds = {name: next(tree.parameters()).dtype for name, tree in model.trees.items()}
    assert kinds.pop("vae") is torch.float32
    assert set(kinds.values()) == {torch.float16}
    assert next(inarch.load(folder, dtype="bfloat16").trees["vae"].parameters()).dtype is (
        torch.bfloat16
    )


def test_shards_of_a_part_are_put_together(folder: Path) -> None:
    unet = folder / "unet"
    before = inarch.load(folder)
    own, fingerprint = before.trees["unet"].state_dict(), before.fingerprint()
    state = load_file(unet / f"{STEM}.safetensors")
    (unet / f"{STEM}.safetensors").unlink()
    where = {}
    for i in range(2):
        file = f"{STEM}-{i + 1:05}-of-00002.safetensors"
        some = dict(list(state.items())[i::2])
        save_file(some, unet / file)
        where |= dict.fromkeys(some, file)
    (unet / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    after = inarch.load(folder)
    assert all(torch.equal(t, own[k]) for k, t in after.trees["unet"].state_dict().items())
    assert after.fingerprint() == fingerprint


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("unet", f"{STEM}.safetensors"),
        ("vae", f"{STEM}.safetensors"),
        ("text_encoder_2", "model.safetensors"),
    ],
)
@pytest.mark.parametrize("wrong", ["missing", "unexpected", "misshaped"])
def test_a_tensor_that_does_not_fit_is_named_with_its_folder(
    folder: Path, part: str, file: str, wrong: str
) -> None:
    path = folder / part / file
    key = sorted(load_file(path))[0]

    def broken(state: dict[str, Any]) -> dict[str, Any]:
        if wrong == "missing":
            state.pop(key)
        elif wrong == "unexpected":
            state["more.weight"] = torch.ones(1)
        else:
            state[key] = torch.ones(*state[key].shape, 2)
        return state

    rewritten(path, broken)
    with pytest.raises(InarchError) as error:
        inarch.load(folder)
    assert error.value.code == "IA206"
    named = "more.weight" if wrong == "unexpected" else key
    assert f"{part}.{named}" in str(error.value)
    assert wrong in error.value.what


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder_2"])
def test_a_folder_that_is_missing_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(InarchError) as error:
        inarch.load(folder)
    assert error.value.code == "IA204"
    assert error.value.where.endswith(part)


def test_parts_nothing_here_needs_are_passed_over(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"PK")
    assert set(inarch.load(folder).trees) == {"unet", "vae", "text_encoder", "text_encoder_2"}


def test_the_folder_of_a_unet_alone_loads_and_says_what_it_can_not_do(folder: Path) -> None:
    model = inarch.load(folder / "unet")
    whole = inarch.load(folder)
    assert list(model.trees) == ["unet"]
    own = whole.trees["unet"].state_dict()
    assert all(torch.equal(t, own[k]) for k, t in model.trees["unet"].state_dict().items())
    with pytest.raises(InarchError) as error:
        model.text_to_image("a red boat", steps=1, height=16, width=16)
    assert error.value.code == "IA506"


def test_without_a_tokenizer_a_prompt_is_refused_by_the_folder_that_is_missing(
    folder: Path,
) -> None:
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(InarchError) as error:
        inarch.load(folder).text_to_image("a boat", steps=1, height=16, width=16)
    assert error.value.code == "IA506"
    assert error.value.where.endswith("tokenizer_2")


def test_the_fingerprint_follows_each_part(folder: Path) -> None:
    before = inarch.load(folder).fingerprint()
    assert inarch.load(folder).fingerprint() == before
    rewritten(
        folder / "vae" / f"{STEM}.safetensors",
        lambda state: {k: v + (k == "quant_conv.bias") for k, v in state.items()},
    )
    assert inarch.load(folder).fingerprint() != before
