"""Whole pipelines of the published sizes load key by key: their layout, without the bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_published_shapes import SD1, SDXL, VAE

import inarch

DEEP = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
WIDE = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
PLAIN = {**DEEP, "num_hidden_layers": 12, "vocab_size": 49408, "eos_token_id": 2}


def hollow(path: Path, module: Any, prefix: str = "") -> None:
    """A float16 safetensors file of a module's layout, whose values take no room on the disk."""
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in module.state_dict().items():
        size = tensor.numel() * 2
        shape, span = list(tensor.shape), [end, end + size]
        entries[prefix + name] = {"dtype": "F16", "shape": shape, "data_offsets": span}
        end += size
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def published(folder: Path, xl: bool) -> dict[str, Any]:
    """A folder of the layout of SD 1.5 or SDXL; its parts."""
    import diffusers
    import transformers

    text = transformers.CLIPTextConfig(**PLAIN)
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "unet": diffusers.UNet2DConditionModel(**(SDXL if xl else SD1)),
            "vae": diffusers.AutoencoderKL(**VAE),
            "text_encoder": transformers.CLIPTextModel(text),
        }
        if xl:
            wide = transformers.CLIPTextConfig(**{**PLAIN, **WIDE})
            parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection(wide)
    for name, part in parts.items():
        (folder / name).mkdir()
        stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
        bare = name == "text_encoder" and not hasattr(part, "text_model")
        prefix = "text_model." if bare else ""
        hollow(folder / name / f"{stem}.fp16.safetensors", part, prefix)
        settings = dict(part.config if name in ("unet", "vae") else part.config.to_dict())
        kind = type(part).__name__
        settings |= {"architectures": [kind], "_class_name": kind}
        (folder / name / "config.json").write_text(json.dumps(settings, default=str))
    index = {name: ["library", "Class"] for name in parts}
    kind = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, **index}))
    return parts


@pytest.mark.parametrize("xl", [False, True], ids=["sd1.5", "sdxl"])
def test_a_published_pipeline_loads_strictly_at_its_full_size(tmp_path: Path, xl: bool) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    parts = published(tmp_path, xl)
    model = inarch.load(tmp_path, device="meta")
    assert set(model.trees) == set(parts)
    for name, part in parts.items():
        actual = sum(tensor.numel() for tensor in model.trees[name].state_dict().values())
        assert actual == sum(tensor.numel() for tensor in part.state_dict().values())
    kinds = {name: next(tree.parameters()).dtype for name, tree in model.trees.items()}
    assert kinds.pop("vae") is torch.float32
    assert set(kinds.values()) == {torch.float16}
    assert next(model.parameters()).is_meta
