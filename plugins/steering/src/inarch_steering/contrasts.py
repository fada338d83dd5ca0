"""How to make a steering vector without training: what two sets of texts differ in.

Source: Rimsky et al. 2023, "Steering Llama 2 via Contrastive Activation Addition", section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch.weights import write_adapter


def contrast(
    model: Any,
    positive: Sequence[Any],
    negative: Sequence[Any],
    *,
    capture: Sequence[str],
    out: str | Path | None = None,
) -> Mapping[str, Tensor]:
    """The mean difference of what flows at the last position of two sets of prompts.

    Args:
        model: a language model.
        positive: texts or messages towards which to steer.
        negative: those to steer away from.
        capture: roles or addresses of the sites.
        out: a file to save the vectors to, which `inarch.adapter("steering", weights=out)` reads.

    Returns:
        A vector [features] for each site.

    Raises:
        InarchError: IA481 where one of the sets is empty.
    """
    if not positive or not negative:
        raise InarchError(
            "IA481", "a contrast needs texts on both sides", remedy="give at least one of each"
        )
    sides = [_mean(model, side, capture) for side in (positive, negative)]
    vectors = {address: sides[0][address] - sides[1][address] for address in sides[0]}
    if out is not None:
        write_adapter(Path(out), vectors, {"fingerprint": model.fingerprint()})
    return vectors


@torch.no_grad()
def _mean(model: Any, prompts: Sequence[Any], capture: Sequence[str]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for prompt in prompts:
        ids = torch.tensor([model.encode(prompt)], device=model.device)
        _, captured = model(ids, capture=capture)
        for address, value in captured.items():
            last = value[0, -1]
            total[address] = total[address] + last if address in total else last
    return {address: value / len(prompts) for address, value in total.items()}
