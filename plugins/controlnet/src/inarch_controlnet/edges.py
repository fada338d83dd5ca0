"""What ends and begins a ControlNet: zero convolutions, and the embedding of the picture.

Source: Zhang et al. 2023, arXiv:2302.05543, section 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.adapters import Edge
from inarch.tree import Chain
from inarch.tree.steps import Step


class ZeroConv(Edge):
    """A convolution of single pixels that begins as zero, times the adapter's scale.

    Args:
        width: channels in and out.
        factor: of the scale; guess mode has another one for each skip.
        pooled: whether only the mean over all pixels is added.
    """

    def __init__(self, width: int, factor: float = 1.0, *, pooled: bool = False) -> None:
        super().__init__()
        self.factor = factor
        self.pooled = pooled
        self.weight = nn.Parameter(torch.empty(width, width, 1, 1))
        self.bias = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width, height, width] to the same, or to one pixel where it is pooled."""
        if self.pooled:
            x = x.mean(dim=(2, 3), keepdim=True)
        x = F.conv2d(x, self.weight, self.bias)
        if torch.compiler.is_compiling():  # reading `strength` would guard on its value
            return x * (self.scale * self.factor)
        strength = self.strength * self.factor
        return x if strength == 1.0 else x * strength


class FromZero(nn.Conv2d):
    """A convolution that begins as zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def embedding(channels: int, widths: Sequence[int], out: int, *, flipped: bool) -> Chain:
    """A picture [batch, channels, height, width] as what is added to the latents' first layer.

    Each width after the first halves height and width.

    Args:
        channels: of the picture.
        widths: of the layers.
        out: channels of the result.
        flipped: whether it wants blue before red.
    """
    steps: list[Step] = [reversed_channels] if flipped else []
    steps += [("conv_in", nn.Conv2d(channels, widths[0], 3, padding=1)), F.silu]
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        same = nn.Conv2d(before, before, 3, padding=1)
        half = nn.Conv2d(before, after, 3, stride=2, padding=1)
        steps += [(f"blocks.{2 * i}", same), F.silu, (f"blocks.{2 * i + 1}", half), F.silu]
    return Chain(*steps, ("conv_out", FromZero(widths[-1], out, 3, padding=1)))


def reversed_channels(x: Tensor) -> Tensor:
    """The channels in reverse."""
    return x.flip(1)


def last_rows(x: Tensor, prompted: tuple[int, int]) -> Tensor:
    """The rows that are for a prompt, which come last; one row that serves all stays.

    Args:
        x: [batch, ...].
        prompted: how many of the rows are for a prompt, and how many there are. Where none is, one
            runs all the same, since no layer takes an empty batch; `among_zeros` leaves it out.
    """
    wanted, every = prompted
    return x[every - max(wanted, 1) :] if len(x) == every else x


def among_zeros(x: Tensor, prompted: tuple[int, int]) -> Tensor:
    """The rows that `last_rows` left, after zeros for the others: [batch, ...]."""
    wanted, every = prompted
    if wanted == every:
        return x
    zeros = x.new_zeros(every - wanted, *x.shape[1:])
    return torch.cat((zeros, x)) if wanted else zeros


def first_channels(x: Tensor, *, count: int = 4) -> Tensor:
    """The noisy latents alone, of an input that also holds a mask and a masked picture."""
    return x[:, :count]
