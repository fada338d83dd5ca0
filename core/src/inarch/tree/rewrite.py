"""The new Chains that edits make: those on the way to an edit, each written once a structure.

A model repeats its blocks, and an adapter does the same in each. So what the edits of one Chain
come to is remembered while they are applied, and a further Chain of that form with edits of that
form gets the same program and the same function, and only its own modules.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from inarch.errors import InarchError
from inarch.tree.chain import RESERVED, Chain
from inarch.tree.generate import Form, Interface, structure
from inarch.tree.graft import duplicate, graft
from inarch.tree.names import module_name
from inarch.tree.program import Registry, adopt
from inarch.tree.steps import Combinator, Export, Graft, Let, Seq, Site, Step, walk

if TYPE_CHECKING:
    from inarch.tree.edit import Edit

SomeChain = TypeVar("SomeChain", bound=Chain)


@dataclass(slots=True)
class Plan:
    """The edits of one Chain by site, and the plans of the Chains below it."""

    sites: dict[str, list[Edit]] = field(default_factory=dict[str, "list[Edit]"])
    below: dict[str, Plan] = field(default_factory=dict[str, "Plan"])
    inputs: dict[str, None] = field(default_factory=dict[str, None])


@dataclass(frozen=True, slots=True)
class _Written:
    """What the edits of a Chain made of it: its program and form, the names of what they bring."""

    program: Step
    form: Form
    names: tuple[str, ...]


@dataclass(slots=True)
class _Known:
    """What was made so far, and which forms hold no edit yet."""

    made: dict[Hashable, _Written] = field(default_factory=dict[Hashable, _Written])
    pristine: dict[Form, bool] = field(default_factory=dict[Form, bool])


def rewritten(chain: SomeChain, plan: Plan, known: _Known | None = None) -> SomeChain:
    """A new Chain, and new ones below it, with the edits of a plan."""
    known = known or _Known()
    twin = chain._twin()
    below: list[tuple[str, Form]] = []
    for name, inner in plan.below.items():
        child = chain.module_at(name)
        if not isinstance(child, Chain):
            raise TypeError(f"{name} is no Chain")
        made = rewritten(child, inner, known)
        twin._replace(name, made)
        below.append((name, made.form))
    face = chain.interface
    if face.inputs is not None and plan.inputs:
        inputs = tuple(sorted({*face.inputs, *plan.inputs}))
        twin.interface = Interface(face.takes, inputs, face.keeps)
    key = _key(chain, twin.interface, plan, below, known)
    written = None if key is None else known.made.get(key)
    edits = [edit for at_site in plan.sites.values() for edit in at_site]
    if written is not None:
        for name, edit in zip(written.names, edits, strict=True):
            twin._register(name, edit.step)
        twin._take(written.program, written.form)
        return twin
    _write(twin, plan)
    if key is not None and len({id(edit.step) for edit in edits}) == len(edits):
        names = {id(module): name for name, module in twin._modules.items()}
        brought = tuple(names[id(edit.step)] for edit in edits)
        known.made[key] = _Written(twin.program, twin.form, brought)
    return twin


def _key(
    chain: Chain,
    interface: Interface,
    plan: Plan,
    below: list[tuple[str, Form]],
    known: _Known,
) -> Hashable:
    """What a Chain's new program and form depend on; None where that is more than is looked at.

    A form says all of a Chain but what its own edits depend on beside shapes: see `Joining`.
    """
    form = chain.form
    if form not in known.pristine:
        known.pristine[form] = not any(isinstance(step, Graft) for step in walk(chain.program))
    if not known.pristine[form] or "" in plan.sites:
        return None
    sites: list[Hashable] = []
    for site, edits in plan.sites.items():
        for edit in edits:
            step = edit.step
            if edit.kind == "tap" or not isinstance(step, nn.Module):
                return None
            joins = getattr(step, "joins", None)
            sites.append((site, edit.kind, edit.adapter, edit.kin, structure(step), joins))
    return form, interface, tuple(sites), tuple(below)


def _write(twin: Chain, plan: Plan) -> None:
    program = twin.program
    sites = {name: edits for name, edits in plan.sites.items() if name}
    if sites:
        program = _mapped(program, sites, twin)
    for edit in plan.sites.get("", ()):
        program = _provided(program, edit, twin)
    twin._write(program)


def _mapped(step: Step, sites: Mapping[str, list[Edit]], chain: Chain) -> Step:
    """The program with the edits of `sites` grafted in; the same object where nothing changes."""
    if not isinstance(step, Combinator) or not step.children:
        return step
    old = step.children
    new = tuple(_mapped(child, sites, chain) for child in old)
    if any(a is not b for a, b in zip(old, new, strict=True)):
        step = step.with_children(new)
    if isinstance(step, Site):
        for edit in sites.get(step.name, ()):
            if edit.kind in ("before", "wrap"):
                _refuse_packed(step.name, edit, chain)
            new = _brought(step, edit, chain)
            step = Site(step.name, graft(step.name, step.step, new, chain.module_at))
    return step


def _refuse_packed(site: str, edit: Edit, chain: Chain) -> None:
    """What is before a layer can't be, where the layer's rows are multiplied with others'."""
    for pack in chain.packs:
        if site in pack.sites:
            raise InarchError(
                "IA119",
                f"the {edit.kind} edit of adapter `{edit.adapter}` is of a packed layer",
                where=site,
                why=f"it is one product with {', '.join(s for s in pack.sites if s != site)}",
                remedy="adapt the model, which packs what still shares its input: model.adapt(...)",
            )


def _brought(site: Site, edit: Edit, chain: Chain) -> Graft:
    """What the edit puts there, its modules registered on the chain beside the site."""
    if edit.kind == "tap":
        bind = Export if edit.export else Let
        return Graft(edit.adapter, "tap", bind(edit.names))
    return Graft(edit.adapter, edit.kind, _adopted(site.name, edit, chain), edit.kin)


def _adopted(beside: str, edit: Edit, chain: Chain) -> Step:
    name = module_name(beside, edit.adapter)
    if name in chain._modules:
        name = f"{name}__{edit.kind}"
    if name in chain._modules:
        raise duplicate(beside, edit.adapter, edit.kind)
    return adopt(edit.step, Registry(RESERVED, chain._register, prefix=name))


def _provided(program: Step, edit: Edit, chain: Chain) -> Step:
    """The program with one more provided value before its first step; these sort by adapter."""
    new = Graft(edit.adapter, "provide", Let(edit.names, _adopted(edit.label, edit, chain)))
    steps = list(program.children)
    count = 0
    while count < len(steps) and isinstance(steps[count], Graft):
        count += 1
    first = sorted([*steps[:count], new], key=lambda graft: graft.adapter)
    return Seq(*first, *steps[count:])
