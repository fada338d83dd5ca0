"""Random IP-Adapters, and the same forward in both libraries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inarch_stable_diffusion import beside_diffusers


class Pair(beside_diffusers.Pair):
    """One UNet in both libraries, with IP-Adapters."""

    def load(self, *files: dict[str, Tensor]) -> None:
        """Give diffusers' UNet IP-Adapters, from what their files hold."""
        states = []
        for file in files:
            state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
            for key, tensor in file.items():
                part, _, rest = key.partition(".")
                state[part][rest] = tensor
            states.append(state)
        self.unet._load_ip_adapter_weights(states, low_cpu_mem_usage=False)
        self.unet.requires_grad_(False)

    def scale(self, *scales: float, within: str = "") -> None:
        for name, processor in self.unet.attn_processors.items():
            if hasattr(processor, "to_k_ip"):
                processor.scale = [s if name.startswith(within) else 0.0 for s in scales]

    def theirs(self, *embeddings: Tensor, masks: Any = None) -> Tensor:
        """diffusers' UNet with embeddings for each IP-Adapter."""
        extra = {**(self.extra or {}), "image_embeds": list(embeddings)}
        inside = None if masks is None else {"ip_adapter_masks": masks}
        return self.unet(
            self.latents,
            self.inputs["timestep"],
            self.inputs["text"],
            added_cond_kwargs=extra,
            cross_attention_kwargs=inside,
        ).sample


KINDS: dict[str, dict[str, tuple[int, ...]]] = {
    "plain": {
        "proj.weight": (48, 10),
        "proj.bias": (48,),
        "norm.weight": (12,),
        "norm.bias": (12,),
    },
    "full": {
        "proj.0.weight": (10, 10),
        "proj.0.bias": (10,),
        "proj.2.weight": (12, 10),
        "proj.2.bias": (12,),
        "proj.3.weight": (12,),
        "proj.3.bias": (12,),
    },
    "faceid": {
        "proj.0.weight": (20, 10),
        "proj.0.bias": (20,),
        "proj.2.weight": (48, 20),
        "proj.2.bias": (48,),
        "norm.weight": (12,),
        "norm.bias": (12,),
    },
}


def _resampler(prefix: str, reads: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}proj_in.weight": (hidden, reads),
        f"{prefix}proj_in.bias": (hidden,),
        f"{prefix}proj_out.weight": (12, hidden),
        f"{prefix}proj_out.bias": (12,),
        f"{prefix}norm_out.weight": (12,),
        f"{prefix}norm_out.bias": (12,),
    }
    for i in range(4):
        at = f"{prefix}layers.{i}"
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"{at}.{norm}.weight": (hidden,), f"{at}.{norm}.bias": (hidden,)}
        shapes |= {
            f"{at}.0.to_q.weight": (128, hidden),
            f"{at}.0.to_kv.weight": (256, hidden),
            f"{at}.0.to_out.weight": (hidden, 128),
            f"{at}.1.1.weight": (4 * hidden, hidden),
            f"{at}.1.3.weight": (hidden, 4 * hidden),
        }
    return shapes


KINDS["plus"] = {"latents": (1, 5, 6), **_resampler("", 10, 6)}
KINDS["faceid_plus"] = {
    "proj.0.weight": (20, 10),
    "proj.0.bias": (20,),
    "proj.2.weight": (48, 20),
    "proj.2.bias": (48,),
    "norm.weight": (12,),
    "norm.bias": (12,),
    **_resampler("perceiver_resampler.", 8, 12),
}


def ip_adapter(unet: Any, kind: str, seed: int = 5) -> dict[str, Tensor]:
    """What a file of a kind holds, of random weights, for a UNet."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"image_proj.{n}": s for n, s in KINDS[kind].items()}
    number = 1
    for name, module in unet.named_modules():
        if name.endswith("attn2.to_k") and not name.startswith("mid_block"):
            shapes |= _layer(number, module)
            number += 2
    shapes |= _layer(number, unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k)
    for i in range(1, len(unet.mid_block.attentions[0].transformer_blocks)):
        block = unet.mid_block.attentions[0].transformer_blocks[i]
        shapes |= _layer(number + 2 * i, block.attn2.to_k)
    tensors = {}
    for name, shape in shapes.items():
        fan = max(1.0, shape[-1] ** 0.5) if len(shape) > 1 else 3.0
        tensors[name] = torch.randn(shape, generator=generator) / fan
    return tensors


def _layer(number: int, to_k: Any) -> dict[str, tuple[int, ...]]:
    shape = tuple(to_k.weight.shape)
    return {f"ip_adapter.{number}.{p}.weight": shape for p in ("to_k_ip", "to_v_ip")}


def embedding(kind: str, seed: int = 3, images: int = 1, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    middle = (7,) if kind in ("plus", "full") else ()
    return torch.randn(batch, images, *middle, 10, generator=generator)
