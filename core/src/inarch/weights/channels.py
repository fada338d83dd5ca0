"""Where the channels of images lie in memory: first, as files have them, or last.

A convolution follows its weight: with its weight laid out channels last it gives images so too, and
everything after it keeps what it is given. So the first convolution of a tree is where its input is
laid out anew, once. Adapters' own convolutions follow the images they are given.
"""

from __future__ import annotations

import torch
from torch import nn


def lay_channels_last(module: nn.Module) -> None:
    """Lay out the weights of convolutions of images channels last; their values stay.

    Args:
        module: whose parameters, and those below it, are laid out in place.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight
            weight.data = weight.detach().contiguous(memory_format=torch.channels_last)
