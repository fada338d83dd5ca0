"""The steps without weights that the trees of this package are written with."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from inarch.nn import of_pieces


def timestep_embedding(
    x: Tensor, *, timestep: Tensor, width: int = 320, flip: bool = True, shift: float = 0
) -> Tensor:
    """The timestep as cosines and sines of falling frequencies, for each item of a batch.

    Args:
        x: [batch, ...], whose dtype and batch size the result has.
        timestep: [batch], [1] or a number of no dimension.
        width: of the embedding.
        flip: cosines first.
        shift: how much fewer steps the frequencies fall in than there are.

    Returns:
        [batch, width].

    Source: Ho et al. 2020, arXiv:2006.11239; Vaswani et al. 2017, arXiv:1706.03762.
    """
    steps = timestep.reshape(-1).to(x.device).expand(x.shape[0])
    return sinusoids(steps, width, flip, shift).to(x.dtype)


def added_conditions(
    x: Tensor,
    *,
    text_embeds: Tensor,
    time_ids: Tensor,
    width: int = 256,
    flip: bool = True,
    shift: float = 0,
) -> Tensor:
    """SDXL's further conditions: the pooled text, and the sizes as sinusoids.

    Args:
        x: of the dtype the result has.
        text_embeds: [batch, text].
        time_ids: [batch, 6]: the original size, where it was cropped, and the size wanted, as
            height and width in pixels; [batch, 5] for the refiner.
        width: of one number's embedding.

    Returns:
        [batch, text + 6 * width].

    Source: Podell et al. 2023, arXiv:2307.01952, section 2.2.
    """
    sizes = sinusoids(time_ids.flatten(), width, flip, shift)
    return torch.cat((text_embeds, sizes.reshape(len(text_embeds), -1)), dim=-1).to(x.dtype)


def sinusoids(numbers: Tensor, width: int, flip: bool, shift: float) -> Tensor:
    """[n] to [n, width], in float32."""
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=numbers.device)
    angles = numbers[:, None].float() * torch.exp(exponent / (half - shift))[None]
    pair = (angles.cos(), angles.sin()) if flip else (angles.sin(), angles.cos())
    waves = torch.cat(pair, dim=-1)
    return F.pad(waves, (0, 1)) if width % 2 else waves


ACTIVATION = {"silu": F.silu, "swish": F.silu, "gelu": F.gelu, "mish": F.mish, "relu": F.relu}


def over_pixels(x: Tensor) -> Tensor:
    """[batch, channels] to [batch, channels, 1, 1]."""
    return torch.unflatten(x, 1, (-1, 1, 1))


class Grid(NamedTuple):
    """What its tokens forget of an image: how large it is, and how it lies in memory."""

    height: int
    width: int
    layout: torch.memory_format


def grid_of(x: Tensor) -> Grid:
    """The grid of an image [batch, channels, height, width]."""
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return Grid(x.shape[2], x.shape[3], layout)


def to_tokens(x: Tensor) -> Tensor:
    """[batch, channels, height, width] to [batch, height * width, channels], a view."""
    return x.flatten(2).transpose(1, 2)


def to_rows(x: Tensor) -> Tensor:
    """As `to_tokens`, each token's channels side by side in memory.

    Laid out anew once, where every normalisation would do it for itself, and every sum would read
    its two sides in different orders.
    """
    return to_tokens(x).contiguous()


def to_image(x: Tensor, *, grid: Grid) -> Tensor:
    """[batch, height * width, channels] to [batch, channels, height, width]."""
    image = torch.unflatten(x.transpose(1, 2), 2, grid[:2])
    return image.contiguous(memory_format=grid.layout)


def everywhere(_x: Tensor) -> None:
    """The mask of attention that looks everywhere."""
    return None


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention, with no notion of before and after.

    Args:
        query: [batch, heads, tokens, head_dim].
        key, value: [batch, heads, keys, head_dim].
        mask: [batch or 1, heads or 1, tokens or 1, keys], True where a query may look, or None.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


@of_pieces(2)
def geglu(x: Tensor) -> Tensor:
    """[..., 2 * width] to [..., width]: one half, gated by the other. Source: arXiv:2002.05202."""
    half, gate = x.chunk(2, dim=-1)
    return half * F.gelu(gate)


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Repeat pixels up to the height and width of `like`, twice its own or one less."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def double(x: Tensor) -> Tensor:
    """Repeat pixels to twice the height and width."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def pad_below(x: Tensor) -> Tensor:
    """A row of zeros below and a column on the right."""
    return F.pad(x, (0, 1, 0, 1))


def mean_of(moments: Tensor) -> Tensor:
    """The mean of a normal distribution from its mean and logarithmic variance, in channels."""
    return moments.chunk(2, dim=1)[0]
