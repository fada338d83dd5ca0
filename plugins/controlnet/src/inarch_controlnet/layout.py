"""The names of a ControlNet's weights: diffusers', which are the copy's own, and the original ones.

The original layout (`control_model.`, and Control-LoRA, which has no prefix) counts layers
through: `input_blocks.4.1` holds the transformer after the fourth layer, where diffusers writes
`down_blocks.1.attentions.0`. The table is made from the copy's own names, so that it holds for
encoders of any depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

PREFIX = "control_model."
LORA_MARK = "lora_controlnet"
HINT = "controlnet_cond_embedding."
# A whole checkpoint of the original repository also holds the model that was controlled.
REST_OF_CHECKPOINT = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_FIRST = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "controlnet_mid_block": "middle_block_out.0",
}
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_LAYER = re.compile(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.+)")


def original_names(names: Iterable[str]) -> dict[str, str]:
    """The original name of each of the copy's modules or weights, by its own."""
    names = list(names)
    numbers = _numbers(names)
    return {name: _original(name, numbers) for name in names}


def original_hint_names(names: Iterable[str]) -> dict[str, str]:
    """The original name of each of the embedding's weights; every second step is an activation."""
    names = list(names)
    layers = 1 + len({n.split(".")[1] for n in names if n.startswith("blocks.")})
    found: dict[str, str] = {}
    for name in names:
        layer, _, leaf = name.rpartition(".")
        place = {"conv_in": 0, "conv_out": layers}.get(layer)
        place = int(layer.rpartition(".")[2]) + 1 if place is None else place
        found[name] = f"input_hint_block.{2 * place}.{leaf}"
    return found


def _numbers(names: Iterable[str]) -> dict[tuple[int, str, int], int]:
    """The number of each layer and downsampling of the copy, counted through from 1."""
    parts: set[tuple[int, str, int]] = set()
    for name in names:
        found = _LAYER.fullmatch(name)
        if found and found[2] != "attentions":
            parts.add((int(found[1]), found[2], int(found[3])))
    order = sorted(parts, key=lambda part: (part[0], part[1] == "downsamplers", part[2]))
    return {part: number for number, part in enumerate(order, start=1)}


def _original(name: str, numbers: dict[tuple[int, str, int], int]) -> str:
    for own, original in _FIRST.items():
        if name.startswith(f"{own}."):
            return original + name.removeprefix(own)
    if name.startswith("controlnet_down_blocks."):
        number, _, leaf = name.removeprefix("controlnet_down_blocks.").partition(".")
        return f"zero_convs.{number}.0.{leaf}"
    found = _LAYER.fullmatch(name)
    if found:
        block, kind, layer, rest = int(found[1]), found[2], int(found[3]), found[4]
        counted = "resnets" if kind == "attentions" else kind
        at = f"input_blocks.{numbers[block, counted, layer]}"
        if kind == "attentions":
            return f"{at}.1.{rest}"
        return f"{at}.0.{_resnet(rest) if kind == 'resnets' else rest.replace('conv', 'op', 1)}"
    for own, place in _MIDDLE.items():
        if name.startswith(f"mid_block.{own}."):
            rest = name.removeprefix(f"mid_block.{own}.")
            return f"middle_block.{place}.{_resnet(rest) if own != 'attentions.0' else rest}"
    return name


def _resnet(rest: str) -> str:
    own, _, leaf = rest.partition(".")
    return f"{_RESNET.get(own, own)}.{leaf}"
