"""A tree that compiles as one graph, in which a structure that repeats is compiled once."""

from __future__ import annotations

from collections import Counter
from types import MethodType
from typing import TypeVar

from inarch.tree.chain import Chain
from inarch.tree.generate import Form

SomeChain = TypeVar("SomeChain", bound=Chain)


def regional(tree: SomeChain) -> SomeChain:
    """A new tree, sharing all weights, whose repeated Chains are regions of a compilation.

    The compiler goes through the first Chain of a structure and takes what it made for the others,
    so a model of thirty equal blocks compiles in the time of one, into one graph without breaks.
    What it computes is the same, compiled or not.
    """
    return _marked(tree, Counter(_below(tree.form)))


def _below(form: Form) -> list[Form]:
    """The forms of all Chains below one."""
    return [f for _, child in form.below for f in (child, *_below(child))]


def _marked(chain: SomeChain, counts: Counter[Form]) -> SomeChain:
    twin = chain._twin()  # pyright: ignore[reportPrivateUsage]
    for name, form in chain.form.below:
        child = chain.module_at(name)
        if not isinstance(child, Chain):
            raise TypeError(f"{name} is no Chain")
        if counts[form] > 1:
            program, child = child.program, child._twin()  # pyright: ignore[reportPrivateUsage]
            child._take(program, form)  # pyright: ignore[reportPrivateUsage]
            child.forward = MethodType(form.region, child)
        else:
            child = _marked(child, counts)
        twin._replace({name: child})  # pyright: ignore[reportPrivateUsage]
    twin._generate()  # pyright: ignore[reportPrivateUsage]
    return twin
