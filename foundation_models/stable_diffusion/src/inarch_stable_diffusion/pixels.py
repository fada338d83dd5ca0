"""Between images as users have them and what the autoencoder takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inarch.nn.picture import pictures
from inarch_stable_diffusion.autoencoder import Autoencoder

if TYPE_CHECKING:
    from PIL.Image import Image

LARGE = 2048
PREVIEW = 32


def size_of(image: Any, factor: int) -> tuple[int, int]:
    """Height and width of an image in pixels, each cut to a multiple of `factor`."""
    if isinstance(image, Sequence) and not isinstance(image, str):
        image = image[0]
    if isinstance(image, Tensor):
        height, width = image.shape[-2:]
    else:
        from PIL import Image

        if isinstance(image, str | Path):
            with Image.open(image) as file:
                width, height = file.size
        else:
            width, height = image.size
    return max(factor, height - height % factor), max(factor, width - width % factor)


def image_of(value: Any, height: int, width: int, name: str = "image") -> Tensor:
    """Pictures [batch, 3, height, width] in -1..1, as the autoencoder takes them.

    Raises:
        InarchError: IA505.
    """
    return pictures(value, height, width, name=name) * 2 - 1


def mask_of(value: Any, height: int, width: int) -> Tensor:
    """A mask [batch, 1, height, width] of zeros and ones.

    Raises:
        InarchError: IA505.
    """
    return (pictures(value, height, width, channels=1, name="mask") >= 0.5).float()


def shrunk(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask as high and wide as latents are."""
    return F.interpolate(mask, size=(height, width))


def decoded(autoencoder: Autoencoder, latents: Tensor, tile: int | bool | None) -> Tensor:
    """The UNet's latents to images [batch, 3, height, width] in 0..1, float32.

    Args:
        autoencoder: from which.
        latents: [batch, 4, height, width].
        tile: the side of tiles in pixels; True for the autoencoder's own, False for none, and None
            for tiles where an image is larger than 2048 pixels.
    """
    config = autoencoder.config
    if tile is None:
        tile = max(latents.shape[-2:]) * config.factor > LARGE
    side = max(config.sample_size, 2 * config.factor) if tile is True else (tile or None)
    wide = latents.to(autoencoder.weight.dtype)
    images = autoencoder.decode(autoencoder.from_unet(wide), tile=side)
    return (images.float() / 2 + 0.5).clamp(0, 1)


def to_pillow(images: Tensor) -> list[Image]:
    """[batch, 3, height, width] in 0..1 to images of Pillow."""
    from PIL import Image

    bytes_ = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().contiguous()
    return [
        Image.frombytes("RGB", (one.shape[1], one.shape[0]), bytes(one.flatten().tolist()))
        for one in bytes_
    ]


def preview(autoencoder: Autoencoder, latents: Tensor) -> Image:
    """A small picture of the first of some latents, decoded from an average of them."""
    first = latents[:1]
    share = min(1.0, PREVIEW / max(first.shape[-2:]))
    size = [max(1, round(n * share)) for n in first.shape[-2:]]
    small = F.interpolate(first.float(), size=size, mode="area")
    return to_pillow(decoded(autoencoder, small, False))[0]
