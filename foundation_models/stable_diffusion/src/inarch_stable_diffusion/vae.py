"""The autoencoder between images and latents, in diffusers' names.

The tree runs an image through both halves; `inarch_stable_diffusion.autoencoder` runs them apart.

Source: Rombach et al. 2021, arXiv:2112.10752, section 3.1.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn import functional as F

from inarch.nn import GroupNorm, merge_heads, split_heads
from inarch.tree import Chain, Identity, Let, Parallel, Residual, Seq, Sum, repeated
from inarch.tree.steps import Step
from inarch_stable_diffusion.functions import (
    ACTIVATION,
    attend,
    double,
    everywhere,
    grid_of,
    mean_of,
    pad_below,
    to_image,
    to_tokens,
)
from inarch_stable_diffusion.vae_config import VAEConfig

EPS = 1e-6


def vae(c: VAEConfig) -> Chain:
    """Images [batch, 3, height, width] in -1..1 to what is left of them, of the same shape."""
    moments, latents = 2 * c.latent_channels, c.latent_channels
    return Chain(
        ("encoder", encoder(c)),
        ("quant_conv", nn.Conv2d(moments, moments, 1) if c.quant_conv else Identity()),
        ("mean", mean_of),  # [batch, latents, height / 8, width / 8]
        ("post_quant_conv", nn.Conv2d(latents, latents, 1) if c.post_quant_conv else Identity()),
        ("decoder", decoder(c)),
        inputs=(),
    )


def encoder(c: VAEConfig) -> Chain:
    """Images [batch, 3, height, width] to moments [batch, 2 * latents, height / 8, width / 8]."""
    levels = range(len(c.widths))
    return Chain(
        ("conv_in", nn.Conv2d(c.in_channels, c.widths[0], 3, padding=1)),
        *((f"down_blocks.{i}", down(c, i)) for i in levels),
        ("mid_block", mid(c)),
        ("conv_norm_out", GroupNorm(c.norm_groups, c.widths[-1], EPS)),
        F.silu,
        ("conv_out", nn.Conv2d(c.widths[-1], 2 * c.latent_channels, 3, padding=1)),
    )


def decoder(c: VAEConfig) -> Chain:
    """Latents [batch, latents, height / 8, width / 8] to images [batch, 3, height, width]."""
    levels = range(len(c.widths))
    return Chain(
        ("conv_in", nn.Conv2d(c.latent_channels, c.widths[-1], 3, padding=1)),
        ("mid_block", mid(c)),
        *((f"up_blocks.{i}", up(c, i)) for i in levels),
        ("conv_norm_out", GroupNorm(c.norm_groups, c.widths[0], EPS)),
        F.silu,
        ("conv_out", nn.Conv2d(c.widths[0], c.out_channels, 3, padding=1)),
    )


def down(c: VAEConfig, i: int) -> Chain:
    incoming, out = c.widths[max(i - 1, 0)], c.widths[i]
    steps: list[Step] = [
        (f"resnets.{layer}", resnet(c, out if layer else incoming, out))
        for layer in range(c.layers)
    ]
    if i < len(c.widths) - 1:
        steps += [pad_below, ("downsamplers.0.conv", nn.Conv2d(out, out, 3, stride=2))]
    return Chain(*steps)


def mid(c: VAEConfig) -> Chain:
    width = c.widths[-1]
    between = [("attentions.0", attention(c, width))] if c.mid_attention else []
    return Chain(
        ("resnets.0", resnet(c, width, width)), *between, ("resnets.1", resnet(c, width, width))
    )


def up(c: VAEConfig, i: int) -> Chain:
    level = len(c.widths) - 1 - i
    incoming, out = c.widths[min(level + 1, len(c.widths) - 1)], c.widths[level]
    steps: list[Step] = [
        (f"resnets.{layer}", resnet(c, out if layer else incoming, out))
        for layer in range(c.layers + 1)
    ]
    if level > 0:
        steps += [double, ("upsamplers.0.conv", nn.Conv2d(out, out, 3, padding=1))]
    return Chain(*steps)


@repeated
def resnet(c: VAEConfig, incoming: int, out: int) -> Chain:
    act = ACTIVATION[c.activation]
    layers = Seq(
        norm1=GroupNorm(c.norm_groups, incoming, EPS),
        act1=act,
        conv1=nn.Conv2d(incoming, out, 3, padding=1),
        norm2=GroupNorm(c.norm_groups, out, EPS),
        act2=act,
        conv2=nn.Conv2d(out, out, 3, padding=1),
    )
    same = incoming == out
    return Chain(
        Sum(Identity() if same else ("conv_shortcut", nn.Conv2d(incoming, out, 1)), layers)
    )


def attention(c: VAEConfig, width: int) -> Chain:
    """Every pixel looks at all others, with a single head."""
    split = partial(split_heads, head_dim=width)
    return Chain(
        Let("grid", grid_of),
        Residual(
            ("group_norm", GroupNorm(c.norm_groups, width, EPS)),
            to_tokens,
            Parallel(  # [batch, 1, tokens, width]
                query=Seq(to_q=nn.Linear(width, width), heads=split),
                key=Seq(to_k=nn.Linear(width, width), heads=split),
                value=Seq(to_v=nn.Linear(width, width), heads=split),
                mask=everywhere,
            ),
            ("attend", attend),
            ("merge", merge_heads),
            ("to_out.0", nn.Linear(width, width)),
            to_image,
        ),
    )
