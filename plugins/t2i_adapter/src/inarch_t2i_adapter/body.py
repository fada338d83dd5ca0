"""The three networks of T2I-Adapter, in diffusers' names.

Source: Mou et al. 2023, arXiv:2302.08453, figure 3; diffusers' `models/adapter.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.adapters import Edge
from inarch.tree import Chain, Let, Parallel, Residual, Seq, Use
from inarch.tree.steps import Step

Kind = Literal["full_adapter", "full_adapter_xl", "light_adapter"]


class BodyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a network, under the names of diffusers' config.json.

    Attributes:
        in_channels: of the picture.
        channels: of the features; light has one more, as wide as the last.
        num_res_blocks: residual layers before each feature.
        downscale_factor: how many pixels of the picture, each way, are one of the first feature.
        adapter_type: which of the three.
    """

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: Kind = "full_adapter"

    @property
    def features(self) -> tuple[int, ...]:
        """The channels of each feature."""
        last = self.channels[-1:] if self.adapter_type == "light_adapter" else ()
        return self.channels + last

    @property
    def unshuffled(self) -> int:
        """Channels of the picture once its pixels stand in them."""
        return self.in_channels * self.downscale_factor**2


class Strength(Edge):
    """A feature times the adapter's scale."""

    def reset_parameters(self) -> None:
        """It has none."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # reading `strength` would guard on its value
            return x * self.scale
        return x if self.strength == 1.0 else x * self.strength


def body(c: BodyConfig, name: str) -> Chain:
    """A picture [batch, channels, height, width] to its features, from large to small.

    Args:
        c: the sizes.
        name: the adapter's, after which the features are called.
    """
    unshuffle = partial(F.pixel_unshuffle, downscale_factor=c.downscale_factor)
    steps: list[Step] = [("unshuffle", unshuffle)]
    light = c.adapter_type == "light_adapter"
    width = c.unshuffled
    if not light:
        steps.append(("conv_in", nn.Conv2d(width, c.channels[0], 3, padding=1)))
        width = c.channels[0]
    for i, out in enumerate(c.features):
        halves = i == 2 if c.adapter_type == "full_adapter_xl" else i > 0
        block = light_block if light else full_block
        steps += [(f"body.{i}", block(c, width, out, halves)), Let(f"feature_{i}")]
        width = out
    scaled = [
        (f"{name}_{i}", Seq(Use(f"feature_{i}"), (f"strength.{i}", Strength())))
        for i in range(len(c.features))
    ]
    return Chain(*steps, Parallel(*scaled))


def full_block(c: BodyConfig, width: int, out: int, halves: bool) -> Chain:
    steps: list[Step] = [HALVE] if halves else []
    if width != out:
        steps.append(("in_conv", nn.Conv2d(width, out, 1)))
    return Chain(*steps, *residuals(c, out, 1))


def light_block(c: BodyConfig, width: int, out: int, halves: bool) -> Chain:
    middle = out // 4
    return Chain(
        *([HALVE] if halves else []),
        ("in_conv", nn.Conv2d(width, middle, 1)),
        *residuals(c, middle, 3),
        ("out_conv", nn.Conv2d(middle, out, 1)),
    )


def residuals(c: BodyConfig, width: int, kernel: int) -> list[tuple[str, Any]]:
    """The residual layers, whose second convolution sees `kernel` pixels each way."""

    def layer() -> Chain:
        second = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        return Chain(
            Residual(block1=nn.Conv2d(width, width, 3, padding=1), act=F.relu, block2=second)
        )

    return [(f"resnets.{j}", layer()) for j in range(c.num_res_blocks)]


HALVE = ("downsample", partial(F.avg_pool2d, kernel_size=2, stride=2, ceil_mode=True))
