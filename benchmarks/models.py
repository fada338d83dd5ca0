"""Models of two libraries on the very same weights, and LoRAs that both have."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import inarch
from benchmarks.measure import Setting
from inarch.adapters import Model
from inarch.plugins import index, load_object
from inarch.testing import Tiny
from inarch.weights import blank

ROOT = Path(__file__).parent.parent
"""Where a further process finds this package."""

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def llama_config(width: int, layers: int, **other: Any) -> dict[str, Any]:
    """A Llama's configuration, as transformers has it; narrow in all but what is asked for."""
    heads = max(2, width // 64)
    return {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        **other,
    }


SD15 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "attention_head_dim": 8,
}
"""Stable Diffusion 1.5's UNet, without its widths."""


def unet_config(channels: int, *, shallow: bool = False) -> dict[str, Any]:
    """SD1.5's UNet with `channels` for 320, and a text width to match.

    Args:
        channels: of the highest resolution, a multiple of 8.
        shallow: two of its four resolutions, each with one layer: 4 of 16 attention blocks.
    """
    config = {
        **SD15,
        "block_out_channels": (channels, 2 * channels, 4 * channels, 4 * channels),
        "cross_attention_dim": 2 * channels,
        "norm_num_groups": 4,
    }
    if shallow:
        kinds = ("down_block_types", "up_block_types")
        config |= {"layers_per_block": 1, "block_out_channels": (channels, 2 * channels)}
        config |= {kind: SD15[kind][2:] if "down" in kind else SD15[kind][:2] for kind in kinds}
    return config


def built(family: str, config: Mapping[str, Any], setting: Setting, seed: int = 0) -> Model:
    """A random model of ours, frozen, placed."""
    return Tiny(family, "benchmark", config).build(
        seed=seed, dtype=setting.dtype, device=setting.device
    )


def on_meta(family: str, config: Mapping[str, Any]) -> Model:
    """A model of ours without data."""
    kind: type[Model] = load_object("inarch.models", family)
    known = kind.parse_config(dict(config))
    with blank():
        trees = kind.build(known)
    for tree in trees.values():
        tree.requires_grad_(False).eval()
    return kind(trees, known, roles=index().models[family].roles, family=family)


def unet_of(setting: Setting, channels: int, *, shallow: bool = False) -> Model:
    """A Stable Diffusion whose other parts are as small as can be."""
    small = {"block_out_channels": (8,), "norm_num_groups": 4, "sample_size": 64}
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    unet = unet_config(channels, shallow=shallow)
    text = {
        "hidden_size": unet["cross_attention_dim"],
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 32,
        "max_position_embeddings": 77,
        "eos_token_id": 31,
    }
    config = {
        "model_type": "stable-diffusion",
        "vae": {**small, **kinds},
        "text_encoder": text,
        "unet": unet,
    }
    return built("stable-diffusion", config, setting)


def in_transformers(model: Model, config: Mapping[str, Any], setting: Setting) -> Any:
    """Transformers' Llama on the very tensors of ours."""
    import transformers

    options = {k: v for k, v in config.items() if k != "model_type"}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))
    theirs.load_state_dict(model.tree.state_dict(), assign=True)
    return theirs.to(setting.device).requires_grad_(False).eval()


def in_diffusers(model: Model, setting: Setting) -> Any:
    """Diffusers' UNet on the very tensors of ours."""
    import diffusers

    theirs = diffusers.UNet2DConditionModel(**model.sites.settings["unet"])
    theirs.load_state_dict(model.trees["unet"].state_dict(), assign=True)
    return theirs.to(setting.device).requires_grad_(False).eval()


def unet_inputs(width: int, size: int, setting: Setting) -> tuple[Any, Any, Any]:
    """Latents of a square picture, a timestep and a text, as both libraries' UNets take them.

    Args:
        width: of the text, which is the UNet's `cross_attention_dim`.
        size: of the latents.
        setting: on which device, in which dtype.
    """
    generator = torch.Generator().manual_seed(size)
    latents, text = (
        torch.randn(*shape, generator=generator).to(setting.device, setting.dtype)
        for shape in ((1, 4, size, size), (1, 12, width))
    )
    return latents, torch.tensor([500], device=setting.device), text


def attention_linears(model: Model) -> tuple[str, ...]:
    """The linear layers of a UNet's attention, which diffusers' LoRAs have."""
    ends = (".to_q", ".to_k", ".to_v", ".to_out.0")
    sites = [s.address for s in model.sites.all.values() if s.tree == "unet"]
    return tuple(address for address in sites if address.endswith(ends))


def load_in_diffusers(theirs: Any, name: str, folder: Path) -> None:
    """Load a folder's LoRA into diffusers' UNet, from its file."""
    [file] = folder.rglob("*.safetensors")
    theirs.load_lora_adapter(
        str(file.parent),
        prefix="unet",
        adapter_name=name,
        weight_name=file.name,
        local_files_only=True,
    )


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="inarch-benchmark-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def trained(base: Model, name: str, seed: int, **options: Any) -> Model:
    """The base with one LoRA that is not zero, as after training: B smaller than A.

    Sixteen of B's size at its beginning would have a forward amplify its own rounding.
    """
    model = base.adapt(inarch.adapter("lora", name=name, **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.adapter_parameters(name).items():
            noise = torch.randn(parameter.shape, generator=generator)
            size = 0.2 if key.endswith("lora_B") else 1.0
            parameter.copy_(noise * size / parameter[0].numel() ** 0.5)
    model.adapters[name].trainable = False
    return model


def saved(base: Model, names: Sequence[str], where: Path, **options: Any) -> dict[str, Path]:
    """Folders of so many LoRAs of a base, in PEFT's format."""
    return {
        name: trained(base, name, seed, **options).save_adapter(name, where / name)
        for seed, name in enumerate(names)
    }


def adapted(base: Model, folders: Mapping[str, Path], **options: Any) -> Model:
    """The base with all of some folders' LoRAs at once."""
    specs = [inarch.adapter("lora", weights=p, name=n, **options) for n, p in folders.items()]
    return base.adapt(*specs)


def in_peft(theirs: Any, folders: Mapping[str, Path]) -> Any:
    """PEFT's model with the same folders' LoRAs loaded, all of them active."""
    import peft

    names = list(folders)
    device = str(next(theirs.parameters()).device)
    model: Any = None
    for name in names:
        path = str(folders[name])
        if model is None:
            model = peft.PeftModel.from_pretrained(theirs, path, name, torch_device=device)
        else:
            model.load_adapter(path, name, torch_device=device)
    model.base_model.set_adapter(names)
    return model.requires_grad_(False).eval()


def token_ids(batch: int, length: int, setting: Setting, vocabulary: int = 512) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, vocabulary, (batch, length), generator=generator).to(setting.device)
