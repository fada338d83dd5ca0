"""An autoencoder's configuration, from the config.json of a diffusers `vae/` folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from inarch.errors import InarchError
from inarch_stable_diffusion.functions import ACTIVATION


class VAEConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of an autoencoder.

    Attributes:
        widths: channels, one for each resolution, the highest first.
        layers: resnets at each resolution of the encoder; the decoder has one more.
        quant_conv, post_quant_conv: whether a 1x1 convolution stands on either side of latents.
        scaling_factor, shift_factor: from the autoencoder's latents to those of the UNet:
            `(latents - shift) * scaling`.
        latents_mean, latents_std: for each channel, where a model was trained on them normalised.
        force_upcast: whether half precision overflows in it, so that it runs in float32.
        sample_size: of the images it was trained on, and of the tiles it is run in.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...]
    layers: int = 1
    norm_groups: int = 32
    activation: str = "silu"
    quant_conv: bool = True
    post_quant_conv: bool = True
    mid_attention: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    sample_size: int = 32

    @property
    def factor(self) -> int:
        """How many pixels a latent is high and wide."""
        return 2 ** (len(self.widths) - 1)


_NAMES = {
    "block_out_channels": "widths",
    "layers_per_block": "layers",
    "norm_num_groups": "norm_groups",
    "act_fn": "activation",
    "use_quant_conv": "quant_conv",
    "use_post_quant_conv": "post_quant_conv",
    "mid_block_add_attention": "mid_attention",
}
_KINDS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def parse_vae(given: Mapping[str, Any]) -> VAEConfig:
    """The configuration of a diffusers `vae/` folder.

    Raises:
        InarchError: IA210 for a setting that is missing, of the wrong type, or that would make
            another model than this tree.
    """
    config = {_NAMES.get(name, name): value for name, value in given.items()}
    config = {n: v for n, v in config.items() if n in VAEConfig.__struct_fields__}
    size = config.get("sample_size")
    if isinstance(size, list | tuple):
        config["sample_size"] = max(size)
    config.setdefault("widths", (64,))
    for name, kind in _KINDS.items():
        for one in given.get(name, ()):
            if one != kind:
                raise _wrong(f"`{one}` is not known", f"{name} = {list(given[name])}")
        if len(given.get(name, (kind,))) != len(config["widths"]):
            raise _wrong("there is one block for each width", name)
    if config.get("activation", "silu") not in ACTIVATION:
        raise _wrong(f"the activation `{config['activation']}` is not known", "act_fn")
    try:
        made: VAEConfig = msgspec.convert(config, VAEConfig)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), "config.json") from None
    for width in made.widths:
        if width % made.norm_groups:
            raise _wrong(f"{width} channels don't divide into {made.norm_groups} groups", "widths")
    return made


def _wrong(why: str, where: str) -> InarchError:
    return InarchError(
        "IA210",
        "this configuration is not an autoencoder's that can be built",
        where=where,
        why=why,
        remedy="pass a checkpoint of Stable Diffusion 1, 2 or XL, or one fine-tuned from them",
    )
