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
from inarch.tree.chain import RESERVED, Chain, ModulesOf
from inarch.tree.generate import Form, Interface, form_like, structure
from inarch.tree.graft import duplicate, graft
from inarch.tree.names import module_name
from inarch.tree.program import Registry, adopt
from inarch.tree.steps import Combinator, Export, Graft, Let, Seq, Site, Step

if TYPE_CHECKING:
    from inarch.tree.edit import Edit

SomeChain = TypeVar("SomeChain", bound=Chain)


@dataclass(slots=True)
class Plan:
    """The edits of one Chain by site, and the plans of the Chains below it."""

    sites: dict[str, list[Edit]] = field(default_factory=dict[str, "list[Edit]"])
    below: dict[str, Plan] = field(default_factory=dict[str, "Plan"])
    inputs: dict[str, None] = field(default_factory=dict[str, None])

    def put(self, path: tuple[str, ...], site: str, edit: Edit) -> None:
        """Note an edit at a site of a Chain further down."""
        plan = self
        if edit.inputs:
            plan.inputs.update(dict.fromkeys(edit.inputs))
        for child in path:
            inner = plan.below.get(child)
            if inner is None:
                inner = plan.below[child] = Plan()
            plan = inner
            if edit.inputs:
                plan.inputs.update(dict.fromkeys(edit.inputs))
        at_site = plan.sites.get(site)
        if at_site is None:
            plan.sites[site] = [edit]
        else:
            at_site.append(edit)


@dataclass(frozen=True, slots=True)
class _Written:
    """What the edits of a Chain made of it.

    Attributes:
        program, form: the Chain's own.
        brought: of what the edits bring, the name, and which edit it is of; in program order.
        order: the names of all its modules, where it held edits before: program order again.
    """

    program: Step
    form: Form
    brought: tuple[tuple[str, int], ...]
    order: tuple[str, ...]


_Known = dict[Hashable, _Written]
"""What was made so far."""


def rewritten(
    chain: SomeChain, plan: Plan, origin: Chain | None = None, known: _Known | None = None
) -> SomeChain:
    """A new Chain, and new ones below it, with the edits of a plan.

    Args:
        chain: edited or not.
        plan: of its edits.
        origin: what it was made of by edits: see `Chain._twin`.
        known: what was made of other Chains.
    """
    known = {} if known is None else known
    twin = chain._twin(origin)
    new: dict[str, Chain] = {}
    for name, inner in plan.below.items():
        child = chain_at(chain, name)
        new[name] = rewritten(child, inner, origin and chain_at(origin, name), known)
    twin._replace(new)
    face = chain.interface
    if face.inputs is not None and plan.inputs:
        inputs = tuple(sorted({*face.inputs, *plan.inputs}))
        twin.interface = Interface(face.takes, inputs, face.keeps)
    below = tuple([(name, made.form) for name, made in new.items()])
    key = _key(chain, twin.interface, plan, below)
    written = None if key is None else known.get(key)
    edits = [edit for at_site in plan.sites.values() for edit in at_site]
    if written is not None:
        for name, index in written.brought:
            twin._register(name, edits[index].step)
        twin._take(written.program, written.form)
        _sort(twin, written.order)
        return twin
    if plan.sites or twin.interface is not chain.interface:
        _write(twin, plan)
    else:
        form = form_like(chain.form, chain.program, chain.interface, ModulesOf(twin))
        twin._take(chain.program, form)
    order = () if origin is None else _order(twin, origin)
    _sort(twin, order)
    number = {id(edit.step): index for index, edit in enumerate(edits)}
    if key is not None and len(number) == len(edits):
        brought = [(n, number[id(m)]) for n, m in twin._modules.items() if id(m) in number]
        known[key] = _Written(twin.program, twin.form, tuple(brought), order)
    return twin


def _order(twin: Chain, origin: Chain) -> tuple[str, ...]:
    """The names of a Chain's modules: its author's first, then in the order of the program."""
    called = [name.partition(".")[0] for name in twin.form.refs]
    return tuple(dict.fromkeys([*origin._modules, *called]))


def _sort(twin: Chain, order: tuple[str, ...]) -> None:
    """Put a Chain's modules in an order, so that it tells nothing of how a stack came about."""
    if order:
        held = twin._modules
        twin.__dict__["_modules"] = {name: held[name] for name in order if name in held} | held


def chain_at(chain: Chain, name: str) -> Chain:
    """The Chain under a dotted name of a Chain."""
    child = chain.module_at(name)
    if not isinstance(child, Chain):
        raise TypeError(f"{name} is no Chain")
    return child


def _key(
    chain: Chain, interface: Interface, plan: Plan, below: tuple[tuple[str, Form], ...]
) -> Hashable:
    """What a Chain's new program and form depend on; None where that is more than is looked at."""
    if "" in plan.sites:
        return None
    sites: list[Hashable] = []
    for site, edits in plan.sites.items():
        for edit in edits:
            step = edit.step
            if edit.kind == "tap" or not isinstance(step, nn.Module):
                return None
            sites.append((site, edit.kind, edit.adapter, edit.kin, structure(step)))
    return chain.form, interface, tuple(sites), below


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
