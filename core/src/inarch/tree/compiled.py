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
_HANDLED = "try: pass\nexcept Exception as _error: _explain(_error); raise"


def compiled(
    text: str, functions: Mapping[str, Any], children: Collection[str]
) -> Callable[..., Any]:
    """Compile a `forward` under a name that tracebacks, pdb and `inspect` find its text by.

    The body stands in a `try` that the text doesn't show: on failure, and only then, `explain`
    adds a note with the address and the shapes. Python 3.11 enters a `try` at no cost.

    Args:
        text: one function.
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
    definition = _Children(children).visit(definition)
    [handled] = ast.parse(_HANDLED).body
    if isinstance(handled, ast.Try):
        for node in ast.walk(handled):
            if isinstance(node, (ast.stmt, ast.expr, ast.excepthandler)):
                node.lineno = node.end_lineno = definition.end_lineno or definition.lineno
        handled.body = definition.body
        definition.body = [handled]
    made = compile(tree, "<inarch>", "exec")
    return next(part for part in made.co_consts if isinstance(part, types.CodeType))


class _Children(ast.NodeTransformer):
    """Takes each child that is called from its parent's `_modules`."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = names

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = _name(node.func)
        if name in self.names:
            found: ast.expr = ast.Name("self", ast.Load())
            for part in name.split("."):
                modules = ast.Attribute(found, "_modules", ast.Load())
                found = ast.Subscript(modules, ast.Constant(part), ast.Load())
            for made in ast.walk(found):
                if isinstance(made, ast.expr):
                    ast.copy_location(made, node.func)
            node.func = found
        return self.generic_visit(node)


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
