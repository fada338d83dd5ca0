"""The halves of the autoencoder, each run alone; in tiles where an image is large."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inarch.tree import Chain, part
from inarch_stable_diffusion.vae_config import VAEConfig

OVERLAP = 0.25


@dataclass(frozen=True)
class Moments:
    """A normal distribution of latents for each image, [batch, latents, height, width] each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> Moments:
        mean, log_variance = moments.chunk(2, dim=1)
        return cls(mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw. The numbers are drawn where the generator is, so that they are the same."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(
            self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype
        )
        return self.mean + self.std * noise.to(self.mean.device)


class Autoencoder:
    """The two halves of an autoencoder's tree, adapted or not.

    Args:
        tree: made by `inarch_stable_diffusion.vae.vae`.
        config: of the tree.
    """

    def __init__(self, tree: Chain, config: VAEConfig) -> None:
        self.config = config
        self.encoder = part(tree, last="quant_conv")
        self.decoder = part(tree, first="post_quant_conv")
        self.weight = next(tree.parameters())

    def encode(self, images: Tensor, *, tile: int | None = None) -> Moments:
        """Images [batch, 3, height, width] in -1..1 to moments an eighth as high and wide.

        Args:
            images: of any device and dtype.
            tile: the side in pixels of the tiles that larger images are encoded in; None for the
                whole image at once.
        """
        images = images.to(self.weight.device, self.weight.dtype)
        if tile is None or max(images.shape[-2:]) <= tile:
            return Moments.of(self.encoder(images))
        factor = self.config.factor
        return Moments.of(tiled(self.encoder, images, tile, tile // factor))

    def decode(self, latents: Tensor, *, tile: int | None = None) -> Tensor:
        """Latents [batch, latents, height, width] to images eight times as high and wide.

        Args:
            latents: as the encoder gives them, of any device and dtype.
            tile: the side in pixels of the tiles that larger images are decoded in, with a quarter
                of overlap, blended; None for the whole image at once.

        Returns:
            [batch, 3, height, width], around -1..1.
        """
        latents = latents.to(self.weight.device, self.weight.dtype)
        side = None if tile is None else tile // self.config.factor
        if side is None or max(latents.shape[-2:]) <= side:
            return self.decoder(latents)
        return tiled(self.decoder, latents, side, side * self.config.factor)

    def to_unet(self, latents: Tensor) -> Tensor:
        """From the autoencoder's latents to the UNet's."""
        mean, std = self._normal(latents)
        return (latents - mean) * self.config.scaling_factor / std

    def from_unet(self, latents: Tensor) -> Tensor:
        """From the UNet's latents to the autoencoder's."""
        mean, std = self._normal(latents)
        return latents * std / self.config.scaling_factor + mean

    def _normal(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        c = self.config
        if c.latents_mean is None or c.latents_std is None:
            return c.shift_factor or 0.0, 1.0
        both = (latents.new_tensor(c.latents_mean), latents.new_tensor(c.latents_std))
        return both[0].view(1, -1, 1, 1), both[1].view(1, -1, 1, 1)


def tiled(run: Callable[[Tensor], Tensor], x: Tensor, side: int, made: int) -> Tensor:
    """Run tile by tile, and blend each over the quarter that it shares with its neighbours.

    Args:
        run: from [batch, channels, side, side] to [batch, other, made, made].
        x: [batch, channels, height, width].
        side, made: of a tile before and after.

    Returns:
        [batch, other, height * made / side, width * made / side].
    """
    step, blend = max(1, int(side * (1 - OVERLAP))), int(made * OVERLAP)
    keep = made - blend
    height, width = (math.ceil(n * made / side) for n in x.shape[-2:])
    result: Tensor | None = None
    above: list[Tensor] = []
    for i, top in enumerate(range(0, x.shape[2], step)):
        row: list[Tensor] = []
        for j, left in enumerate(range(0, x.shape[3], step)):
            tile = run(x[:, :, top : top + side, left : left + side])
            if result is None:
                result = tile.new_empty(*tile.shape[:2], height, width)
            if i > 0:
                tile = _blended(above[j], tile, blend, 2)
            if j > 0:
                tile = _blended(row[j - 1], tile, blend, 3)
            row.append(tile)
            shown = tile[:, :, :keep, :keep]
            place = result[:, :, i * keep :, j * keep :]
            place[:, :, : shown.shape[2], : shown.shape[3]] = shown
        above = row
    return x if result is None else result


def _blended(before: Tensor, tile: Tensor, extent: int, dim: int) -> Tensor:
    """A tile whose first rows or columns pass over from the last ones of the tile before."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    if extent == 0:
        return tile
    shape = [1, 1, 1, 1]
    shape[dim] = extent
    share = (torch.arange(extent, device=tile.device, dtype=tile.dtype) / extent).view(shape)
    old = before.narrow(dim, before.shape[dim] - extent, extent)
    mixed = old * (1 - share) + tile.narrow(dim, 0, extent) * share
    return torch.cat((mixed, tile.narrow(dim, extent, tile.shape[dim] - extent)), dim=dim)
