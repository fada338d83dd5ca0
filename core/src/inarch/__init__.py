"""Adaptation of foundation models as packages: declarative trees, and adapters as edits to them.

Importing inarch imports neither torch nor a plugin: what is listed here is looked up when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inarch.adapters.model import Model as Model
    from inarch.distribute.sharding import shard as shard
    from inarch.errors import InarchError as InarchError
    from inarch.loading import load as load
    from inarch.stack import AdapterSpec as AdapterSpec
    from inarch.stack import Stack as Stack
    from inarch.stack import adapter as adapter
    from inarch.stack import load_stack as load_stack

__version__ = "0.1.0"

_PUBLIC = {
    "AdapterSpec": "inarch.stack",
    "InarchError": "inarch.errors",
    "Model": "inarch.adapters.model",
    "Stack": "inarch.stack",
    "adapter": "inarch.stack",
    "load": "inarch.loading",
    "load_stack": "inarch.stack",
    "shard": "inarch.distribute.sharding",
}

__all__ = [
    "AdapterSpec",
    "InarchError",
    "Model",
    "Stack",
    "adapter",
    "load",
    "load_stack",
    "shard",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'inarch' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
