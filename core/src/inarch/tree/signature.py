"""What a step needs and how many values it gives, read from its Python signature."""

from __future__ import annotations

import ast
import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from inarch.errors import InarchError
from inarch.tree.names import is_name
from inarch.tree.steps import Combinator


@dataclass(frozen=True, slots=True)
class Signature:
    """How a step is called.

    Attributes:
        needs: keyword-only parameters without a default, in their order.
        gives: how many values come out.
        takes: fewest and most main values accepted, or None where Python can't tell.
        plus: whether it accepts the sum so far as `plus` and adds to it.
    """

    needs: tuple[str, ...] = ()
    gives: int = 1
    takes: tuple[int, float] | None = None
    plus: bool = False


@dataclass(frozen=True, slots=True)
class Call(Combinator):
    """In a program: a function. Two are equal when function and constants are."""

    key: tuple[Any, ...]
    signature: Signature
    function: Callable[..., Any] = field(compare=False)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Call:
        base, args, keywords = function, (), {}
        if isinstance(function, functools.partial):
            base, args, keywords = function.func, function.args, function.keywords
        if isinstance(base, type) or isinstance(getattr(base, "__self__", None), nn.Module):
            raise InarchError(
                "IA106",
                f"`{function_name(function)}` is "
                + ("a class, not a step" if isinstance(base, type) else "a method of a module"),
                why="a step is a torch module, a function, a Chain or a combinator",
                remedy="write the module itself: the tree must know its weights",
            )
        bound = (*args, *(value for _, value in sorted(keywords.items())))
        shape = (_identity(base), len(args), tuple(sorted(keywords)))
        key = (*shape, *map(_constant, bound))
        try:
            hash(key)
        except TypeError as error:
            raise InarchError(
                "IA107",
                "a function's constants must be hashable, and no tensors or modules",
                where=function_name(function),
                why=str(error),
                remedy="bind tuples instead of lists, or make it a module with buffers",
            ) from None
        return cls(key, _known(shape, function), function)

    def __reduce__(self) -> tuple[Any, ...]:
        return Call.of, (self.function,)

    @property
    def name(self) -> str:
        return function_name(self.function)


def function_name(function: Callable[..., Any]) -> str:
    """The function's own name where it is an identifier, else `step`."""
    base = function.func if isinstance(function, functools.partial) else function  # pyright: ignore
    name = str(getattr(base, "__name__", type(base).__name__))
    return name if is_name(name) else "step"


def _constant(value: Any) -> Any:
    """A constant with its type, and its text: in Python 1 == 1.0 == True and 0.0 == -0.0."""
    if isinstance(value, (torch.Tensor, nn.Module)):
        raise InarchError(
            "IA107",
            f"a function can't hold a {type(value).__name__}",
            why="a tensor bound to a function has no name, is never saved and never moved",
            remedy="make the function a module with a parameter or a buffer",
        )
    if isinstance(value, tuple):
        return (type(value), *map(_constant, value))  # pyright: ignore[reportUnknownArgumentType]
    return type(value), value, repr(value) if isinstance(value, (float, complex)) else ""


def _identity(function: Callable[..., Any]) -> Any:
    """Equal for functions made by evaluating one `def` or `lambda` twice without closing over
    anything: a block that holds a lambda has one structure in every layer."""
    if isinstance(function, types.FunctionType) and function.__closure__ is None:
        options = sorted((function.__kwdefaults__ or {}).items())
        values = (*(function.__defaults__ or ()), *(value for _, value in options))
        key = (function.__code__, id(function.__globals__), *map(_constant, values))
        try:
            hash(key)
        except TypeError:
            return function
        return key
    return function


def of_function(function: Callable[..., Any]) -> Signature:
    """The signature of a function step; torch's built-in functions take and give one value."""
    base = function.func if isinstance(function, functools.partial) else function  # pyright: ignore
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return Signature()
    bound: dict[str, Any] = {}
    if isinstance(function, functools.partial):
        bound = function.keywords
    return _read(parameters, bound, getattr(base, "__annotations__", {}).get("return"))


def _known(shape: tuple[Any, ...], function: Callable[..., Any]) -> Signature:
    """The signature of a function that is called so; read once for each `def`."""
    if not isinstance(shape[0], tuple):  # the function itself, which is not to be kept alive
        return of_function(function)
    base = function.func if isinstance(function, functools.partial) else function  # pyright: ignore
    key = (*shape, str(getattr(base, "__annotations__", {}).get("return")))
    found = _KNOWN.get(key)
    if found is None:
        found = _KNOWN[key] = of_function(function)
    return found


_KNOWN: dict[tuple[Any, ...], Signature] = {}


def of_module(module: nn.Module) -> Signature:
    """The signature of a module step, read from its `forward`."""
    own = module.__dict__.get("forward")
    return _of_callable(own) if own is not None else _of_forward(type(module))


@functools.cache
def _of_forward(kind: type[nn.Module]) -> Signature:
    try:
        parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    except (ValueError, TypeError):
        return Signature()
    return _read(parameters, {}, getattr(kind.forward, "__annotations__", {}).get("return"))


def _of_callable(forward: Callable[..., Any]) -> Signature:
    returned = getattr(forward, "__annotations__", {}).get("return")
    return _read(inspect.signature(forward).parameters.values(), {}, returned)


def _read(parameters: Any, bound: dict[str, Any], returned: Any) -> Signature:
    needs: list[str] = []
    fewest, most, plus = 0, 0.0, False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY:
            plus = plus or p.name == "plus"
            if p.default is p.empty and p.name not in bound:
                needs.append(p.name)
        elif p.kind is p.VAR_POSITIONAL:
            most = float("inf")
        elif p.kind is not p.VAR_KEYWORD and p.name not in bound:
            most += 1
            fewest += p.default is p.empty
    return Signature(tuple(needs), _count(returned), (fewest, most), plus)


def _count(annotation: Any) -> int:
    """`tuple[Tensor, Tensor]` gives 2, anything else 1; read as text, never evaluated."""
    if isinstance(annotation, str):
        return _count_text(annotation)
    if annotation is tuple or typing.get_origin(annotation) is tuple:
        items = typing.get_args(annotation)
        return _several(0 if Ellipsis in items else len(items), str(annotation))
    return 1


def _count_text(annotation: str) -> int:
    try:
        node = ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return 1
    kind = node.value if isinstance(node, ast.Subscript) else node
    name = kind.attr if isinstance(kind, ast.Attribute) else getattr(kind, "id", "")
    if name not in ("tuple", "Tuple"):
        return 1
    if not isinstance(node, ast.Subscript):
        return _several(0, annotation)
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    endless = any(isinstance(item, ast.Constant) and item.value is Ellipsis for item in items)
    return _several(0 if endless else len(items), annotation)


def _several(count: int, annotation: str) -> int:
    if count > 1:
        return count
    raise InarchError(
        "IA104",
        "a step that gives a tuple must say how many values are in it, two or more",
        where=f"-> {annotation}",
        remedy="annotate the return as tuple[Tensor, Tensor], one item a value",
    )
