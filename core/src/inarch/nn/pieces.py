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


def by_heads(function: Function) -> Function:
    """Say that a function of queries, keys and values does with each head the same by itself.

    It may then stand where a process has some of the heads, [batch, heads, tokens, head_dim].
    """
    function.__dict__["by_heads"] = True
    return function


def is_by_heads(function: object) -> bool:
    """Whether a function, or what it is a `partial` of, says that it is `by_heads`."""
    return getattr(getattr(function, "func", function), "by_heads", False)


def pieces_of(function: object) -> int:
    """Of how many pieces a function takes its values; 1 where it says nothing."""
    return getattr(function, "pieces", 1)
