"""The layers of a diffusion UNet under the names of the original code (`sgm`, before it `ldm`).

Made from the tree itself: how many blocks, layers and samplers there are is read from its paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_PART = re.compile(
    r"(?P<block>down_blocks\.\d+|mid_block|up_blocks\.\d+)\."
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<at>\d+)\.(?P<rest>.+)"
)


def sgm_names(paths: Iterable[str]) -> dict[str, str]:
    """For each path of a UNet in diffusers' names, the one it has in the original code."""
    paths = list(paths)
    parts = [found for path in paths for found in [_PART.fullmatch(path)] if found]
    counts: dict[tuple[str, str], int] = {}
    for part in parts:
        place = part["block"], part["kind"]
        counts[place] = max(counts.get(place, 0), int(part["at"]) + 1)
    blocks = dict(_blocks(counts))
    names = {path: _OUTER[path] for path in paths if path in _OUTER}
    for part in parts:
        block = blocks[part["block"], part["kind"], int(part["at"])]
        rest = part["rest"]
        if part["kind"] == "resnets":
            rest = _RESNET.get(rest, rest)
        elif part["kind"] == "downsamplers":
            rest = rest.replace("conv", "op", 1)
        names[part.string] = f"{block}.{rest}"
    return names


def _blocks(counts: dict[tuple[str, str], int]) -> Iterator[tuple[tuple[str, str, int], str]]:
    """The original name of each resnet, attention and sampler, in the order it counts them."""
    number = 1
    for block in _ordered(counts, "down_blocks"):
        for at in range(counts.get((block, "resnets"), 0)):
            yield (block, "resnets", at), f"input_blocks.{number}.0"
            yield (block, "attentions", at), f"input_blocks.{number}.1"
            number += 1
        if (block, "downsamplers") in counts:
            yield (block, "downsamplers", 0), f"input_blocks.{number}.0"
            number += 1
    for at in range(counts.get(("mid_block", "resnets"), 0)):
        yield ("mid_block", "resnets", at), f"middle_block.{2 * at}"
        yield ("mid_block", "attentions", at), f"middle_block.{2 * at + 1}"
    number = 0
    for block in _ordered(counts, "up_blocks"):
        layers = counts.get((block, "resnets"), 0)
        for at in range(layers):
            yield (block, "resnets", at), f"output_blocks.{number}.0"
            yield (block, "attentions", at), f"output_blocks.{number}.1"
            if at == layers - 1:
                beside = 2 if (block, "attentions") in counts else 1
                yield (block, "upsamplers", 0), f"output_blocks.{number}.{beside}"
            number += 1


def _ordered(counts: dict[tuple[str, str], int], side: str) -> list[str]:
    blocks = {block for block, _ in counts if block.startswith(f"{side}.")}
    return sorted(blocks, key=lambda block: int(block.rpartition(".")[2]))
