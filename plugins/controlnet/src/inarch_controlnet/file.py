"""A ControlNet's file, in any of its layouts, and the folder it is saved as."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch.weights import WeightsHeader, write_adapter, write_settings
from inarch_controlnet import layout
from inarch_controlnet.variant import Blocks

# What diffusers' ControlNet repeats of the configuration of the model it copies.
_REPEATED = (
    "act_fn",
    "addition_embed_type",
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "attention_head_dim",
    "block_out_channels",
    "class_embed_type",
    "cross_attention_dim",
    "down_block_types",
    "downsample_padding",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "flip_sin_to_cos",
    "freq_shift",
    "in_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "mid_block_type",
    "norm_eps",
    "norm_num_groups",
    "num_attention_heads",
    "num_class_embeds",
    "only_cross_attention",
    "projection_class_embeddings_input_dim",
    "resnet_time_scale_shift",
    "transformer_layers_per_block",
    "upcast_attention",
    "use_linear_projection",
)


class ControlNetFile:
    """What is in a file, asked by the names of the copy's weights.

    Args:
        header: None for a ControlNet that is yet to be trained.
        settings: of the config.json beside it.

    Raises:
        InarchError: IA452 for a file in no known layout, IA454 for a setting that isn't known.
    """

    def __init__(self, header: WeightsHeader | None, settings: Mapping[str, Any]) -> None:
        self.header = header
        self.settings = settings
        self.keys = set() if header is None else set(header.keys())
        self.is_lora = layout.LORA_MARK in self.keys
        self.prefix = layout.PREFIX if any(k.startswith(layout.PREFIX) for k in self.keys) else ""
        self.original = f"{self.prefix}input_hint_block.0.weight" in self.keys
        if header is not None:
            self._check(header)

    def _check(self, header: WeightsHeader) -> None:
        if not self.original and f"{layout.HINT}conv_in.weight" not in self.keys:
            raise InarchError(
                "IA452",
                "the file is in no layout of a ControlNet",
                where=str(header.path),
                why=f"it begins with: {', '.join(sorted(self.keys)[:3]) or 'nothing'}",
                remedy="pass the file of a ControlNet",
            )
        order = self.settings.get("controlnet_conditioning_channel_order", "rgb")
        wrong = {
            "controlnet_conditioning_channel_order": order not in ("rgb", "bgr"),
            "class_embed_type": self.settings.get("class_embed_type") is not None,
        }
        for name in (n for n, is_wrong in wrong.items() if is_wrong):
            raise InarchError(
                "IA454",
                f"the ControlNet sets `{name}`, and its value isn't known",
                where=f"{header.path.parent / 'config.json'}: {name} = {self.settings[name]}",
                remedy="convert the ControlNet without it",
            )
        if self.is_lora:
            header.used.add(layout.LORA_MARK)
        if self.prefix:
            header.used |= {k for k in self.keys if k.startswith(layout.REST_OF_CHECKPOINT)}

    @property
    def pooled(self) -> bool:
        """Whether only means over pixels are added, and only for the prompt."""
        return bool(self.settings.get("global_pool_conditions"))

    @property
    def flipped(self) -> bool:
        return self.settings.get("controlnet_conditioning_channel_order") == "bgr"

    @property
    def latent_channels(self) -> int | None:
        """How many channels the copy's first convolution reads, where the file tells."""
        shape = self._shape("conv_in.weight", hint=False) or self._shape("conv_in.down", hint=False)
        return None if shape is None else shape[1]

    @property
    def blocks(self) -> Blocks | None:
        """What the copy's blocks hold, where the file tells."""
        plain = self.header is not None and not self.original and not self.is_lora
        return Blocks.of(self.keys) if plain else None

    @property
    def hint(self) -> tuple[int, tuple[int, ...]] | None:
        """The channels of the picture and the widths of its embedding, where the file tells."""
        first = self._shape("conv_in.weight", hint=True)
        if first is None:
            return None
        header, start = self.header, f"{self.prefix}input_hint_block."
        if not self.original:
            start = f"{layout.HINT}blocks."
        outs: dict[int, int] = {}
        for key in self.keys:
            if header is not None and key.startswith(start):  # a weight or a bias, either tells
                number = int(key.removeprefix(start).partition(".")[0])
                outs[number] = header.shape(key)[0]
        if self.original:  # the first and the last are no blocks, and each second one is empty
            outs = {n // 2 - 1: out for n, out in outs.items() if 0 < n < max(outs)}
        return first[1], (first[0], *(outs[i] for i in sorted(outs) if i % 2))

    def ranks(self, names: Iterable[str]) -> dict[str, int]:
        """The rank of each of the copy's layers that the file has factors for."""
        if self.header is None or not self.is_lora:
            return {}
        found: dict[str, int] = {}
        for name, original in layout.original_names(names).items():
            key = f"{original.removesuffix('.weight')}.down"
            if name.endswith(".weight") and key in self.keys:
                found[name.removesuffix(".weight")] = self.header.shape(key)[0]
        return found

    def fills(self, names: Iterable[str], *, hint: bool) -> dict[str, str]:
        """The key of each weight; a Control-LoRA leaves the others to the base."""
        if self.header is None:
            return {}
        table = self._names(list(names), hint=hint)
        return {n: k for n, k in table.items() if not self.is_lora or k in self.keys}

    def _names(self, names: list[str], *, hint: bool) -> dict[str, str]:
        if not self.original:
            return {n: f"{layout.HINT}{n}" if hint else n for n in names}
        table = layout.original_hint_names(names) if hint else layout.original_names(names)
        return {n: f"{self.prefix}{k}" for n, k in table.items()}

    def _shape(self, name: str, *, hint: bool) -> tuple[int, ...] | None:
        key = self._names([name], hint=hint)[name]
        return self.header.shape(key) if self.header is not None and key in self.keys else None


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    hints: Mapping[str, Tensor],
    file: ControlNetFile,
    base: Mapping[str, Any],
    known: Mapping[str, Any],
    about: Mapping[str, str],
) -> None:
    """Write diffusers' folder, or a Control-LoRA's file; whole or not at all.

    Args:
        folder: where to.
        tensors, hints: of the copy, and of the picture's embedding, by their own names.
        file: what it was made from.
        base: the configuration of the model that was copied.
        known: settings of its own.
        about: `base` and `fingerprint` of the model, where known.

    Raises:
        InarchError: IA453 where no configuration is known.
    """
    if file.is_lora:
        table, hint_table = layout.original_names(tensors), layout.original_hint_names(hints)
        named = {table[n]: t for n, t in tensors.items()}
        named |= {hint_table[n]: t for n, t in hints.items()}
        named[layout.LORA_MARK] = torch.zeros(0)
        write_adapter(folder / "control-lora.safetensors", named, about)
        return
    settings = file.settings or {name: base[name] for name in _REPEATED if name in base}
    if not settings:
        raise InarchError(
            "IA453",
            "the ControlNet can't be saved: the configuration of its base isn't known",
            where=str(folder),
            why="the model was not loaded from a checkpoint",
            remedy='base = inarch.load("path/to/checkpoint")',
        )
    named = {**tensors, **{f"{layout.HINT}{n}": t for n, t in hints.items()}}
    write_adapter(folder / "diffusion_pytorch_model.safetensors", named, about)
    write_settings(folder / "config.json", {"_class_name": "ControlNetModel", **settings, **known})
