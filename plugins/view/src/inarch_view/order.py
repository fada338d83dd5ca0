"""The order of a model's adapters and the reason for each pair, as the resolver has them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from inarch.adapters import Model
from inarch.resolve import Verdict
from inarch.tree.diff import folded

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def order_of(model: Model) -> dict[str, Any] | None:
    """Names in canonical order, layers, verdicts and the digest; None without two adapters."""
    if len(model.adapters) < 2:
        return None
    order = model.order
    return order_facts(order.names, order.layers, order.verdicts, model.digest)


def order_facts(
    names: Sequence[str],
    layers: Sequence[Sequence[str]],
    verdicts: Iterable[Verdict],
    digest: str,
) -> dict[str, Any]:
    """An order as plain data, with the addresses where pairs meet folded."""
    return {
        "names": names,
        "layers": layers,
        "verdicts": [
            {"a": v.a, "b": v.b, "word": v.word, "reason": v.reason, "at": folded_places(v.at)}
            for v in verdicts
        ],
        "digest": digest,
    }


def folded_places(addresses: Iterable[str]) -> list[str]:
    """Addresses that differ in one number as one: `layers.{0-29}.mlp x30`."""
    alike: dict[str, list[str]] = {}
    for address in addresses:
        alike.setdefault(_NUMBER.sub("#", address), []).append(address)
    return [folded(group) for group in alike.values()]
