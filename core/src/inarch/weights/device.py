"""The device that is asked for."""

from __future__ import annotations

import torch

from inarch.errors import InarchError


def device_of(device: str | torch.device) -> torch.device:
    """A device that exists.

    Raises:
        InarchError: IA209.
    """
    try:
        place = torch.device(device)
        if place.type != "meta":
            torch.empty(0, device=place)
    except Exception as error:  # torch raises RuntimeError, AssertionError or its own, by backend
        raise InarchError(
            "IA209",
            f"the device `{device}` is not to be had",
            why=str(error).splitlines()[0],
            remedy='device="cpu"',
        ) from None
    return place
