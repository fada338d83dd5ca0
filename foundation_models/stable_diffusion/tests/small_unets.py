"""Settings of small UNets, random weights for them, and inputs."""

from __future__ import annotations

import random
from typing import Any

import torch

XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 10 + 6 * 6,
    "use_linear_projection": True,
}


def random_settings(seed: int) -> dict[str, Any]:
    """Settings drawn from all that the trees can do."""
    draw = random.Random(seed)
    levels = draw.randint(1, 3)
    groups = draw.choice((1, 2, 4))
    attends = [draw.random() < 0.7 for _ in range(levels)]
    per_level = draw.random() < 0.5
    settings: dict[str, Any] = {
        "in_channels": draw.choice((4, 4, 9)),
        "block_out_channels": tuple(draw.choice((8, 16, 24)) for _ in range(levels)),
        "layers_per_block": (
            tuple(draw.randint(1, 2) for _ in range(levels)) if per_level else draw.randint(1, 3)
        ),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple(
            "CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)
        ),
        "transformer_layers_per_block": (
            tuple(draw.randint(1, 3) for _ in range(levels)) if per_level else draw.randint(1, 2)
        ),
        "attention_head_dim": (
            tuple(draw.choice((1, 2, 4)) for _ in range(levels)) if per_level else 2
        ),
        "cross_attention_dim": draw.choice((5, 12)),
        "norm_num_groups": groups,
        "norm_eps": draw.choice((1e-5, 1e-6)),
        "use_linear_projection": draw.random() < 0.5,
        "flip_sin_to_cos": draw.random() < 0.7,
        "freq_shift": draw.choice((0, 1)),
        "act_fn": draw.choice(("silu", "silu", "gelu", "mish")),
        "time_embedding_dim": draw.choice((None, 20)),
        "mid_block_type": draw.choice(("UNetMidBlock2DCrossAttn",) * 3 + ("UNetMidBlock2D",)),
        "upcast_attention": draw.random() < 0.5,
    }
    return settings | (XL if draw.random() < 0.4 else {})


def unet_inputs(
    config: Any, batch: int, height: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Latents and named inputs for a UNet of diffusers' configuration."""
    generator = torch.Generator().manual_seed(batch * 1000 + height * 10 + width)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    inputs = {
        "timestep": torch.randint(0, 1000, (batch,), generator=generator),
        "text": noise(batch, 7, config["cross_attention_dim"]),
    }
    if config["addition_embed_type"]:
        inputs["text_embeds"] = noise(batch, 10)
        inputs["time_ids"] = torch.randint(0, 1024, (batch, 6), generator=generator).to(dtype)
    return noise(batch, config["in_channels"], height, width), inputs


def theirs_run(theirs: Any, latents: torch.Tensor, inputs: dict[str, torch.Tensor]) -> Any:
    added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
    text, timestep = inputs["text"], inputs["timestep"]
    return theirs(latents, timestep, text, added_cond_kwargs=added or None).sample
