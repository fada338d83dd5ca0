"""Examples: inputs that a model or an adapter declares for itself, so that tools can run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """The inputs of one small forward of one of a model's trees.

    Attributes:
        tree: its name; empty in a model of one.
        inputs: each input by the name it has in the tree's `forward`.
    """

    tree: str
    inputs: Mapping[str, Any]
