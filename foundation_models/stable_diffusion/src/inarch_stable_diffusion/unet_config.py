"""A UNet's configuration, from the config.json of a diffusers `unet/` folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from inarch.errors import InarchError
from inarch_stable_diffusion.functions import ACTIVATION

_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D")
_MID = ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn")
# Settings of diffusers' class that make another model than this tree, with what leaves them out.
_FOREIGN: dict[str, Any] = {
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}


class UNetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a UNet. Tuples have one entry for each resolution, the highest first.

    Attributes:
        in_channels: 4; 9 where a mask and a masked image come in beside, as in inpainting.
        widths: channels.
        layers: resnets on the way down; on the way up there is one more.
        depths, up_depths: transformer blocks after each resnet, 0 for no transformer. The entries
            of `up_depths` go up, the lowest resolution first.
        mid_depth: likewise between them, or None for a single resnet there.
        heads: of attention.
        context: the width of the text's embeddings.
        time_width: of the embedding of the timestep.
        added: SDXL's further conditions, as the width of each size's embedding and of them all
            with the pooled text; None without.
    """

    in_channels: int = 4
    out_channels: int = 4
    sample_size: int | tuple[int, int] = 64
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    depths: tuple[tuple[int, ...], ...]
    mid_depth: int | None
    up_depths: tuple[tuple[int, ...], ...]
    heads: tuple[int, ...]
    context: tuple[int, ...]
    time_width: int
    added: tuple[int, int] | None = None
    linear_projection: bool = False
    norm_groups: int = 32
    norm_eps: float = 1e-5
    activation: str = "silu"
    flip_sin_to_cos: bool = True
    freq_shift: float = 0


def parse_unet(given: Mapping[str, Any]) -> UNetConfig:
    """The configuration of a diffusers `unet/` folder.

    Raises:
        InarchError: IA210 for a setting that is missing, of the wrong type, or that would make
            another model than this tree.
    """
    for name, plain in _FOREIGN.items():
        if given.get(name, plain) not in (plain, None):
            raise _wrong(f"`{name}` makes another model than this one", f"{name} = {given[name]}")
    if given.get("attention_type", "default") != "default":
        raise _wrong("its attention is gated", f"attention_type = {given['attention_type']}")
    try:
        return msgspec.convert(_settings(given), UNetConfig)
    except (msgspec.ValidationError, TypeError, ValueError, KeyError) as error:
        why = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise _wrong(why, "config.json") from None


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    widths = given.get("block_out_channels", (320, 640, 1280, 1280))
    if not isinstance(widths, (list, tuple)) or not all(isinstance(w, int) for w in widths):
        raise ValueError(f"block_out_channels is {widths!r}, and is a list of widths")
    down = given.get("down_block_types", (_DOWN[1], _DOWN[1], _DOWN[1], _DOWN[0]))
    up = given.get("up_block_types", (_UP[0], _UP[1], _UP[1], _UP[1]))
    count = len(widths)
    layers = _each(given.get("layers_per_block", 2), count, "layers_per_block")
    blocks = _each(given.get("transformer_layers_per_block", 1), count, "transformer_layers")
    reverse = given.get("reverse_transformer_layers_per_block") or tuple(reversed(blocks))
    upward = tuple(layer + 1 for layer in reversed(layers))
    activation = given.get("act_fn", "silu")
    settings: dict[str, Any] = {
        "sample_size": given.get("sample_size") or 64,
        "widths": widths,
        "layers": layers,
        "depths": _depths(down, _DOWN, blocks, layers, "down_block_types"),
        "mid_depth": _mid_depth(given, blocks),
        "up_depths": _depths(up, _UP, reverse, upward, "up_block_types"),
        "heads": _each(given.get("attention_head_dim", 8), count, "attention_head_dim"),
        "context": _each(given.get("cross_attention_dim", 1280), count, "cross_attention_dim"),
        "time_width": given.get("time_embedding_dim") or 4 * widths[0],
        "added": _added(given),
        "linear_projection": given.get("use_linear_projection", False),
        "norm_groups": given.get("norm_num_groups", 32),
        "activation": activation,
    }
    same = ("in_channels", "out_channels", "norm_eps", "flip_sin_to_cos", "freq_shift")
    settings |= {name: given[name] for name in same if name in given}
    if activation not in ACTIVATION:
        raise ValueError(f"the activation `{activation}` is not known")
    for width, heads in zip(widths, settings["heads"], strict=True):
        if width % heads or width % settings["norm_groups"]:
            groups = settings["norm_groups"]
            raise ValueError(f"{width} channels don't divide into {heads} heads or {groups} groups")
    return settings


def _each(value: Any, count: int, name: str) -> tuple[Any, ...]:
    """One value for each resolution, where a file may have one for all."""
    if not isinstance(value, Sequence):
        return (value,) * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} resolutions")
    return tuple(value)


def _depths(
    kinds: Sequence[str],
    known: tuple[str, str],
    blocks: Sequence[Any],
    layers: Sequence[int],
    name: str,
) -> tuple[tuple[int, ...], ...]:
    """How many transformer blocks follow each resnet of each resolution."""
    if len(kinds) != len(layers):
        raise ValueError(f"{name} has {len(kinds)} entries for {len(layers)} resolutions")
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"{name} has `{kind}`, and {' and '.join(known)} are known")
    return tuple(
        _each(depth, count, "transformer_layers_per_block") if kind == known[1] else (0,) * count
        for kind, depth, count in zip(kinds, blocks, layers, strict=True)
    )


def _mid_depth(given: Mapping[str, Any], blocks: Sequence[Any]) -> int | None:
    kind = given.get("mid_block_type", _MID[1])
    if kind not in _MID:
        raise ValueError(f"mid_block_type is `{kind}`, and {' and '.join(_MID)} are known")
    depth = blocks[-1]
    return (depth if isinstance(depth, int) else depth[0]) if kind == _MID[1] else None


def _added(given: Mapping[str, Any]) -> tuple[int, int] | None:
    kind = given.get("addition_embed_type")
    if kind is None:
        return None
    if kind != "text_time":
        raise ValueError(f"addition_embed_type is `{kind}`, and `text_time` is known")
    return given["addition_time_embed_dim"], given["projection_class_embeddings_input_dim"]


def _wrong(why: str, where: str) -> InarchError:
    return InarchError(
        "IA210",
        "this configuration is not a UNet's that can be built",
        where=where,
        why=why,
        remedy="pass a checkpoint of Stable Diffusion 1, 2 or XL, or one fine-tuned from them",
    )
