"""The names of a T2I-Adapter's weights: diffusers', which are its own, and the first ones.

TencentARC's own files count the residual layers through (`body.5.block1.weight` is the second layer
of the third feature) or, of light ones, hold them as `body.2.body.1.block1.weight`, and always of
four features. Their pooling has no weights in the published ones, nor has the way around a layer.

Source: `ldm/modules/encoders/adapter.py` of TencentARC/T2I-Adapter.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

PREFIX = "adapter."
FEATURES = 4
_LAYER = re.compile(r"body\.(\d+)\.resnets\.(\d+)\.(.+)")
_ENTRY = re.compile(r"body\.(\d+)\.in_conv\.(.+)")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file calls the network's weights.

    Attributes:
        original: whether by the first names.
        light: whether the network is of that kind.
        features: how many there are.
        layers: residual layers before each.
    """

    original: bool
    light: bool
    features: int
    layers: int

    def key(self, name: str) -> str:
        """The file's key of a weight of the network."""
        if not self.original:
            return f"{PREFIX}{name}"
        layer, entry = _LAYER.fullmatch(name), _ENTRY.fullmatch(name)
        if layer and self.light:
            return f"body.{layer[1]}.body.{layer[2]}.{layer[3]}"
        if layer:
            return f"body.{int(layer[1]) * self.layers + int(layer[2])}.{layer[3]}"
        if entry and not self.light:
            return f"body.{int(entry[1]) * self.layers}.in_conv.{entry[2]}"
        return name


def layout_of(keys: Collection[str]) -> Layout | None:
    """The layout of a file that has these keys; None where it is no T2I-Adapter's."""
    if any(key.startswith(f"{PREFIX}body.0.resnets.0.") for key in keys):
        layers = _numbers(keys, rf"{PREFIX}body\.0\.resnets\.(\d+)\..+")
        light = f"{PREFIX}conv_in.weight" not in keys
        return Layout(False, light, _numbers(keys, rf"{PREFIX}body\.(\d+)\..+"), layers)
    if "body.0.body.0.block1.weight" in keys:
        layers = _numbers(keys, r"body\.0\.body\.(\d+)\..+")
        return Layout(True, True, _numbers(keys, r"body\.(\d+)\..+"), layers)
    count = _numbers(keys, r"body\.(\d+)\..+")
    if "body.0.block1.weight" in keys and count % FEATURES == 0:
        return Layout(True, False, FEATURES, count // FEATURES)
    return None


def _numbers(keys: Collection[str], pattern: str) -> int:
    found = (re.fullmatch(pattern, key) for key in keys)
    return len({match[1] for match in found if match})
