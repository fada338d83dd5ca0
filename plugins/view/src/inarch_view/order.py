"""The order of a model's adapters and the reason for each pair, as the resolver has them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from inarch.adapters import Model
from inarch.tree.diff import folded

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def order_of(model: Model) -> dict[str, Any] | None:
    """Names in canonical order, layers, verdicts and the digest; None without two adapters."""
    if len(model.adapters) < 2:
        return None
    return {
        "names": model.order.names,
        "layers": model.order.layers,
        "verdicts": [
            {"a": v.a, "b": v.b, "word": v.word, "reason": v.reason, "at": folded_places(v.at)}
            for v in model.order.verdicts
        ],
        "digest": model.digest,
    }


def folded_places(addresses: Iterable[str]) -> list[str]:
    """Addresses that differ in one number as one: `layers.{0-29}.mlp x30`."""
    alike: dict[str, list[str]] = {}
    for address in addresses:
        alike.setdefault(_NUMBER.sub("#", address), []).append(address)
    return [folded(group) for group in alike.values()]
