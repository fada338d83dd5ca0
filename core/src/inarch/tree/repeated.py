"""Chains that a tree has many of: built once while a tree waits for its weights, then copied.

Building is checking labels, writing a program and making modules, over and over for blocks that
differ in nothing but their weights. A copy has the same program and modules of its own.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from inarch.tree.chain import HOOKS, Chain
from inarch.tree.twin import twin_of

Given = ParamSpec("Given")
_MADE: ContextVar[dict[Any, tuple[Chain, int]] | None] = ContextVar("made", default=None)


@contextmanager
def repeating() -> Generator[None, None, None]:
    """While it lasts, what is `repeated` is built once for each set of arguments."""
    token = _MADE.set({})
    try:
        yield
    finally:
        _MADE.reset(token)


def repeated(build: Callable[Given, Chain]) -> Callable[Given, Chain]:
    """Let a function's Chains be copies of the first one for the same arguments.

    That is so only while `repeating`, where no parameter has a value. Elsewhere each call builds,
    and draws weights of its own.

    Args:
        build: makes a Chain of its arguments and of nothing else.
    """

    @functools.wraps(build)
    def made(*args: Given.args, **kwargs: Given.kwargs) -> Chain:
        known = _MADE.get()
        if known is None:
            return build(*args, **kwargs)
        key = (build, *map(_key, args), *((name, _key(value)) for name, value in kwargs.items()))
        first, count = known.get(key, (None, 0))
        if first is None or (count == 1 and not all(map(_plain, first.modules()))):
            known[key] = (build(*args, **kwargs), 1)
            return known[key][0]
        known[key] = (first, count + 1)
        with torch._C.DisableTorchFunction():  # whoever sets the device: each tensor has one
            return _copy(first, {})

    return made


def _key(value: Any) -> Any:
    """A value as it is told from others: by its type too, or by identity where it has no hash."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


def _plain(module: nn.Module) -> bool:
    """Whether a module is what it holds by name, none of which has a value yet."""
    if not all(p is None or (p.is_meta and not is_lazy(p)) for p in module._parameters.values()):
        return False
    others = (Tensor, nn.Module, MethodType)
    return isinstance(module, Chain) or not (
        any(isinstance(value, others) for value in module.__dict__.values())
        or any(module.__dict__[name] for name in HOOKS)
    )


def _copy(module: Any, made: dict[int, Any]) -> Any:
    """Another module of the same structure, whose tensors are its own."""
    if id(module) in made:
        return made[id(module)]
    if isinstance(module, Chain):
        twin: Any = module._twin()  # pyright: ignore[reportPrivateUsage]
    else:
        twin = twin_of(module)
        twin.__dict__.update({name: OrderedDict() for name in HOOKS})
    made[id(module)] = twin
    held = twin.__dict__
    for name, parameter in held["_parameters"].items():
        if parameter is not None:
            if id(parameter) not in made:  # tied ones stay so; `empty_like` is Python on meta
                own = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                made[id(parameter)] = nn.Parameter(own, parameter.requires_grad)
            held["_parameters"][name] = made[id(parameter)]
    for name, buffer in held["_buffers"].items():
        if buffer is not None:
            held["_buffers"][name] = buffer.clone()
    for name, child in held["_modules"].items():
        held["_modules"][name] = None if child is None else _copy(child, made)
    if isinstance(module, Chain):
        twin._take(module.program, module.form)
    return twin
