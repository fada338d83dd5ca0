"""Guidance by adapters: what a step of sampling shows them, so that they can correct it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moment:
    """One step of sampling, after the model was asked and before the scheduler moves on.

    Attributes:
        latents: [batch, channels, height, width], as they came in.
        timestep: where the model was asked.
        predicted: what it predicts without a prompt where there is guidance, else with it;
            [batch, channels, height, width].
        exported: what adapters' edits export from the tree, for the same rows, by name.
        scheduler: of diffusers, with its noise levels.
        ask: the model at the same moment on other latents, with the same inputs as `predicted`.
    """

    latents: Tensor
    timestep: Tensor
    predicted: Tensor
    exported: Mapping[str, Tensor]
    scheduler: Any
    ask: Callable[[Tensor], Tensor]
