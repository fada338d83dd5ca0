"""Every key and shape of the published models, from diffusers' own classes on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inarch.weights import blank
from inarch_clip.config import parse as parse_clip
from inarch_clip.text import text
from inarch_stable_diffusion.unet import unet
from inarch_stable_diffusion.unet_config import parse_unet
from inarch_stable_diffusion.vae import vae
from inarch_stable_diffusion.vae_config import parse_vae

# What the published unet/config.json files say, where it is not diffusers' default.
SD1 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD2 = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER = {
    **SDXL,
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 1280,
    "attention_head_dim": (6, 12, 24, 24),
    "transformer_layers_per_block": 4,
    "projection_class_embeddings_input_dim": 2560,
}
# With how many weights the published file has, where that is known.
UNETS = {
    "sd1.5": (SD1, 859_520_964),
    "sd1.5 inpainting": (SD1 | {"in_channels": 9}, 859_535_364),
    "sd2.1": (SD2, 865_910_724),
    "sdxl": (SDXL, 2_567_463_684),
    "sdxl refiner": (REFINER, None),
}
# SDXL's is the same, but for sample_size 1024 and scaling_factor 0.13025.
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}


@pytest.mark.parametrize("name", UNETS, ids=lambda name: name.replace(" ", "_"))
def test_a_unet_has_every_key_and_shape_of_the_published_one(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    settings, count = UNETS[name]
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**settings)
    with blank():
        ours = unet(parse_unet(dict(theirs.config)))
    expected, actual = _shapes(theirs), _shapes(ours)
    assert actual == expected
    published = sum(shape.numel() for shape in actual.values())
    assert count in (published, None)
    assert len(repr(ours).splitlines()) <= 220  # the whole architecture, to be read


def test_the_autoencoder_has_every_key_and_shape_of_the_published_one() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(**VAE)
    with blank():
        ours = vae(parse_vae(dict(theirs.config)))
    assert _shapes(ours) == _shapes(theirs)
    assert sum(shape.numel() for shape in _shapes(ours).values()) == 83_653_863


def _shapes(module: Any) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


# Of text_encoder/config.json: SD 1.5's, 2.1's, and the second one of XL (the first is SD 1.5's).
TEXTS: dict[str, dict[str, Any]] = {
    "sd1.5": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    "sd2.1": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 512,
    },
    "sdxl": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    },
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_encoder_has_every_key_and_shape_of_the_published_one(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"num_attention_heads": 12, "vocab_size": 49408, **TEXTS[name]}
    kind = "CLIPTextModelWithProjection" if name == "sdxl" else "CLIPTextModel"
    config = transformers.CLIPTextConfig(**settings)
    with torch.device("meta"):
        theirs = getattr(transformers, kind)(config)
    parsed = parse_clip({**config.to_dict(), "architectures": [kind]}).text
    assert parsed is not None
    with blank():
        ours = text(parsed)
    # The published files have `text_model.`, which this transformers leaves out in one class.
    expected = {
        key if key.startswith("text_") else f"text_model.{key}": shape
        for key, shape in _shapes(theirs).items()
        if not key.endswith("position_ids")
    }
    assert _shapes(ours) == expected
