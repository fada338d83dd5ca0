"""Random ControlNets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inarch_stable_diffusion.beside_diffusers import randomised


def controlnet(unet: Any, folder: Path | None = None, seed: int = 5, **settings: Any) -> Any:
    """diffusers' ControlNet for a UNet, of random weights, saved in a folder."""
    from diffusers import ControlNetModel

    net = ControlNetModel.from_unet(
        unet, load_weights_from_unet=False, conditioning_embedding_out_channels=(4, 6, 6, 10)
    )
    if settings:
        config = {n: v for n, v in net.config.items() if n != "_use_default_values"}
        net = ControlNetModel.from_config({**config, **settings})
    randomised(net, seed)
    if folder is not None:
        net.save_pretrained(folder)
    return net
