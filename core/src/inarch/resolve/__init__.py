"""Whether a stack fits a model and whether its order is meant: plans, proofs, locks.

What is listed here is looked up when used: checking a stack file needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inarch.resolve.arrange import Order as Order
    from inarch.resolve.meeting import Verdict as Verdict
    from inarch.resolve.plan import Plan as Plan
    from inarch.resolve.plan import resolve as resolve
    from inarch.resolve.plan import schema as schema
    from inarch.resolve.refusal import Refused as Refused

_PUBLIC = {
    "Plan": "inarch.resolve.plan",
    "Order": "inarch.resolve.arrange",
    "Refused": "inarch.resolve.refusal",
    "Verdict": "inarch.resolve.meeting",
    "resolve": "inarch.resolve.plan",
    "schema": "inarch.resolve.plan",
}

__all__ = ["Order", "Plan", "Refused", "Verdict", "resolve", "schema"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'inarch.resolve' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
