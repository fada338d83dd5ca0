"""Sampling by steps as adapters see it: what is ahead of a step, and what the step gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from torch import Tensor


class Span(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Options of what acts in a part of sampling; a plugin's own options follow from it.

    Attributes:
        start: the share of sampling before which it does nothing.
        end: the share after which it does nothing.
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError("start and end are shares, 0 <= start < end <= 1")

    def holds(self, start: float, end: float) -> bool:
        """Whether a step, from one share done to another, lies in it."""
        return self.start <= start and end <= self.end


class Look(Protocol):
    """What flows at some addresses when the model is asked about other latents, by address.

    It is asked as in the step that is ahead, prompts and guidance included, but without the
    adapters that read inputs: what they say is of the picture that is being made.

    Args:
        latents: [batch, channels, height, width], with the noise of the moment.
        addresses: of sites of the pristine model.
        beside: [batch, ...], channels for a model that takes more than latents.
    """

    def __call__(
        self, latents: Tensor, addresses: Sequence[str], beside: Tensor | None = None
    ) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Ahead:
    """One step of sampling, before the model is asked.

    Attributes:
        timestep: where the model will be asked.
        inputs: what is the same in every step, by name: what users gave for adapters' inputs, read.
        scheduler: of diffusers, with its noise levels.
        noise: draws standard normal noise [batch, channels, height, width] like the latents.
        encoded: pictures that were given for an input, in 0..1, as latents of the same shape; by
            the input's name, once a run.
        look: see `Look`.
    """

    timestep: Tensor
    inputs: Mapping[str, Any]
    scheduler: Any
    noise: Callable[[], Tensor]
    encoded: Callable[[str], Tensor]
    look: Look


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
