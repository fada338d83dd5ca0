"""The oracle: the same program, interpreted step by step. It shares no code with the generator."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch

from inarch.tree import (
    Chain,
    Concat,
    Distribute,
    Export,
    Identity,
    Let,
    Parallel,
    Product,
    Residual,
    Seq,
    Sum,
    Use,
)
from inarch.tree.signature import Call
from inarch.tree.steps import Graft, Ref, Site, Weight

Values = tuple[Any, ...]
Scope = dict[str, Any]


def interpret(chain: Chain, *given: Any, **named: Any) -> Any:
    """What `chain(*given, **named)` returns, without its generated forward."""
    values, exports = run_chain(chain, given, named)
    returned = (*values, *exports.values())
    return returned[0] if len(returned) == 1 else returned


def run_chain(chain: Chain, given: Values, scope: Scope) -> tuple[Values, Scope]:
    scope, exports = dict(scope), Scope()
    values = run(chain.program, tuple(given), scope, exports, chain)
    return values, {n: v for n, v in exports.items() if n not in chain.interface.keeps}


def run(step: Any, x: Values, scope: Scope, exports: Scope, chain: Chain) -> Values:
    def go(step: Any, x: Values) -> Values:
        return run(step, x, scope, exports, chain)

    match step:
        case Site() | Graft():
            return go(step.step, x)
        case Identity():
            return x
        case Use():
            return tuple(scope[name] for name in step.names)
        case Weight():
            return (chain.get_parameter(step.name),)
        case Let():
            given = go(step.step, x)
            if len(step.names) == 1 and len(given) > 1:
                given = (given,)  # one value that is a tuple, such as a size
            bound = dict(zip(step.names, given, strict=True))
            scope.update(bound)
            exports.update(bound if isinstance(step, Export) else {})
            return x
        case Seq():
            for child in step.steps:
                x = go(child, x)
            return x
        case Residual():
            return (x[0] + go(Seq(*step.steps), x)[0],)
        case Parallel():
            return tuple(v for child in step.steps for v in go(child, x))
        case Distribute():
            return tuple(
                v for child, one in zip(step.steps, x, strict=True) for v in go(child, (one,))
            )
        case Sum():
            total, *terms = go(step.steps[0], x), *step.steps[1:]
            for child in terms:
                kin = [t for t in terms if joins(child, t, chain)]
                if len(kin) > 1:
                    total = together(kin, x, total, chain) if child is kin[0] else total
                elif takes_the_sum(child, chain):
                    total = run(child, x, {**scope, "plus": total[0]}, exports, chain)
                else:
                    total = (total[0] + go(child, x)[0],)
            return total
        case Product():
            return (functools.reduce(operator.mul, [go(child, x)[0] for child in step.steps]),)
        case Concat():
            return (torch.cat([go(child, x)[0] for child in step.steps], dim=step.dim),)
        case Call():
            return call(step.function, x, scope)
        case Ref():
            module = chain.module_at(step.name)
            if not isinstance(module, Chain):
                return call(module, x, scope, type(module).forward)
            values, left = run_chain(module, x, scope)
            scope.update(left)
            exports.update(left)
            return values
        case _:
            raise TypeError(f"{step!r} is no step")


def joins(one: Any, other: Any, chain: Chain) -> bool:
    """Whether two terms of a sum are computed together."""
    if not all(isinstance(t, Graft) and isinstance(t.step, Ref) for t in (one, other)):
        return False
    modules: list[Any] = [chain.module_at(term.step.name) for term in (one, other)]
    a, b = modules
    known = type(a) is type(b) and hasattr(type(a), "joins")
    return known and a.joins is not None and bool(a.joins == b.joins)


def together(terms: list[Any], x: Values, total: Values, chain: Chain) -> Values:
    modules: list[Any] = [chain.module_at(term.step.name) for term in terms]
    return (type(modules[0]).joined(modules, None)(*x, plus=total[0]),)


def takes_the_sum(step: Any, chain: Chain) -> bool:
    """Whether `plus` must be given; where it may be, adding the term gives the same bits."""
    if not isinstance(step, Graft) or not isinstance(step.step, Ref):
        return False
    forward = type(chain.module_at(step.step.name)).forward
    plus = inspect.signature(forward).parameters.get("plus")
    return plus is not None and plus.default is plus.empty


def call(
    function: Callable[..., Any], x: Values, scope: Scope, signed: Callable[..., Any] | None = None
) -> Values:
    try:
        parameters = inspect.signature(signed or function).parameters.values()
    except ValueError:
        parameters = ()
    needs = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    bound = getattr(function, "keywords", {})
    value = function(*x, **{name: scope[name] for name in needs if name not in bound})
    return value if type(value) is tuple else (value,)
