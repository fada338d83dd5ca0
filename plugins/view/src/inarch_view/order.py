"""The order of a model's adapters and the reason for each pair, as the resolver has them."""

from __future__ import annotations

from typing import Any

from inarch.adapters import Model


def order_of(model: Model) -> dict[str, Any] | None:
    """Names in canonical order, layers, verdicts and the digest; None where there is one at most."""
    if len(model.adapters) < 2:
        return None
    return None
