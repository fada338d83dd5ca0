"""From the text of a forward to the function that runs.

Two things are in the function and not in the text. A `try` around it adds a note to what fails. And
a child is taken from where torch keeps it: `self.q_proj` finds no attribute, and has torch's
`__getattr__` look through parameters and buffers before modules, which takes nearly as long as
calling the module; the function has `self._modules["q_proj"]` in its place, the very same object.
"""

from __future__ import annotations

import ast
import builtins
import functools
import itertools
import linecache
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any

from inarch.tree.failure import explain

_NUMBERS = itertools.count()


def compiled(
    text: str, functions: Mapping[str, Any], children: Collection[str]
) -> Callable[..., Any]:
    """Compile a `forward` under a name that tracebacks, pdb and `inspect` find its text by.

    The body stands in a `try` that the text doesn't show: on failure, and only then, `explain`
    adds a note with the address and the shapes. Python 3.11 enters a `try` at no cost.

    Args:
        text: one function, of assignments and a return.
        functions: what it calls by name.
        children: the dotted names of the modules it calls.
    """
    found = {"__builtins__": vars(builtins), "_explain": explain}
    namespace: dict[str, Any] = {**functions, **found}
    return _named(_code(text, frozenset(children)), text, namespace)


def again(function: Callable[..., Any], text: str) -> Callable[..., Any]:
    """The same `forward`, compiled before, with a code object and a name of its own."""
    if not isinstance(function, types.FunctionType):
        raise TypeError("what was compiled is a function")
    return _named(function.__code__, text, function.__globals__.copy())


def _named(code: types.CodeType, text: str, namespace: dict[str, Any]) -> Callable[..., Any]:
    """A function of a code object of its own, whose text is found by the name of its file."""
    name = f"<inarch {next(_NUMBERS)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    return types.FunctionType(code.replace(co_filename=name), namespace, code.co_name)


@functools.lru_cache(maxsize=256)
def _code(text: str, children: frozenset[str]) -> types.CodeType:
    """The code of a text: whoever adapts, drops and adapts again has it compiled already."""
    tree = ast.parse(text)
    [definition] = tree.body
    if not isinstance(definition, ast.FunctionDef):
        raise TypeError("the generated text is one function")
    for line in definition.body:
        called = line.value if isinstance(line, ast.Assign | ast.Return) else None
        if isinstance(called, ast.Call) and (child := _name(called.func)) in children:
            called.func = _kept(child, called.func)
    definition.body = [_explained(definition)]
    made = compile(tree, "<inarch>", "exec")
    return next(part for part in made.co_consts if isinstance(part, types.CodeType))


def _name(node: ast.expr) -> str:
    """`resnets.0` of `self.resnets[0]`; empty for what is no child of `self`."""
    parts = list[str]()
    while True:
        match node:
            case ast.Attribute(value=inner, attr=part):
                parts.append(part)
            case ast.Subscript(value=inner, slice=ast.Constant(value=part)):
                parts.append(str(part))
            case ast.Name(id="self"):
                return ".".join(reversed(parts))
            case _:
                return ""
        node = inner


def _kept(name: str, shown: ast.expr) -> ast.expr:
    """A child as its parents' `_modules` have it, in the place of what is shown."""
    at: dict[str, Any] = {"lineno": shown.lineno, "col_offset": shown.col_offset}
    at |= {"end_lineno": shown.end_lineno, "end_col_offset": shown.end_col_offset}
    found: ast.expr = ast.Name("self", ast.Load(), **at)
    for part in name.split("."):
        modules = ast.Attribute(found, "_modules", ast.Load(), **at)
        found = ast.Subscript(modules, ast.Constant(part, **at), ast.Load(), **at)
    return found


def _explained(definition: ast.FunctionDef) -> ast.Try:
    """`try: ...; except Exception as _error: _explain(_error); raise`, at the last line."""
    last = definition.end_lineno or definition.lineno
    at: dict[str, Any] = {"lineno": last, "end_lineno": last, "col_offset": 0, "end_col_offset": 0}
    error, handler, kind = (
        ast.Name(n, ast.Load(), **at) for n in ("_error", "_explain", "Exception")
    )
    call = ast.Expr(ast.Call(handler, [error], [], **at), **at)
    caught = ast.ExceptHandler(kind, "_error", [call, ast.Raise(**at)], **at)
    return ast.Try(definition.body, [caught], [], [], **at)
