"""Small UNets in diffusers and here, of equal random weights, for tests of adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from inarch.plugins import index
from inarch_stable_diffusion.model import StableDiffusion
from inarch_stable_diffusion.tiny import UNET as SMALL

_XL = {
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 10 + 6 * 6,
    "use_linear_projection": True,
}
_DEEP = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sd1": SMALL,
    "sd2": {**SMALL, "use_linear_projection": True, "attention_head_dim": (2, 4)},
    "xl": {**SMALL, **_XL},
    "deep": {**SMALL, **_DEEP},
    "inpainting": {**SMALL, "in_channels": 9},
}


def randomised(module: Any, seed: int) -> Any:
    """Weights that leave nothing near zero or one, so that no step goes unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan = max(1.0, parameter[0].numel() ** 0.5) if parameter.dim() > 1 else 3.0
            parameter.copy_(noise / fan + (1.0 if parameter.dim() == 1 else 0.0) * 0.5)
    return module.eval().requires_grad_(False)


@dataclass
class Pair:
    """One UNet in both libraries, with inputs for it.

    Attributes:
        unet: diffusers'.
        model: of the one tree `unet`.
        latents: [batch, channels, 8, 16].
        inputs: what the tree asks for beside.
    """

    unet: Any
    model: StableDiffusion
    latents: Tensor
    inputs: dict[str, Tensor]

    @classmethod
    def of(cls, kind: str, seed: int = 0, batch: int = 2) -> Self:
        """diffusers' UNet and a model of equal weights, with inputs for both.

        Args:
            kind: of `SETTINGS`.
            seed: of weights and inputs.
            batch: rows of the inputs.
        """
        from diffusers import UNet2DConditionModel

        theirs = randomised(UNet2DConditionModel(**SETTINGS[kind]), seed)
        given = {"model_type": "stable-diffusion", "unet": dict(theirs.config)}
        config = StableDiffusion.parse_config(given)
        trees = {"unet": StableDiffusion.build(config)["unet"]}
        trees["unet"].load_state_dict(theirs.state_dict())
        roles = index().models["stable-diffusion"].roles
        model = StableDiffusion(
            {n: t.eval().requires_grad_(False) for n, t in trees.items()},
            config,
            roles=roles,
            family="stable-diffusion",
        )
        model.sites.settings = given
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        inputs = {
            "timestep": torch.randint(0, 1000, (batch,), generator=generator),
            "text": noise(batch, 7, theirs.config["cross_attention_dim"]),
        }
        if theirs.config["addition_embed_type"]:
            inputs["text_embeds"] = noise(batch, 10)
            inputs["time_ids"] = torch.randint(0, 1024, (batch, 6), generator=generator).float()
        latents = noise(batch, theirs.config["in_channels"], 8, 16)
        return cls(theirs, model, latents, inputs)

    @property
    def extra(self) -> dict[str, Tensor] | None:
        """diffusers' `added_cond_kwargs`."""
        names = ("text_embeds", "time_ids")
        return {n: self.inputs[n] for n in names if n in self.inputs} or None

    def image(self, seed: int = 3, halvings: int = 3) -> Tensor:
        """A picture in 0..1, [1, 3, height, width], as large as the latents doubled that often."""
        height, width = (n << halvings for n in self.latents.shape[2:])
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(1, 3, height, width, generator=generator)

    def control(self, net: Any, image: Tensor, scale: float = 1.0, **options: Any) -> Any:
        """What diffusers' ControlNet gives: residuals of each skip, and of the middle."""
        text, time = self.inputs["text"], self.inputs["timestep"]
        latents = self.latents[:, : net.config.in_channels]
        rows = image.expand(len(latents), -1, -1, -1)
        extra = {"added_cond_kwargs": self.extra, "return_dict": False, **options}
        return net(latents, time, text, rows, conditioning_scale=scale, **extra)

    def theirs(self, *controls: Any, within: Any = None) -> Tensor:
        """diffusers' UNet with the sum of residuals, and those a T2I-Adapter adds within."""
        down, middle = None, None
        for more, bottom in controls:
            down = list(more) if down is None else [a + b for a, b in zip(down, more, strict=True)]
            middle = bottom if middle is None else middle + bottom
        return self.unet(
            self.latents,
            self.inputs["timestep"],
            self.inputs["text"],
            added_cond_kwargs=self.extra,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            down_intrablock_additional_residuals=None if within is None else list(within),
        ).sample

    def ours(self, model: StableDiffusion, **inputs: Tensor) -> Tensor:
        """What an adapted model gives for the inputs and those its adapters added."""
        return model.trees["unet"](self.latents, **self.inputs, **inputs)
