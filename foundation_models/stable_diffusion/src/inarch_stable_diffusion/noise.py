"""Standard normal latents, one seed's the same on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Generator = torch.Generator | list[torch.Generator]


def normal(
    shape: Sequence[int], generator: Generator, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """[rows, ...], drawn where the generator is, or from one generator for each row."""
    if isinstance(generator, list):
        drawn = [torch.randn((1, *shape[1:]), generator=g, dtype=dtype) for g in generator]
        return torch.cat(drawn).to(device)
    return torch.randn(tuple(shape), generator=generator, dtype=dtype).to(device)
