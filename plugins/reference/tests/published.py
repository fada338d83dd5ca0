"""Reference-only control on diffusers' UNet, as published: what the adapter is held against.

The logic of diffusers' community pipeline, `examples/community/stable_diffusion_reference.py` at
commit 034b914, after sd-webui-controlnet, discussions 1236 and 1280, written again as hooks: first
a pass over the reference that writes down what it sees, then one over the picture that reads it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor

Told = Callable[[Tensor, Tensor, Tensor, bool], dict[str, Any]]


class Published:
    """Two passes of a UNet.

    Args:
        unet: of diffusers; its modules are hooked for good.
        uncond: of each row, whether it is for no prompt; None without guidance.
        style_fidelity, attention_weight, gn_weight: the pipeline's arguments.
        attn, adain: its `reference_attn` and `reference_adain`.
    """

    def __init__(
        self,
        unet: Any,
        uncond: Tensor | None,
        *,
        style_fidelity: float,
        attn: bool = True,
        adain: bool = True,
        attention_weight: float = 1.0,
        gn_weight: float = 1.0,
    ) -> None:
        self.unet, self.uncond, self.style_fidelity = unet, uncond, style_fidelity
        self.writing = False
        if attn:
            blocks = [m for m in unet.modules() if isinstance(m, BasicTransformerBlock)]
            blocks.sort(key=lambda block: -block.norm1.normalized_shape[0])
            for i, block in enumerate(blocks):
                if attention_weight > i / len(blocks):
                    block.attn1.forward = self.attention(block.attn1.forward)
        if adain:
            down, up = list(unet.down_blocks), list(unet.up_blocks)
            weights = [2 * (1 - i / len(down)) for i in range(len(down))]
            weights += [2 * (i / len(up)) for i in range(len(up))]
            for block, weight in zip([*down, *up], weights, strict=True):
                if gn_weight >= weight:
                    for layer in getattr(block, "attentions", None) or block.resnets:
                        layer.register_forward_hook(self.statistics())
            if gn_weight >= 0:
                unet.mid_block.register_forward_hook(self.statistics())

    def __call__(
        self, latents: Tensor, reference: Tensor, timestep: Tensor, text: Tensor, told: Told
    ) -> Tensor:
        """The prediction for noisy latents beside a reference that is as noisy."""
        self.writing = True
        self.unet(reference, timestep, text, **told(reference, timestep, text, self.writing))
        self.writing = False
        more = told(latents, timestep, text, self.writing)
        return self.unet(latents, timestep, text, **more).sample

    def attention(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        bank: list[Tensor] = []

        def hooked(x: Tensor, **_: Any) -> Tensor:
            if self.writing:
                bank[:] = [x]
                return forward(x)
            looking = forward(x, encoder_hidden_states=torch.cat([x, *bank], dim=1))
            return self.mixed(looking, forward(x))

        return hooked

    def statistics(self) -> Callable[..., Any]:
        bank: list[Tensor] = []

        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            x = output if isinstance(output, Tensor) else output[0]
            variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
            deviation = variance.clamp(min=1e-6) ** 0.5
            if self.writing:
                bank[:] = [mean, deviation]
                return output
            taken = self.mixed((x - mean) / deviation * bank[1] + bank[0], x)
            return taken if isinstance(output, Tensor) else (taken, *output[1:])

        return hook

    def mixed(self, changed: Tensor, plain: Tensor) -> Tensor:
        """Less of the change in the rows that are for no prompt."""
        kept = changed.clone()
        if self.uncond is not None and self.style_fidelity > 0:
            kept[self.uncond] = plain[self.uncond]
        return self.style_fidelity * kept + (1 - self.style_fidelity) * changed


@torch.no_grad()
def published(
    pipeline: Any,
    prompts: list[str],
    reference: Tensor,
    noise: Tensor,
    *,
    encoded: bool = False,
    steps: int,
    guidance: float,
    seed: int,
    told: Told = lambda *_: {},
    **settings: Any,
) -> Tensor:
    """The pipeline's run from noise to latents.

    Args:
        pipeline: diffusers' own for text to image.
        reference: a picture in -1..1, [1, 3, height, width], or its latents where it is `encoded`.
        noise: [batch, 4, height / 8, width / 8].
        told: what else the UNet is told, of rows of latents, timestep, text, and whether it is the
            pass over the reference.
    """
    guided, batch = guidance > 1, len(prompts)
    generator = torch.Generator().manual_seed(seed)
    wanted, unwanted = pipeline.encode_prompt(prompts, "cpu", 1, guided)
    text = torch.cat([unwanted, wanted]) if guided else wanted
    uncond = torch.tensor([True] * batch + [False] * batch) if guided else None
    run = Published(pipeline.unet, uncond, **settings)
    scheduler, vae = pipeline.scheduler, pipeline.vae
    scheduler.set_timesteps(steps)
    known = inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if "generator" in known else {}
    latents = noise * scheduler.init_noise_sigma
    clean = reference.repeat(batch, 1, 1, 1)
    if not encoded:
        clean = vae.config.scaling_factor * vae.encode(clean).latent_dist.sample(generator)
    for t in scheduler.timesteps:
        rows = scheduler.scale_model_input(torch.cat([latents] * (1 + guided)), t)
        fresh = torch.randn(clean.shape, generator=generator)
        noisy = scheduler.add_noise(clean, fresh, t.reshape(1))
        noisy = scheduler.scale_model_input(torch.cat([noisy] * (1 + guided)), t)
        predicted = run(rows, noisy, t, text, told)
        if guided:
            without, prompted = predicted.chunk(2)
            predicted = without + guidance * (prompted - without)
        latents = scheduler.step(predicted, t, latents, **extra).prev_sample
    return latents
