"""At the published sizes, a copy has every name and shape of diffusers' ControlNets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inarch.adapters import SiteView
from inarch.plugins import index
from inarch.weights import blank
from inarch_controlnet.adapter import ControlNet, Options
from inarch_controlnet.encoder import Encoder
from inarch_controlnet.layout import HINT
from inarch_controlnet.variant import Blocks
from inarch_stable_diffusion.model import StableDiffusion

XL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SMALLER = {
    "small": {"down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D"},
    "mid": {"transformer_layers_per_block": (1, 1, 1)},
}
UP = {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
SD15 = {"cross_attention_dim": 768}
SD21 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}


@pytest.mark.parametrize(
    ("settings", "up"), [(SD15, {}), (SD21, {}), (XL, UP)], ids=["1.5", "2.1", "XL"]
)
def test_names_and_shapes_are_diffusers(settings: dict[str, Any], up: dict[str, Any]) -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.ControlNetModel(**settings).state_dict()
    config = StableDiffusion.parse_config(
        {"model_type": "stable-diffusion", "unet": {**settings, **up}}
    )
    with blank():
        trees = StableDiffusion.build(config)
        sites = SiteView(trees, index().models["stable-diffusion"].roles)
        edits = list(ControlNet("canny", Options()).edits(sites, None))
    hint, tower = (edit for edit in edits if edit.kind == "provide")
    ours = {f"{HINT}{n}": p.shape for n, p in hint.step.steps[-1].named_parameters()}
    ours |= {n: p.shape for n, p in tower.step.named_parameters()}
    assert ours == {name: tensor.shape for name, tensor in theirs.items()}


@pytest.mark.parametrize("which", SMALLER)
def test_xl_s_smaller_ones_are_told_by_their_names(which: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.ControlNetModel(**{**XL, **SMALLER[which]}).state_dict()
    whole = {"model_type": "stable-diffusion", "unet": {**XL, **UP}}
    roles = index().models["stable-diffusion"].roles
    sites = SiteView({}, roles, whole, family=StableDiffusion)
    own = Blocks.of(theirs).settings(whole["unet"], {})
    encoder = Encoder.of(sites.variant({**whole, "unet": own}))
    with blank():
        how = {"channels": 4, "factors": [1.0] * 10, "pooled": False, "prompted": False}
        tower = encoder.copied("canny", sites=sites, **how)
    ours = {name: p.shape for name, p in tower.named_parameters()}
    assert ours == {n: t.shape for n, t in theirs.items() if not n.startswith(HINT)}
