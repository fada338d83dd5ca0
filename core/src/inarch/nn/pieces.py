"""What a function says of the values it takes, for those that split a model over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def of_pieces(count: int) -> Callable[[Function], Function]:
    """Say that a function takes so many equal pieces, side by side in the last dimension.

    Each number it gives depends on one of each piece, at the same place: a gate, for one. The
    layers around it can then be cut, every piece alike.
    """

    def said(function: Function) -> Function:
        function.__dict__["pieces"] = count
        return function

    return said


def pieces_of(function: object) -> int:
    """Of how many pieces a function takes its values; 1 where it says nothing."""
    return getattr(function, "pieces", 1)
