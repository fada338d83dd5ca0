"""Another module that shares what this one holds, for one that is to hold something else."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

SomeModule = TypeVar("SomeModule", bound=nn.Module)


def twin_of(module: SomeModule) -> SomeModule:
    """A new object with the same children, parameters and buffers."""
    own = {n: module.__dict__[n].copy() for n in ("_parameters", "_buffers", "_modules")}
    return holding(type(module), {**module.__dict__, **own})


def holding(kind: type[SomeModule], held: dict[str, Any]) -> SomeModule:
    """A module of a class that holds all that is given, past `nn.Module`, which looks at each."""
    module = object.__new__(kind)
    object.__setattr__(module, "__dict__", held)
    return module
