"""Stable Diffusion: what `inarch.load` makes of a pipeline's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch

from inarch.adapters import Example, Model
from inarch.tree import Chain
from inarch_stable_diffusion.unet import unet
from inarch_stable_diffusion.unet_config import UNetConfig, parse_unet


class StableDiffusionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The configurations of a pipeline's parts."""

    unet: UNetConfig


class StableDiffusion(Model):
    """Stable Diffusion 1, 2 and XL."""

    config: StableDiffusionConfig

    @classmethod
    def parse_config(cls, config: dict[str, Any]) -> StableDiffusionConfig:
        """The configurations of a pipeline's parts, each under the name of its folder.

        Raises:
            InarchError: IA210.
        """
        return StableDiffusionConfig(unet=parse_unet(config["unet"]))

    @classmethod
    def build(cls, config: StableDiffusionConfig) -> dict[str, Chain]:
        return {"unet": unet(config.unet)}

    @classmethod
    def tiny_configs(cls) -> Mapping[str, dict[str, Any]]:
        small = {
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 12,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        }
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 6,
            "projection_class_embeddings_input_dim": 10 + 6 * 6,
            "use_linear_projection": True,
        }
        kind = {"model_type": "stable-diffusion"}
        return {
            "sd1": {**kind, "unet": small},
            "inpainting": {**kind, "unet": {**small, "in_channels": 9}},
            "xl": {**kind, "unet": {**small, **added}},
        }

    def examples(self) -> Sequence[Example]:
        """Two noisy images at once, of a height and width that don't halve evenly everywhere."""
        c = self.config.unet
        device, dtype = self.device, self.dtype

        def waves(*shape: int) -> torch.Tensor:
            count = torch.arange(torch.Size(shape).numel(), device=device, dtype=torch.float32)
            return torch.sin(count * 0.7).reshape(shape).to(dtype)

        inputs = {
            "latents": waves(2, c.in_channels, 8, 12),
            "timestep": torch.tensor([981, 21], device=device),
            "text": waves(2, 77, c.context[0]),
        }
        if c.added is not None:
            inputs["text_embeds"] = waves(2, c.added[1] - 6 * c.added[0])
            sizes = [[512, 512, 0, 0, 512, 512], [1024, 768, 8, 0, 1024, 1024]]
            inputs["time_ids"] = torch.tensor(sizes, device=device, dtype=dtype)
        return (Example("unet", inputs),)
