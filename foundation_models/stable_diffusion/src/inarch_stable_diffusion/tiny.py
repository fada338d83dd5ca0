"""Very small models of the family, and inputs of small forwards, for tools and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inarch.adapters import Example
from inarch.tree import Chain
from inarch_stable_diffusion.config import StableDiffusionConfig

UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
_VAE = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "sample_size": 16,
}
_TEXT = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 31,
    "max_position_embeddings": 12,
    "eos_token_id": 30,
}
_WIDER = {**_TEXT, "hidden_act": "gelu", "projection_dim": 10}
_SD1 = {"model_type": "stable-diffusion", "vae": _VAE, "text_encoder": _TEXT}
CONFIGS: Mapping[str, dict[str, Any]] = {
    "sd1": {**_SD1, "unet": UNET},
    "inpainting": {**_SD1, "unet": {**UNET, "in_channels": 9}},
    "xl": {
        **_SD1,
        "unet": {
            **UNET,
            "cross_attention_dim": 24,
            "use_linear_projection": True,
            "transformer_layers_per_block": (2, 1),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 6,
            "projection_class_embeddings_input_dim": 10 + 6 * 6,
        },
        "text_encoder_2": {**_WIDER, "architectures": ["CLIPTextModelWithProjection"]},
    },
}


def examples(config: StableDiffusionConfig, trees: Mapping[str, Chain]) -> Sequence[Example]:
    """Inputs of every tree; images are of a height and width that differ."""
    found: list[Example] = []
    for name, tree in trees.items():
        weight = next(tree.parameters())
        if name == "unet":
            found.append(Example(name, _unet(config, weight)))
        elif name == "vae":
            found.append(Example(name, {"x": _waves(weight, 2, 3, 16, 24)}))
        else:
            rows = [[0, 5, 6, 7, 30], [0, 9, 30, 30, 30]]
            ids = torch.tensor(rows, device=weight.device) % getattr(config, name).vocab_size
            found.append(Example(name, {"input_ids": ids, "mask": None}))
    return found


def _unet(config: StableDiffusionConfig, weight: Tensor) -> dict[str, Any]:
    c = config.unet
    inputs = {
        "latents": _waves(weight, 2, c.in_channels, 8, 12),
        "timestep": torch.tensor([981, 21], device=weight.device),
        "text": _waves(weight, 2, 12, c.context[0]),
    }
    if c.added is not None:
        sizes = [[512, 512, 0, 0, 512, 512], [1024, 768, 8, 0, 1024, 1024]]
        count = 5 if config.aesthetics else 6
        inputs["time_ids"] = torch.tensor(sizes, device=weight.device, dtype=weight.dtype)[
            :, :count
        ]
        inputs["text_embeds"] = _waves(weight, 2, c.added[1] - count * c.added[0])
    return inputs


def _waves(weight: Tensor, *shape: int) -> Tensor:
    count = torch.arange(torch.Size(shape).numel(), device=weight.device, dtype=torch.float32)
    return torch.sin(count * 0.7).reshape(shape).to(weight.dtype)
