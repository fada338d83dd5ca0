"""A tree without some of the edits that made it: what is left is what the others make alone.

Only what `add` and `scale` edits put beside sites is taken out, and only where nothing has to be
put together anew for that. Whatever else was edited stays as it is, and is not looked at.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from inarch.tree.chain import Chain, ModulesOf
from inarch.tree.edit import Edit, planned
from inarch.tree.generate import Form, form_like
from inarch.tree.rewrite import Plan, chain_at
from inarch.tree.steps import Combinator, Graft, Product, Ref, Site, Step, Sum

SomeChain = TypeVar("SomeChain", bound=Chain)


@dataclass(frozen=True, slots=True)
class _Left:
    """What is left of a Chain: its program and form, and the names of the modules that go.

    Attributes:
        bare: whether it is as it was before any edit, but for what is below it.
    """

    program: Step
    form: Form
    names: tuple[str, ...]
    bare: bool


class _Together(Exception):
    """Something would have to be put together anew."""


def beside(edit: Edit) -> bool:
    """Whether an edit only puts a module beside a site."""
    plain = edit.kind in ("add", "scale") and not edit.inputs
    return plain and isinstance(edit.step, nn.Module)


def pruned(tree: SomeChain, edits: Iterable[Edit], origin: SomeChain) -> SomeChain | None:
    """The tree without some edits that are in it.

    Args:
        tree: what `origin` became by these edits and others.
        edits: to take out, all `beside` their sites.
        origin: as its author wrote it. Where no edit is left of a Chain, its own stands.

    Returns:
        A new tree, or None where it has to be made anew from the origin.

    Raises:
        InarchError: IA108 for an origin that can't be edited.
    """
    plan = planned(edits, origin)
    try:
        return _pruned(tree, plan, origin, {}) if plan.sites or plan.below else tree
    except _Together:
        return None


def _pruned(
    chain: SomeChain, plan: Plan, origin: SomeChain, known: dict[Hashable, _Left]
) -> SomeChain:
    twin = chain._twin(origin)  # pyright: ignore[reportPrivateUsage]
    new: dict[str, Chain] = {}
    for name, inner in plan.below.items():
        new[name] = _pruned(chain_at(chain, name), inner, chain_at(origin, name), known)
    twin._replace(new)  # pyright: ignore[reportPrivateUsage]
    gone = {site: [(e.kind, e.adapter) for e in edits] for site, edits in plan.sites.items()}
    below = tuple([(name, made.form) for name, made in new.items()])
    sites = tuple([(site, *kinds) for site, kinds in gone.items()])
    key = (chain.form, chain.interface, origin.form, sites, below)
    left = known.get(key)
    if left is None:
        left = known[key] = _left(chain, gone, twin, origin)
    else:
        for name in left.names:
            del twin._modules[name]
        twin._take(left.program, left.form)  # pyright: ignore[reportPrivateUsage]
    if left.bare and all(
        twin.module_at(name) is origin.module_at(name) for name, _ in left.form.below
    ):
        return origin
    return twin


_Gone = dict[str, list[tuple[str, str]]]
"""Kinds and adapters of what goes, by site."""


def _left(chain: Chain, gone: _Gone, twin: Chain, origin: Chain) -> _Left:
    """Write what is left of a Chain, in its twin."""
    names: list[str] = []
    program = _without(chain.program, gone, (), names)
    if len(names) != sum(map(len, gone.values())):
        raise _Together
    for name in names:
        del twin._modules[name]
    if gone:
        twin._write(program)  # pyright: ignore[reportPrivateUsage]
    else:
        form = form_like(chain.form, program, chain.interface, ModulesOf(twin))
        twin._take(program, form)  # pyright: ignore[reportPrivateUsage]
    bare = program == origin.program and chain.interface == origin.interface
    return _Left(program, twin.form, tuple(names), bare)


def _without(step: Step, gone: _Gone, here: Iterable[tuple[str, str]], names: list[str]) -> Step:
    """A step without the grafts that go, `here` at the site it is of; notes their modules."""
    if not isinstance(step, Combinator) or not step.children:
        return step
    if isinstance(step, Site):
        here = gone.get(step.name, ())
    kept: list[Step] = []
    for child in step.children:
        if isinstance(child, Graft) and (child.kind, child.adapter) in here:
            if not isinstance(step, Sum | Product) or not isinstance(child.step, Ref):
                raise _Together
            names.append(child.step.name)
        else:
            kept.append(_without(child, gone, here, names))
    if len(kept) < len(step.children):
        if len(kept) > 1:
            return step.with_children(tuple(kept))
        if _edited(kept[0]):
            raise _Together
        return kept[0]
    same = all(a is b for a, b in zip(kept, step.children, strict=True))
    return step if same else step.with_children(tuple(kept))


def _edited(step: Step) -> bool:
    """Whether edits made a step what it is."""
    children = step.children if isinstance(step, Combinator) else ()
    return isinstance(step, Graft) or any(isinstance(child, Graft) for child in children)
