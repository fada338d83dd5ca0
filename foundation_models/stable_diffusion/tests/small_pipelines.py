"""Small random pipelines of diffusers, saved as the published ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_unets import XL

from inarch_stable_diffusion.beside_diffusers import SMALL, randomised

VAE = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "sample_size": 16,
}
TEXT = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 77,
    "projection_dim": 10,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
WORDS = ("a", "lighthouse", "in", "the", "storm", "ugly", "red", "boat", "quiet", "sea")


def vocabulary(folder: Path) -> int:
    """Write vocab.json and merges.txt: letters, and some words; how many tokens there are."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(i) for i in range(33, 127)]
    merges: dict[str, None] = {}
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges[f"{parts[0]} {parts[1]}"] = None
            parts[:2] = [parts[0] + parts[1]]
    made = [pair.replace(" ", "") for pair in merges]
    tokens = [*letters, *(f"{one}</w>" for one in letters), *made]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(ids), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    special |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **special}))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return len(ids)


def saved(
    path: Path,
    *,
    xl: bool = False,
    refiner: bool = False,
    seed: int = 0,
    scheduler: dict[str, Any] | None = None,
    scale: float = 1.0,
    **settings: Any,
) -> Path:
    """Save a small pipeline of random weights; `settings` are the UNet's."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    size = vocabulary(path / "tokenizer")
    ends = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1}
    config = transformers.CLIPTextConfig(**{**TEXT, **ends})
    tokenizer = transformers.CLIPTokenizer.from_pretrained(path / "tokenizer")
    parts: dict[str, Any] = {
        "vae": randomised(diffusers.AutoencoderKL(**VAE), seed + 1),
        "text_encoder": randomised(transformers.CLIPTextModel(config), seed + 2),
        "tokenizer": tokenizer,
        "scheduler": diffusers.DDIMScheduler(**{**SCHEDULER, **(scheduler or {})}),
    }
    own: dict[str, Any] = {}
    if xl or refiner:
        wide = transformers.CLIPTextConfig(**{**TEXT, **ends, "hidden_act": "gelu"})
        second = transformers.CLIPTextModelWithProjection(wide)
        parts |= {"text_encoder_2": randomised(second, seed + 3), "tokenizer_2": tokenizer}
        own = {**XL, "cross_attention_dim": 24}
        kind = diffusers.StableDiffusionXLPipeline
    if refiner:
        parts |= {"text_encoder": None, "tokenizer": None, "requires_aesthetics_score": True}
        parts["force_zeros_for_empty_prompt"] = False
        own |= {"cross_attention_dim": 12, "projection_class_embeddings_input_dim": 10 + 5 * 6}
        kind = diffusers.StableDiffusionXLImg2ImgPipeline
    if not (xl or refiner):
        parts |= {"safety_checker": None, "feature_extractor": None}
        kind = diffusers.StableDiffusionPipeline
    theirs = diffusers.UNet2DConditionModel(**{**SMALL, **own, **settings})
    parts["unet"] = randomised(theirs, seed)
    with torch.no_grad():
        parts["unet"].conv_out.weight.mul_(scale)
    kind(**parts).save_pretrained(path)
    return path


def pipeline(path: Path, task: str = "text_to_image", **settings: Any) -> Any:
    """diffusers' pipeline of a folder, silent."""
    import diffusers

    kind = {
        "text_to_image": diffusers.AutoPipelineForText2Image,
        "image_to_image": diffusers.AutoPipelineForImage2Image,
        "inpaint": diffusers.AutoPipelineForInpainting,
    }[task]
    made = kind.from_pretrained(path, **settings)
    made.set_progress_bar_config(disable=True)
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(made, name, None)
        if encoder is not None and not hasattr(encoder, "text_model"):
            encoder.__dict__["text_model"] = encoder  # where diffusers looks for its norm
    return made
