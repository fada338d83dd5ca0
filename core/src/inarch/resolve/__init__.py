"""Whether a stack fits a model and whether its order is meant: plans, proofs, locks.

What is listed here is looked up when used: checking a stack file needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inarch.resolve.arrange import Order as Order
    from inarch.resolve.arrange import arrange as arrange
    from inarch.resolve.meeting import Verdict as Verdict
    from inarch.resolve.refusal import Refused as Refused

_PUBLIC = {
    "Order": "inarch.resolve.arrange",
    "Refused": "inarch.resolve.refusal",
    "Verdict": "inarch.resolve.meeting",
    "arrange": "inarch.resolve.arrange",
}

__all__ = ["Order", "Refused", "Verdict", "arrange"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'inarch.resolve' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
