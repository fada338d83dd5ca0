"""The configuration of a whole pipeline: one for each of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from inarch_clip.config import TextConfig
from inarch_clip.config import parse as parse_clip
from inarch_stable_diffusion.unet_config import UNetConfig, parse_unet
from inarch_stable_diffusion.vae_config import VAEConfig, parse_vae

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


class StableDiffusionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The configurations of a pipeline's parts.

    Attributes:
        unet: always there.
        vae, text_encoder, text_encoder_2: None where the checkpoint has no such part.
        scheduler: of the checkpoint's `scheduler` folder, as diffusers writes it.
        zero_negative: whether no negative prompt is zeros, instead of an empty prompt.
        aesthetics: whether the sizes XL is told end with a score, as its refiner's do.
    """

    unet: UNetConfig
    vae: VAEConfig | None = None
    text_encoder: TextConfig | None = None
    text_encoder_2: TextConfig | None = None
    scheduler: dict[str, Any] = {}
    zero_negative: bool = False
    aesthetics: bool = False

    @property
    def factor(self) -> int:
        """How many pixels a latent is high and wide."""
        return 8 if self.vae is None else self.vae.factor

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The names of the text encoders there are."""
        return tuple(name for name in TEXT_ENCODERS if getattr(self, name) is not None)


def parse(given: Mapping[str, Any]) -> StableDiffusionConfig:
    """The configuration of a pipeline, each part's own under the name of its folder.

    Raises:
        InarchError: IA210 for a part that can't be built.
    """
    vae = given.get("vae")
    texts = {name: _text(given[name]) for name in TEXT_ENCODERS if given.get(name)}
    unet = parse_unet(given["unet"])
    return StableDiffusionConfig(
        unet=unet,
        vae=None if vae is None else parse_vae(vae),
        scheduler=dict(given.get("scheduler") or {}),
        zero_negative=bool(given.get("force_zeros_for_empty_prompt", unet.added is not None)),
        aesthetics=bool(given.get("requires_aesthetics_score", False)),
        **texts,
    )


def _text(given: Mapping[str, Any]) -> TextConfig | None:
    return parse_clip({**given, "model_type": "clip_text_model"}).text
