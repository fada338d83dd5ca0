"""A model over several processes: replicated, sharded with FSDP2, or split by the roles of layers.

The only room that imports `torch.distributed`, of which each part is imported when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inarch.distribute.checkpoint import load_tensors as load_tensors
    from inarch.distribute.checkpoint import save_tensors as save_tensors
    from inarch.distribute.layout import Spread as Spread
    from inarch.distribute.sharding import shard as shard

_PUBLIC = {
    "Spread": "inarch.distribute.layout",
    "load_tensors": "inarch.distribute.checkpoint",
    "save_tensors": "inarch.distribute.checkpoint",
    "shard": "inarch.distribute.sharding",
}

__all__ = ["Spread", "load_tensors", "save_tensors", "shard"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'inarch.distribute' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
