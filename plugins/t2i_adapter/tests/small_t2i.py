"""Random T2I-Adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inarch_stable_diffusion.beside_diffusers import randomised

_FULL = {"adapter_type": "full_adapter", "channels": [8, 8, 16, 16]}
_LARGE = {"adapter_type": "full_adapter_xl", "channels": [8, 16, 16, 16], "downscale_factor": 16}
_LIGHT = {"adapter_type": "light_adapter", "channels": [8, 8, 16], "num_res_blocks": 3}
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("deep", _FULL),
    "grey": ("deep", {**_FULL, "in_channels": 1}),
    "xl": ("xl", _LARGE),
    "light": ("deep", _LIGHT),
}


def t2i(kind: str, folder: Path | None = None, seed: int = 5) -> Any:
    """diffusers' T2I-Adapter of random weights, saved in a folder."""
    from diffusers import T2IAdapter

    net = randomised(T2IAdapter(**ADAPTERS[kind][1]), seed)
    if folder is not None:
        net.save_pretrained(folder)
    return net
