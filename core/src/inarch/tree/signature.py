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

from torch import nn

from inarch.errors import InarchError
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
    function: Callable[..., Any] = field(compare=False)
    signature: Signature = field(compare=False)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Call:
        base, args, keywords = function, (), {}
        if isinstance(function, functools.partial):
            base, args, keywords = function.func, function.args, function.keywords
        key = (_identity(base), args, tuple(sorted(keywords.items())))
        try:
            hash(key)
        except TypeError as error:
            raise InarchError(
                "IA107",
                "a function's constants must be hashable",
                where=function_name(function),
                why=str(error),
                remedy="bind tuples instead of lists, or make it a module with buffers",
            ) from None
        return cls(key, function, of_function(function))

    def __reduce__(self) -> tuple[Any, ...]:
        return Call.of, (self.function,)

    @property
    def name(self) -> str:
        return function_name(self.function)


def function_name(function: Callable[..., Any]) -> str:
    """The function's own name where it is an identifier, else `step`."""
    base = function.func if isinstance(function, functools.partial) else function  # pyright: ignore
    name = str(getattr(base, "__name__", type(base).__name__))
    return name if name.isidentifier() else "step"


def _identity(function: Callable[..., Any]) -> Any:
    """Equal for functions made by evaluating one `def` or `lambda` twice without closing over
    anything: a block that holds a lambda has one structure in every layer."""
    if isinstance(function, types.FunctionType) and function.__closure__ is None:
        defaults = (function.__defaults__, tuple((function.__kwdefaults__ or {}).items()))
        try:
            hash(defaults)
        except TypeError:
            return function
        return (function.__code__, defaults, function.__module__)
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


def of_module(module: nn.Module) -> Signature:
    """The signature of a module step, read from its `forward`."""
    own = module.__dict__.get("forward")
    return _of_callable(own) if own is not None else _of_forward(type(module))


@functools.lru_cache(maxsize=None)
def _of_forward(kind: type[nn.Module]) -> Signature:
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
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
            if p.default is p.empty and p.name not in bound and p.name != "plus":
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
    if typing.get_origin(annotation) is tuple:
        items = typing.get_args(annotation)
        if Ellipsis in items:
            raise _endless(str(annotation))
        return len(items)
    return 1


def _count_text(annotation: str) -> int:
    node = ast.parse(annotation, mode="eval").body
    if not isinstance(node, ast.Subscript):
        return 1
    name = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
    if name not in ("tuple", "Tuple"):
        return 1
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if any(isinstance(item, ast.Constant) and item.value is Ellipsis for item in items):
        raise _endless(annotation)
    return len(items)


def _endless(annotation: str) -> InarchError:
    return InarchError(
        "IA104",
        "a step must say how many values it gives",
        where=annotation,
        remedy="annotate the return as tuple[Tensor, Tensor], one item a value",
    )
