"""Taking out of a loop what doesn't change in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inarch.tree.chain import Chain, ModulesOf
from inarch.tree.edit import is_final
from inarch.tree.generate import Interface, form_of
from inarch.tree.steps import Graft, Let, Seq, Step, Use


def hoist(tree: Chain, constants: Mapping[str, Any]) -> tuple[Chain, dict[str, Any]]:
    """Compute what adapters provide from inputs that stay the same from one forward to the next.

    A loop over a tree calls it once, before: an image is then embedded once and not in every step.

    Args:
        tree: is not changed.
        constants: inputs, by name, that will have these values in every forward.

    Returns:
        A tree that asks for the provided values instead, which shares every weight with the given
        one, and its constant inputs: the values computed, and the constants it still asks for.
    """
    if is_final(tree):
        return tree, _asked(tree, constants)
    moved: list[Step] = []
    names: list[str] = []
    for step in tree.program.children:
        if not (isinstance(step, Graft) and isinstance(step.step, Let)):
            break
        if _is_constant(step.step, tree, {*constants, *names}):
            moved.append(step)
            names += step.step.names
    if not moved:
        return tree, _asked(tree, constants)
    first = tree._twin()
    first.interface = Interface((), None, frozenset())
    first._write(Seq(*moved, Use(*names)))
    found = first(**_asked(first, constants))
    values = dict(zip(names, found if len(names) > 1 else (found,), strict=True))
    rest = tree._twin()
    if tree.interface.inputs is not None:
        inputs = tuple(sorted({*tree.interface.inputs, *names}))
        rest.interface = Interface(tree.interface.takes, inputs, tree.interface.keeps)
    rest._write(Seq(*(step for step in tree.program.children if step not in moved)))
    return rest, _asked(rest, {**constants, **values})


def _is_constant(step: Let, tree: Chain, known: set[str]) -> bool:
    """Whether what is bound comes of known values alone, and not of the tree's main value."""
    inner = step.step
    if not (isinstance(inner, Seq) and inner.steps and isinstance(inner.steps[0], Use)):
        return False
    form = form_of(Seq(inner), Interface((), None, frozenset()), ModulesOf(tree))
    return set(form.needs) <= known


def _asked(tree: Chain, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in tree.form.needs}
