"""Small image models in diffusers and here, and files of LoRA for them in every format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from inarch.adapters import Model
from inarch_clip.config import parse_text
from inarch_clip.text import text
from inarch_stable_diffusion.unet import unet
from inarch_stable_diffusion.unet_config import parse_unet

UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 10 + 6 * 6,
    "use_linear_projection": True,
    "layers_per_block": 2,
}
TEXT = {
    "vocab_size": 99,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "eos_token_id": 98,
}


class Pipeline:
    """The parts of a pipeline that take LoRA, in diffusers and here, of equal weights."""

    def __init__(self, xl: bool) -> None:
        torch.manual_seed(0)
        names = ("unet", "text_encoder", "text_encoder_2") if xl else ("unet", "text_encoder")
        config = transformers.CLIPTextConfig(**TEXT)
        kind = StableDiffusionXLLoraLoaderMixin if xl else StableDiffusionLoraLoaderMixin
        self.theirs: Any = type("Parts", (kind,), {"components": {}, "hf_device_map": None})()
        trees = {}
        for name in names:
            if name == "unet":
                module = diffusers.UNet2DConditionModel(**UNET) if not xl else None
                module = module or diffusers.UNet2DConditionModel(**{**UNET, **XL})
                tree = unet(parse_unet(dict(module.config)))
            else:
                module = transformers.CLIPTextModel(config)
                tree = text(parse_text(config.to_dict(), projection=False))
            module.requires_grad_(False).eval()
            setattr(self.theirs, name, module)
            state = module.state_dict()
            if name != "unet" and not any(key.startswith("text_model.") for key in state):
                state = {f"text_model.{key}": value for key, value in state.items()}
            tree.load_state_dict(state)
            trees[name] = tree.requires_grad_(False).eval()
        self.xl = xl
        self.ours = Model(trees, roles={"attention.query": "unet.*_blocks.*.attentions.*"})

    def layers(self) -> dict[str, nn.Module]:
        """Every layer a LoRA may stand beside, by address."""
        return {
            address: site.module
            for address, site in self.ours.sites.all.items()
            if isinstance(site.module, nn.Linear | nn.Conv2d)
        }

    def outputs(self, model: Model | None = None) -> dict[str, Tensor]:
        """What each part makes of fixed inputs: diffusers' parts, or those of a model of ours."""
        generator = torch.Generator().manual_seed(1)
        latents, prompt = (torch.randn(s, generator=generator) for s in ((2, 4, 8, 8), (2, 5, 12)))
        ids = torch.randint(0, 98, (2, 9), generator=generator)
        when = torch.tensor([3, 500])
        pooled, sizes = torch.randn(2, 10, generator=generator), torch.ones(2, 6)
        if model is None:
            added = {"text_embeds": pooled, "time_ids": sizes} if self.xl else None
            noise = self.theirs.unet(latents, when, prompt, added_cond_kwargs=added).sample
            found = {"unet": noise}
            for name in self.encoders():
                found[name] = getattr(self.theirs, name)(ids).last_hidden_state
            return found
        more = {"text_embeds": pooled, "time_ids": sizes} if self.xl else {}
        found = {"unet": model.trees["unet"](latents, timestep=when, text=prompt, **more)}
        for name in self.encoders():
            found[name] = model.trees[name](ids, mask=None)[0]
        return found

    def encoders(self) -> list[str]:
        return [name for name in self.ours.trees if name != "unet"]


Factors = dict[str, tuple[Tensor, Tensor, float | None]]


def random_lora(
    layers: Mapping[str, nn.Module], seed: int, alphas: tuple[float | None, ...] = (1.0, 2.0, 3.0)
) -> Factors:
    """A, B and alpha for each layer, of ranks 2 and 3."""
    generator = torch.Generator().manual_seed(seed)
    found: Factors = {}
    for at, (address, layer) in enumerate(layers.items()):
        rank = 2 + at % 2
        weight = layer.weight
        ones = (1,) * (weight.dim() - 2)
        first = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.3
        second = torch.randn(weight.shape[0], rank, *ones, generator=generator) * 0.3
        found[address] = (first, second, alphas[at % len(alphas)])
    return found


def attention(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """What diffusers' older files adapt."""
    ends = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
    return {a: layer for a, layer in layers.items() if a.endswith(ends)}


# The added embedding is renamed to nothing, and an upsampler of a block without attention taken for
# attention.
LOST_BY_DIFFUSERS = {"kohya": ["add_embedding"], "sgm": ["unet.up_blocks.0.upsamplers"]}


def kohya_name(address: str, xl: bool, path: str | None = None) -> str:
    tree, _, own = address.partition(".")
    prefix = {"unet": "lora_unet_", "text_encoder_2": "lora_te2_"}.get(tree)
    prefix = prefix or ("lora_te1_" if xl else "lora_te_")
    return prefix + (path or own).replace(".", "_")


def kohya(factors: Factors, xl: bool, names: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for address, (first, second, alpha) in factors.items():
        path = (names or {}).get(address.removeprefix("unet."))
        name = kohya_name(address, xl, path if address.startswith("unet.") else None)
        state |= {f"{name}.lora_down.weight": first, f"{name}.lora_up.weight": second}
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


def dotted(factors: Factors, down: str, up: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for address, (first, second, _) in factors.items():
        state |= {f"{address}.{down}": first, f"{address}.{up}": second}
    return state


def old_diffusers(factors: Factors) -> dict[str, Tensor]:
    """`attn1.processor.to_q_lora.down.weight`, and `self_attn.to_q_lora` in text encoders."""
    state: dict[str, Tensor] = {}
    own = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    for address, (first, second, _) in factors.items():
        path, _, last = address.removesuffix(".0").rpartition(".")
        between = ".processor" if address.startswith("unet.") else ""
        name = f"{path}{between}.{own.get(last, last)}_lora"
        state |= {f"{name}.down.weight": first, f"{name}.up.weight": second}
    return state


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def by_sums(pipeline: Pipeline, *terms: tuple[Factors, float]) -> dict[str, Tensor]:
    """What our trees give with the products added to their weights."""
    layers = pipeline.layers()
    before = {a: layer.weight.clone() for a, layer in layers.items()}
    for factors, scale in terms:
        for address, (first, second, alpha) in factors.items():
            weight = layers[address].weight
            rank = first.shape[0]
            product = (second.flatten(1) @ first.flatten(1)).view_as(weight)
            weight.add_(product * scale * (1.0 if alpha is None else alpha / rank))
    found = pipeline.outputs(pipeline.ours)
    for address, layer in layers.items():
        layer.weight.copy_(before[address])
    return found


def write(state: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({k: v.clone().contiguous() for k, v in state.items()}, file, metadata)
    return file
