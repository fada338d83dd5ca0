"""ControlNets whose blocks hold other transformers than the model's, or none.

diffusers' small and medium ControlNets for XL are such: the same resnets, so the same skips, beside
fewer transformer blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

_PLACE = re.compile(
    r"(?:down_blocks\.(?P<level>\d+)|mid_block)\.(?P<kind>resnets|attentions)\.(?P<layer>\d+)\."
    r"(?:transformer_blocks\.(?P<block>\d+)\.)?"
)


@dataclass(frozen=True, slots=True)
class Blocks:
    """What an encoder's blocks hold.

    Attributes:
        layers: resnets at each resolution, the highest first.
        depths: transformer blocks after each of them; 0 for no transformer.
        middle: likewise between the resnets of the middle.
    """

    layers: tuple[int, ...]
    depths: tuple[int, ...]
    middle: int

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """As the names of its weights tell, in diffusers' layout."""
        layers: dict[int, int] = {}
        depths: dict[int, int] = {}
        for name in names:
            found = _PLACE.match(name)
            if found is None:
                continue
            level = -1 if found["level"] is None else int(found["level"])
            table, number = (depths, found["block"]) if found["block"] else (layers, found["layer"])
            table[level] = max(table.get(level, 0), int(number) + 1)
        levels = range(max(layers, default=-1) + 1)
        return cls(
            tuple(layers.get(level, 0) for level in levels),
            tuple(depths.get(level, 0) for level in levels),
            depths.get(-1, 0),
        )

    def settings(self, base: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of a UNet of these blocks.

        Args:
            base: of the model's UNet.
            told: the ControlNet's own config.json, if it has one.
        """
        crossing = [bool(depth) for depth in self.depths]
        heads = told.get("num_attention_heads") or told.get("attention_head_dim")
        known = {
            "attention_head_dim": heads,
            "cross_attention_dim": told.get("cross_attention_dim"),
        }
        return {
            **base,
            "down_block_types": [f"{'CrossAttn' * cross}DownBlock2D" for cross in crossing],
            "up_block_types": [f"{'CrossAttn' * cross}UpBlock2D" for cross in reversed(crossing)],
            "transformer_layers_per_block": [
                *(depth or 1 for depth in self.depths[:-1]),
                self.depths[-1] or self.middle or 1,
            ],
            "reverse_transformer_layers_per_block": None,
            "mid_block_type": f"UNetMidBlock2D{'CrossAttn' * bool(self.middle)}",
            **{name: value for name, value in known.items() if value},
        }
