"""Activation steering for inarch: vectors added to what flows, and how to make one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inarch_steering.contrasts import contrast as contrast

__all__ = ["contrast"]


def __getattr__(name: str) -> Any:
    if name == "contrast":
        from inarch_steering.contrasts import contrast

        return contrast
    raise AttributeError(f"module 'inarch_steering' has no attribute {name!r}")
