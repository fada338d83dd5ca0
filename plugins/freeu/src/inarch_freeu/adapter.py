"""FreeU as an adapter: two edits at each join of the first two stages of the way up.

Source: Si et al. 2023, "FreeU: Free Lunch in Diffusion U-Net", equations 3 to 6, in the form of its
official code and of diffusers, which amplifies half of the backbone's channels by a constant.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import msgspec
import torch
from torch import Tensor
from torch.fft import fftn, fftshift, ifftn, ifftshift

from inarch.adapters import Adapter, SiteView
from inarch.errors import InarchError
from inarch.tree import Edit
from inarch.weights import WeightsHeader


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("freeu", ...)` takes; by default what the paper uses for SD 1.5.

    Attributes:
        b1, b2: factors of half of the backbone's channels in the first and the second stage.
        s1, s2: factors of the skips' low frequencies there.
    """

    b1: float = 1.5
    b2: float = 1.6
    s1: float = 0.9
    s2: float = 0.2

    def __post_init__(self) -> None:
        if min(self.b1, self.b2, self.s1, self.s2) <= 0:
            raise ValueError("b1, b2, s1 and s2 are positive")


class FreeU(Adapter):
    """Louder backbone, quieter low frequencies of skips."""

    Options = Options
    options: Options

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        if weights is not None:
            raise InarchError(
                "IA491", "FreeU has no weights", where=str(weights.path), remedy="leave them out"
            )
        blocks = [site.address for site in sites.find(["block.up"])]
        backbones = [site.address for site in sites.find(["skip.join.backbone"])]
        skips = [site.address for site in sites.find(["skip.join.skip"])]
        o = self.options
        for block, b, s in zip(blocks, (o.b1, o.b2), (o.s1, o.s2), strict=False):
            for address in (a for a in backbones if a.startswith(f"{block}.")):
                yield Edit.after(address, partial(amplify_half, factor=b), self.name)
            for address in (a for a in skips if a.startswith(f"{block}.")):
                yield Edit.after(address, partial(damp_low_frequencies, factor=s), self.name)


def amplify_half(x: Tensor, *, factor: float = 1.0) -> Tensor:
    """The first half of the channels of [batch, channels, height, width] times a factor."""
    half = x.shape[1] // 2
    return torch.cat([x[:, :half] * factor, x[:, half:]], dim=1)


def damp_low_frequencies(x: Tensor, *, factor: float = 1.0) -> Tensor:
    """[batch, channels, height, width] with its four lowest frequencies times a factor.

    In float32: half precision has no transform of every size.
    """
    waves = fftshift(fftn(x.float(), dim=(-2, -1)), dim=(-2, -1))
    mask = torch.ones(waves.shape[-2:], device=x.device)
    row, column = waves.shape[-2] // 2, waves.shape[-1] // 2
    mask[row - 1 : row + 1, column - 1 : column + 1] = factor
    damped = ifftn(ifftshift(waves * mask, dim=(-2, -1)), dim=(-2, -1)).real
    return damped.to(x.dtype)
