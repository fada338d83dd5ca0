"""Another module that shares what this one holds, for one that is to hold something else."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

SomeModule = TypeVar("SomeModule", bound=nn.Module)


def twin_of(module: SomeModule) -> SomeModule:
    """A new object with the same children, parameters and buffers."""
    twin = object.__new__(type(module))
    own = {n: dict(module.__dict__[n]) for n in ("_parameters", "_buffers", "_modules")}
    twin.__dict__ = {**module.__dict__, **own}
    return twin
