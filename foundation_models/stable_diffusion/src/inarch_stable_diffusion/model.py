"""Stable Diffusion: what `inarch.load` makes of a pipeline's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inarch.adapters import Example, Model
from inarch.errors import InarchError
from inarch.tree import Chain
from inarch_clip.text import text
from inarch_stable_diffusion import tasks, tiny
from inarch_stable_diffusion.autoencoder import Autoencoder
from inarch_stable_diffusion.checkpoint import PipelineCheckpoint, reading
from inarch_stable_diffusion.config import StableDiffusionConfig, parse
from inarch_stable_diffusion.sampling import Callback
from inarch_stable_diffusion.unet import unet
from inarch_stable_diffusion.vae import vae

if TYPE_CHECKING:
    from inarch.weights import Checkpoint
    from inarch_clip.tokens import ClipTokenizer


class StableDiffusion(Model):
    """Stable Diffusion 1, 2 and XL: `unet`, `vae`, `text_encoder` and `text_encoder_2`."""

    config: StableDiffusionConfig
    ignored = ("*.embeddings.position_ids",)
    in_stretches = ("vae", "text_encoder", "text_encoder_2")

    @classmethod
    def reading(cls, checkpoint: Checkpoint) -> Checkpoint:
        return reading(checkpoint)

    @classmethod
    def dtype_of(cls, config: Any, tree: str, dtype: torch.dtype) -> torch.dtype:
        """The autoencoder stays in float32 where float16 overflows in it."""
        overflows = tree == "vae" and dtype is torch.float16 and config.vae.force_upcast
        return torch.float32 if overflows else dtype

    @classmethod
    def parse_config(cls, config: dict[str, Any]) -> StableDiffusionConfig:
        """The configurations of a pipeline's parts, each under the name of its folder.

        Raises:
            InarchError: IA210.
        """
        return parse(config)

    @classmethod
    def build(cls, config: StableDiffusionConfig) -> dict[str, Chain]:
        trees = {"unet": unet(config.unet)}
        if config.vae is not None:
            trees["vae"] = vae(config.vae)
        return trees | {name: text(getattr(config, name)) for name in config.text_encoders}

    @classmethod
    def tiny_configs(cls) -> Mapping[str, dict[str, Any]]:
        return tiny.CONFIGS

    def examples(self) -> Sequence[Example]:
        """Two noisy images at once, two images and two prompts, one of a tree each."""
        return tiny.examples(self.config, self.trees)

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """The two halves of the autoencoder, with the adapters in it.

        Raises:
            InarchError: IA506 for a model without one.
        """
        if self.config.vae is None:
            raise InarchError(
                "IA506",
                "this model has no autoencoder",
                where="" if self.checkpoint is None else str(self.checkpoint.path),
                why=f"its trees are: {', '.join(self.trees)}",
                remedy='load the folder of a whole pipeline, or ask for output="latents"',
            )
        return Autoencoder(self.trees["vae"], self.config.vae)

    def own_tokenizers(self) -> Mapping[str, ClipTokenizer]:
        """The tokenizer of each text encoder, by the encoder's name."""
        checkpoint = self.checkpoint
        return checkpoint.tokenizers if isinstance(checkpoint, PipelineCheckpoint) else {}

    def text_to_image(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_rescale: float = 0.0,
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        count: int = 1,
        scheduler: Any = None,
        eta: float = 0.0,
        clip_skip: int | None = None,
        original_size: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        output: str = "image",
        tile: int | bool | None = None,
        callback: Callback | None = None,
        preview: Callable[[Any, int], Any] | None = None,
        progress: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Images of what a prompt says.

        Args:
            prompt: one text, or a list of them, which runs as one batch.
            negative_prompt: what to keep away from: one for all, or one for each prompt.
            steps: of the scheduler; None is 30. What an adapter asks for (`model.asks`) goes before
                this and the other defaults: steps, guidance, scheduler and clip_skip.
            guidance: how far to go from the negative prompt to the prompt; 1 or less asks for the
                prompt alone, in half the time. None is 7.5, and 5 for XL.
            guidance_rescale: from 0 to 1, against overexposure (arXiv:2305.08891).
            seed: the same noise again: one for all, or one for each image. None draws one.
            latents: noise [images, 4, height / 8, width / 8] to begin with, standard normal.
            height, width: in pixels, multiples of 8; by default as the model was trained.
            count: images of each prompt.
            scheduler: None for the checkpoint's; `ddim`, `euler`, `euler a`, `dpm++ 2m karras`, any
                scheduler of diffusers by name, `{"name": ..., setting: ...}` with settings of its
                own, or one of diffusers' objects.
            eta: of DDIM: how much noise is added anew.
            clip_skip: how many last layers of the text encoders are left out, as in diffusers: its
                1 is what other tools call 2.
            original_size, crop, target_size: (height, width), (top, left) and (height, width) in
                pixels, which XL is told.
            output: `image` of Pillow (a list where several are asked for), `latents` of the UNet
                [images, 4, height / 8, width / 8], or `tensor` [images, 3, height, width] in 0..1.
            tile: decode in tiles of so many pixels; None does so beyond 2048 pixels.
            callback: told of each `Step`; giving False ends the run there.
            preview: called with a small image and the step's index, after each step.
            progress: a bar with steps a second on stderr; None shows it on a terminal.
            inputs: what adapters ask for: see `model.inputs`.

        Raises:
            InarchError: IA550 for settings that make no image, IA551 for an unknown scheduler,
                IA505 to IA508 for inputs that are missing, unknown or of the wrong kind.
        """
        return tasks.text_to_image(self, _wish(locals()))

    def image_to_image(
        self,
        prompt: str | Sequence[str],
        *,
        image: Any,
        strength: float = 0.8,
        negative_prompt: str | Sequence[str] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_rescale: float = 0.0,
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        count: int = 1,
        scheduler: Any = None,
        eta: float = 0.0,
        clip_skip: int | None = None,
        original_size: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        output: str = "image",
        tile: int | bool | None = None,
        callback: Callback | None = None,
        preview: Callable[[Any, int], Any] | None = None,
        progress: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """An image made anew as a prompt says.

        Args:
            prompt: as in `text_to_image`, as is all that is not named here.
            image: a path, an image of Pillow, or a tensor [batch, 3, height, width] in 0..1;
                resized to height and width, which are its own by default.
            strength: how much of it is made anew: the share of the steps that are run.

        Raises:
            InarchError: as `text_to_image`; IA550 for a strength that leaves no step.
        """
        return tasks.image_to_image(self, _wish(locals()), image)

    def inpaint(
        self,
        prompt: str | Sequence[str],
        *,
        image: Any,
        mask: Any,
        strength: float = 1.0,
        negative_prompt: str | Sequence[str] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_rescale: float = 0.0,
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        count: int = 1,
        scheduler: Any = None,
        eta: float = 0.0,
        clip_skip: int | None = None,
        original_size: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        output: str = "image",
        tile: int | bool | None = None,
        callback: Callback | None = None,
        preview: Callable[[Any, int], Any] | None = None,
        progress: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """An image made anew where a mask is white.

        With a model made for inpainting, whose UNet sees mask and image, or with any other, which
        is given back the image outside of the mask after each step.

        Args:
            prompt: as in `text_to_image`, as is all that is not named here.
            image: as in `image_to_image`.
            mask: likewise, of one channel: white or 1 is made anew.
            strength: how much of it is made anew.

        Raises:
            InarchError: as `image_to_image`.
        """
        return tasks.inpaint(self, _wish(locals()), image, mask)


def _wish(given: Mapping[str, Any]) -> tasks.Wish:
    """A method's own parameters, by name."""
    fields = tasks.Wish.__dataclass_fields__
    return tasks.Wish(**{name: value for name, value in given.items() if name in fields})
