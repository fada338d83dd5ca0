"""Single files of the original names: the same model as the folder, and as diffusers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_pipelines import TEXT, VAE, vocabulary

import inarch
from inarch.errors import InarchError
from inarch_stable_diffusion.beside_diffusers import SMALL, randomised
from inarch_stable_diffusion.original import (
    UNET,
    open_clip_table,
    unet_table,
    vae_table,
)
from inarch_stable_diffusion.original import VAE as FIRST_STAGE
from inarch_stable_diffusion.unet_config import parse_unet
from inarch_stable_diffusion.vae_config import parse_vae

WIDE = {**TEXT, "hidden_size": 64, "intermediate_size": 70, "num_attention_heads": 1}
BASE = {
    **SMALL,
    "block_out_channels": (32, 64),
    "norm_num_groups": 32,
    "attention_head_dim": 8,
    "cross_attention_dim": 64,
    "sample_size": 64,
}
LINEAR = {**BASE, "use_linear_projection": True, "attention_head_dim": (1, 1)}
DEEP = {
    **LINEAR,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "layers_per_block": 2,
    "cross_attention_dim": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 10 + 6 * 6,
}
AUTOENCODER = {**VAE, "block_out_channels": (32, 64), "norm_num_groups": 32}


def inverse(state: dict[str, Any], table: dict[str, str], prefix: str) -> dict[str, Any]:
    """A state dict of diffusers in the original names."""
    theirs = {ours: original for original, ours in table.items()}
    found: dict[str, Any] = {}
    for name, tensor in state.items():
        module = name
        while module not in theirs:
            module = module.rpartition(".")[0]
        if "mid_block.attentions" in name and "to_" in name and name.endswith("weight"):
            tensor = tensor[:, :, None, None] if prefix == FIRST_STAGE else tensor
        found[prefix + theirs[module] + name.removeprefix(module)] = tensor.contiguous()
    return found


def open_clip(model: Any, prefix: str, extra_layer: bool) -> dict[str, Any]:
    """A text tower of transformers in OpenCLIP's names."""
    state = {k if k.startswith("text_") else f"text_model.{k}": v for k, v in _state(model)}
    table = {ours: theirs for theirs, ours in open_clip_table(9).items()}
    found: dict[str, Any] = {}
    for name, tensor in state.items():
        module, _, last = name.rpartition(".")
        if module in table:
            found[f"{prefix}{table[module]}.{last}"] = tensor
    blocks = model.config.num_hidden_layers
    for i in range(blocks + extra_layer):
        at = f"text_model.encoder.layers.{min(i, blocks - 1)}.self_attn"
        block = f"{prefix}transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            three = [state[f"{at}.{one}_proj.{kind}"] for one in "qkv"]
            found[f"{block}.attn.in_proj_{kind}"] = torch.cat(three)
        if i == blocks:
            for key in [k for k in found if k.startswith(f"{prefix}transformer.resblocks.0.")]:
                found.setdefault(key.replace(".resblocks.0.", f".resblocks.{i}."), found[key] + 1)
    places = state["text_model.embeddings.position_embedding.weight"]
    found[f"{prefix}positional_embedding"] = places
    projection = state.get("text_projection.weight", torch.randn(10, 64))
    found[f"{prefix}text_projection"] = projection.T.contiguous()
    found[f"{prefix}logit_scale"] = torch.ones(())
    return found


def _state(model: Any) -> Any:
    return model.state_dict().items()


def made(path: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """A single file, and diffusers' parts it was made of."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    size = vocabulary(path / "tokenizer")
    ends = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1}
    config = transformers.CLIPTextConfig(**{**WIDE, **ends})
    second = transformers.CLIPTextConfig(**{**WIDE, **ends, "hidden_act": "gelu"})
    settings = {"sd1": BASE, "inpainting": {**BASE, "in_channels": 9}, "sd2": LINEAR, "xl": DEEP}
    parts: dict[str, Any] = {
        "unet": randomised(diffusers.UNet2DConditionModel(**settings[kind]), 1),
        "vae": randomised(diffusers.AutoencoderKL(**AUTOENCODER), 2),
        "text_encoder": randomised(
            transformers.CLIPTextModel(second if kind == "sd2" else config), 3
        ),
    }
    text = {
        k if k.startswith("text_") else f"text_model.{k}": v
        for k, v in parts["text_encoder"].state_dict().items()
    }
    unet, vae = parts["unet"], parts["vae"]
    state = inverse(unet.state_dict(), unet_table(parse_unet(dict(unet.config))), UNET)
    state |= inverse(vae.state_dict(), vae_table(parse_vae(dict(vae.config))), FIRST_STAGE)
    if kind == "sd2":
        state |= open_clip(parts["text_encoder"], "cond_stage_model.model.", extra_layer=True)
    elif kind == "xl":
        kindred = transformers.CLIPTextModelWithProjection(second)
        parts["text_encoder_2"] = randomised(kindred, 4)
        at = "conditioner.embedders."
        state |= {f"{at}0.transformer.{k}": v for k, v in text.items()}
        state |= open_clip(parts["text_encoder_2"], f"{at}1.model.", extra_layer=False)
    else:
        state |= {f"cond_stage_model.transformer.{k}": v for k, v in text.items()}
        ids = torch.arange(77)[None]
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = ids
        state |= {"alphas_cumprod": torch.ones(3), "model_ema.decay": torch.ones(())}
    save_file({k: v.clone() for k, v in state.items()}, path / "model.safetensors")
    return path / "model.safetensors", parts


@pytest.mark.parametrize("kind", ["sd1", "inpainting", "sd2", "xl"])
def test_a_file_holds_the_tensors_it_was_made_of(tmp_path: Path, kind: str) -> None:
    path, parts = made(tmp_path, kind)
    model = inarch.load(path)
    assert set(model.trees) == set(parts)
    for name, part in parts.items():
        actual = model.trees[name].state_dict()
        prefix = "text_model." if name == "text_encoder" else ""
        expected = {
            k if k.startswith("text_") else prefix + k: v for k, v in part.state_dict().items()
        }
        assert set(actual) == set(expected)
        for key, tensor in expected.items():
            assert torch.equal(actual[key], tensor), key
    theirs = parts["unet"].config
    again = parse_unet(dict(theirs))
    for field in ("widths", "depths", "up_depths", "mid_depth", "heads", "context", "added"):
        assert getattr(model.config.unet, field) == getattr(again, field), field


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_diffusers_converts_the_file_to_the_same_tensors(tmp_path: Path, kind: str) -> None:
    path, parts = made(tmp_path, kind)
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    from safetensors.torch import load_file

    state = load_file(path)
    model = inarch.load(path)
    unet = utils.convert_ldm_unet_checkpoint(dict(state), dict(parts["unet"].config))
    vae = utils.convert_ldm_vae_checkpoint(dict(state), dict(parts["vae"].config))
    for name, converted in (("unet", unet), ("vae", vae)):
        actual = model.trees[name].state_dict()
        assert set(actual) == set(converted)
        for key, tensor in converted.items():
            assert torch.equal(actual[key], tensor.reshape(actual[key].shape)), key


def test_an_image_is_made_with_the_tokenizer_beside_the_file(tmp_path: Path) -> None:
    path, _ = made(tmp_path, "xl")
    model = inarch.load(path)
    settings = {"steps": 2, "height": 16, "width": 16, "seed": 1, "output": "latents"}
    latents = model.text_to_image("a red boat", **settings)
    assert torch.isfinite(latents).all()
    assert model.tokenizers["text_encoder_2"].pad_token == "!"
    assert model.tokenizers["text_encoder"].pad_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("kind", "metadata", "expected"),
    [
        ("sd1", {}, "epsilon"),
        ("sd2", {}, "v_prediction"),
        ("sd2", {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ("xl", {"modelspec.prediction_type": "v"}, "v_prediction"),
    ],
)
def test_what_the_unet_predicts_is_as_its_kind_was_published_or_as_the_file_says(
    tmp_path: Path, kind: str, metadata: dict[str, str], expected: str
) -> None:
    from safetensors.torch import load_file

    path, _ = made(tmp_path, kind)
    save_file(load_file(path), path, metadata)
    assert inarch.load(path).config.scheduler["prediction_type"] == expected


@pytest.mark.parametrize(
    ("remove", "add", "code", "named"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "", "IA552", "UNet"),
        ("model.diffusion_model.out.2.weight", "", "IA552", "out.2.weight"),
        (
            "model.diffusion_model.input_blocks.1.0.in_layers.0.bias",
            "",
            "IA206",
            "unet.down_blocks.0.resnets.0.norm1.bias",
        ),
        (
            "first_stage_model.encoder.mid.attn_1.q.weight",
            "",
            "IA206",
            "vae.encoder.mid_block.attentions.0.to_q.weight",
        ),
        ("", "model.diffusion_model.more.weight", "IA206", "unet.more.weight"),
        ("", "control_model.more.weight", "IA552", "control_model.more.weight"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_name(
    tmp_path: Path, remove: str, add: str, code: str, named: str
) -> None:
    from safetensors.torch import load_file

    path, _ = made(tmp_path, "sd1")
    state = load_file(path)
    state.pop(remove, None)
    if add:
        state[add] = torch.ones(2)
    save_file(state, path)
    with pytest.raises(InarchError) as error:
        inarch.load(path)
    assert error.value.code == code
    assert named in str(error.value)
