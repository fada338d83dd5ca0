"""Inputs that adapters add to a model: declared, asked for, and read from what a user gives."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from inarch.errors import InarchError

if TYPE_CHECKING:
    from inarch.adapters.member import Member


@dataclass(frozen=True, slots=True)
class AddedInput:
    """An input of the whole model that an adapter adds.

    Attributes:
        name: begins with the adapter's name, so that two adapters never share one: `canny_image`.
        shape: what a user gives for it, in words: `[batch, 3, height, width] in 0..1`.
    """

    name: str
    shape: str


@dataclass(frozen=True, slots=True)
class Request:
    """What a task is about to do, which the values of inputs must suit.

    Attributes:
        height, width: of the picture, in pixels.
        batch: how many results there are.
        guided: whether the tree runs on twice as many rows: for no prompt first, then for it.
        device, dtype: of the tree's main input.
    """

    height: int
    width: int
    batch: int
    guided: bool
    device: torch.device
    dtype: torch.dtype


def read_inputs(
    members: Iterable[Member], given: Mapping[str, Any], request: Request
) -> dict[str, Any]:
    """See `Model.read_inputs`."""
    values: dict[str, Any] = {}
    known: list[str] = []
    for member in members:
        for added in () if member.merged else member.adapter.inputs():
            known.append(added.name)
            if given.get(added.name) is None:
                raise InarchError(
                    "IA507",
                    f"{member.kind} `{member.name}` needs `{added.name}`: {added.shape}",
                    why="its value is not among the inputs given",
                    remedy=f"{added.name}=...",
                )
            values |= member.adapter.read_input(added, given[added.name], request)
    unknown = [name for name in given if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 3, 0.5)
        raise InarchError(
            "IA508",
            f"the model has no input `{unknown[0]}`",
            why=f"its adapters ask for: {', '.join(known) or 'nothing'}",
            remedy=f"did you mean: {', '.join(near)}" if near else "leave it out",
        )
    return values
