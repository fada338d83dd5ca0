"""The UNet of Stable Diffusion 1, 2 and XL, in diffusers' names.

Latents go down through `down_blocks`, each of which halves height and width, and up again through
`up_blocks`. What flows after every layer on the way down is also kept, as `skip_0`, `skip_1` and
so on, and joined to what flows at the same resolution on the way up, the last one first.

Source: Rombach et al. 2021, arXiv:2112.10752; XL: Podell et al. 2023, arXiv:2307.01952.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from inarch.nn import GroupNorm, LayerNorm, merge_heads, split_heads
from inarch.tree import Chain, Concat, Export, Identity, Let, Parallel, Residual, Seq, Sum, Use
from inarch.tree.repeated import repeated
from inarch.tree.steps import Step
from inarch_stable_diffusion.functions import (
    ACTIVATION,
    added_conditions,
    attend,
    enlarge,
    everywhere,
    geglu,
    grid_of,
    over_pixels,
    timestep_embedding,
    to_image,
    to_rows,
    to_tokens,
)
from inarch_stable_diffusion.unet_config import UNetConfig


def unet(c: UNetConfig) -> Chain:
    """Noisy latents [batch, 4, height, width] to what is to be taken from them, of the same shape.

    Inputs: `timestep` [batch] or []; `text` [batch, tokens, context]; and for XL `text_embeds`
    [batch, pooled] and `time_ids` [batch, 6].
    """
    width, act = c.widths[0], ACTIVATION[c.activation]
    levels = range(len(c.widths))
    skips = [f"skip_{i}" for i in range(sum(c.layers) + len(levels))]
    return Chain(
        Let("temb", Seq(time(c), act)),  # [batch, time_width]
        ("conv_in", nn.Conv2d(c.in_channels, width, 3, padding=1)),
        Let("skip_0"),
        *((f"down_blocks.{i}", down(c, i)) for i in levels),
        ("mid_block", mid(c)),
        *((f"up_blocks.{i}", up(c, i)) for i in levels),
        ("conv_norm_out", GroupNorm(c.norm_groups, width, c.norm_eps)),
        act,
        ("conv_out", nn.Conv2d(width, c.out_channels, 3, padding=1)),
        takes="latents",
        inputs=("timestep", "text", *(("text_embeds", "time_ids") if c.added else ())),
        keeps=skips[1:],
    )


def time(c: UNetConfig) -> Step:
    """What a timestep is to every resnet; for XL the pooled text and the image's sizes as well."""
    how = {"flip": c.flip_sin_to_cos, "shift": c.freq_shift}
    waves = partial(timestep_embedding, width=c.widths[0], **how)
    when = Seq(waves=waves, time_embedding=mlp(c, c.widths[0], c.activation))
    if c.added is None:
        return when
    conditions = partial(added_conditions, width=c.added[0], **how)
    return Sum(when, Seq(conditions=conditions, add_embedding=mlp(c, c.added[1], "silu")))


def mlp(c: UNetConfig, width: int, activation: str) -> Chain:
    enter, leave = nn.Linear(width, c.time_width), nn.Linear(c.time_width, c.time_width)
    return Chain(linear_1=enter, act=ACTIVATION[activation], linear_2=leave)


def down(c: UNetConfig, i: int) -> Chain:
    """Layers at one resolution, each leaving a skip, and then half of it."""
    incoming, out, skip = c.widths[max(i - 1, 0)], c.widths[i], sum(c.layers[:i]) + i + 1
    steps = list[Step]()
    for layer, depth in enumerate(c.depths[i]):
        steps.append((f"resnets.{layer}", resnet(c, out if layer else incoming, out)))
        if depth:
            steps.append((f"attentions.{layer}", transformer(c, i, depth)))
        steps.append(Export(f"skip_{skip + layer}"))
    if i < len(c.widths) - 1:
        steps.append(("downsamplers.0.conv", nn.Conv2d(out, out, 3, stride=2, padding=1)))
        steps.append(Export(f"skip_{skip + c.layers[i]}"))
    return Chain(*steps)


def mid(c: UNetConfig) -> Chain:
    out = c.widths[-1]
    if c.mid_depth is None:
        return Chain(("resnets.0", resnet(c, out, out)))
    return Chain(
        ("resnets.0", resnet(c, out, out)),
        ("attentions.0", transformer(c, -1, c.mid_depth)),
        ("resnets.1", resnet(c, out, out)),
    )


def up(c: UNetConfig, i: int) -> Chain:
    """Layers at one resolution, each joined by a skip, and then as large as the next skip."""
    level = len(c.widths) - 1 - i
    incoming, out = c.widths[min(level + 1, len(c.widths) - 1)], c.widths[level]
    skip = sum(c.layers[: level + 1]) + level  # the last one left on the way down
    steps = list[Step]()
    for layer, depth in enumerate(c.up_depths[i]):
        beside = out if layer < c.layers[level] else c.widths[max(level - 1, 0)]
        join = Concat(x=Identity(), skip=Use(f"skip_{skip - layer}"), dim=1)
        steps.append((f"join_{layer}", join))
        steps.append((f"resnets.{layer}", resnet(c, (out if layer else incoming) + beside, out)))
        if depth:
            steps.append((f"attentions.{layer}", transformer(c, level, depth)))
    if level > 0:
        size = Parallel(Identity(), Use(f"skip_{skip - c.layers[level] - 1}"))
        steps.append(("enlarge", Seq(size, enlarge)))
        steps.append(("upsamplers.0.conv", nn.Conv2d(out, out, 3, padding=1)))
    return Chain(*steps)


@repeated
def resnet(c: UNetConfig, incoming: int, out: int) -> Chain:
    """Two convolutions that know the time between them, beside a shortcut."""
    act = ACTIVATION[c.activation]
    when = Seq(Use("temb"), ("time_emb_proj", nn.Linear(c.time_width, out)), over_pixels)
    layers = Seq(
        norm1=GroupNorm(c.norm_groups, incoming, c.norm_eps),
        act1=act,
        conv1=nn.Conv2d(incoming, out, 3, padding=1),
        time=Sum(Identity(), when),  # [batch, out, height, width] + [batch, out, 1, 1]
        norm2=GroupNorm(c.norm_groups, out, c.norm_eps),
        act2=act,
        conv2=nn.Conv2d(out, out, 3, padding=1),
    )
    same = incoming == out
    return Chain(
        Sum(Identity() if same else ("conv_shortcut", nn.Conv2d(incoming, out, 1)), layers)
    )


@repeated
def transformer(c: UNetConfig, level: int, depth: int) -> Chain:
    """Every pixel as a token that looks at all others and at the text."""
    width = c.widths[level]
    project = nn.Linear if c.linear_projection else partial(nn.Conv2d, kernel_size=1)
    enter, leave = ("proj_in", project(width, width)), ("proj_out", project(width, width))
    blocks = [(f"transformer_blocks.{i}", block(c, level)) for i in range(depth)]
    if c.linear_projection:
        inside: list[Step] = [to_tokens, enter, *blocks, leave, to_image]
    else:
        inside = [enter, to_rows, *blocks, to_image, leave]
    return Chain(
        Let("grid", grid_of),
        Residual(("norm", GroupNorm(c.norm_groups, width, 1e-6)), *inside),
    )


@repeated
def block(c: UNetConfig, level: int) -> Chain:
    width, heads, context = c.widths[level], c.heads[level], c.context[level]
    return Chain(  # [batch, tokens, width]
        Residual(norm1=LayerNorm(width), attn1=attention(width, heads)),
        Residual(norm2=LayerNorm(width), attn2=attention(width, heads, context)),
        Residual(norm3=LayerNorm(width), ff=feed_forward(width)),
    )


@repeated
def attention(width: int, heads: int, context: int | None = None) -> Chain:
    """Attention to the tokens themselves or, with a `context`, to the text."""
    split = partial(split_heads, head_dim=width // heads)
    linear = partial(nn.Linear, bias=False)
    seen, source = (width, Identity()) if context is None else (context, Use("text"))
    return Chain(
        Parallel(  # [batch, heads, tokens, head_dim]
            query=Seq(to_q=linear(width, width), heads=split),
            key=Seq(source, to_k=linear(seen, width), heads=split),
            value=Seq(source, to_v=linear(seen, width), heads=split),
            mask=everywhere,
        ),
        ("attend", attend),
        ("merge", merge_heads),
        ("to_out.0", nn.Linear(width, width)),
    )


@repeated
def feed_forward(width: int) -> Chain:
    enter, leave = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)
    return Chain(("net.0.proj", enter), geglu, ("net.2", leave))
