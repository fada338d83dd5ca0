"""Edits: what an adapter does to a tree, as data, and the new tree that comes of applying them.

Applying copies the Chains on the way from the root to an edited site and shares everything else,
so the tree that was edited is never touched. What edits leave at one site is kept in a normal
form (terms and factors sorted by adapter), so that equal edits give equal trees in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

from torch import nn

from inarch.errors import InarchError
from inarch.naming import check_adapter_name
from inarch.tree.address import compiled, is_pattern
from inarch.tree.chain import RESERVED, Chain
from inarch.tree.generate import Interface
from inarch.tree.graft import duplicate, graft
from inarch.tree.names import is_name, module_name
from inarch.tree.program import Registry, adopt
from inarch.tree.steps import Combinator, Export, Graft, Identity, Let, Seq, Site, Step

Kind = Literal["add", "scale", "before", "after", "wrap", "replace", "provide", "tap"]
SomeChain = TypeVar("SomeChain", bound=Chain)


@dataclass(frozen=True, eq=False, kw_only=True)
class Edit:
    """One change to a tree: where, of what kind, by which adapter, and the step to put there.

    Attributes:
        address: names with `*` for one level and `{a,b}`; empty for `provide`.
        kind: `add` f(x) + g(x), `scale` f(x) * g, `before` f(g(x)), `after` g(f(x)), `wrap` an
            expression in which `Here()` stands for f(x), `replace` g(x), `provide` a new named
            value from the model's inputs, `tap` a name for what the site gives.
        adapter: whose edit it is: an identifier, which names the modules it brings.
        step: what to put there. Its modules become `SITE__ADAPTER` beside the site.
        names: what `provide` and `tap` bind.
        inputs: inputs of the whole model that the step newly asks for.
        reads: addresses of weights or structure the edit was made from.
        fills: for each parameter of the step's module, the key of the file that holds it.
        copies: for a parameter of the step's module that no file fills, the base's parameter it
            begins as, by its address.
        export: whether a tapped value leaves its Chain.
        label: what the modules of `provide` are called; `SITE` elsewhere.
        kin: where it is set, its author's word that this `before` or `after` edit and others of one
            kin at the same site give the same result in any order; they are sorted by adapter.
    """

    address: str
    kind: Kind
    adapter: str
    step: Step = field(default=Identity(), repr=False)
    names: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    fills: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    copies: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    export: bool = False
    label: str = "provided"
    kin: str = ""

    def __post_init__(self) -> None:
        wrong = ""
        if self.kind not in get_args(Kind):
            wrong = f"`{self.kind}` is no kind of edit; the kinds are {', '.join(get_args(Kind))}"
        elif (self.kind in ("provide", "tap")) != bool(self.names):
            wrong = f"a {self.kind} edit {'binds no name' if self.names else 'must bind a name'}"
        elif not self.address and self.kind != "provide":
            wrong = f"a {self.kind} edit needs an address"
        elif not is_name(self.label) or "__" in self.label:
            wrong = f"`{self.label}` can't be what its modules are called"
        elif self.kin and self.kind not in ("before", "after"):
            wrong = f"a {self.kind} edit has no kin"
        if wrong:
            raise InarchError(
                "IA117",
                wrong,
                where=f"adapter `{self.adapter}` {self.address}",
                remedy="make edits with Edit.add, Edit.scale, Edit.wrap and their like",
            )

    @classmethod
    def add(cls, address: str, step: Step, adapter: str, **options: object) -> Edit:
        return cls(address=address, kind="add", step=step, adapter=adapter, **options)  # pyright: ignore

    @classmethod
    def scale(cls, address: str, step: Step, adapter: str, **options: object) -> Edit:
        return cls(address=address, kind="scale", step=step, adapter=adapter, **options)  # pyright: ignore

    @classmethod
    def before(cls, address: str, step: Step, adapter: str, **options: object) -> Edit:
        return cls(address=address, kind="before", step=step, adapter=adapter, **options)  # pyright: ignore

    @classmethod
    def after(cls, address: str, step: Step, adapter: str, **options: object) -> Edit:
        return cls(address=address, kind="after", step=step, adapter=adapter, **options)  # pyright: ignore

    @classmethod
    def wrap(cls, address: str, step: Step, adapter: str, **options: object) -> Edit:
        return cls(address=address, kind="wrap", step=step, adapter=adapter, **options)  # pyright: ignore

    @classmethod
    def replace(cls, address: str, step: Step, adapter: str, **options: object) -> Edit:
        return cls(address=address, kind="replace", step=step, adapter=adapter, **options)  # pyright: ignore

    @classmethod
    def provide(
        cls, names: str | tuple[str, ...], step: Step, adapter: str, **options: object
    ) -> Edit:
        bound = (names,) if isinstance(names, str) else names
        return cls(address="", kind="provide", step=step, adapter=adapter, names=bound, **options)  # pyright: ignore

    @classmethod
    def tap(cls, address: str, name: str, adapter: str, **options: object) -> Edit:
        return cls(address=address, kind="tap", adapter=adapter, names=(name,), **options)  # pyright: ignore


@dataclass(slots=True)
class _Plan:
    """The edits of one Chain by site, and the plans of the Chains below it."""

    sites: dict[str, list[Edit]] = field(default_factory=dict[str, list[Edit]])
    below: dict[str, _Plan] = field(default_factory=dict[str, "_Plan"])
    inputs: dict[str, None] = field(default_factory=dict[str, None])


def apply(tree: SomeChain, edits: Iterable[Edit]) -> SomeChain:
    """A new tree with the edits applied in their order; `tree` itself when there are none."""
    plan = _Plan()
    for edit in edits:
        check_adapter_name(edit.adapter)
        for address in addresses(tree, edit):
            _place(plan, tree, address, edit)
    if not plan.sites and not plan.below:
        return tree
    _refuse_final(tree)
    return _rewritten(tree, plan)


def addresses(tree: Chain, edit: Edit) -> list[str]:
    """The exact addresses an edit is for.

    Raises:
        InarchError: IA110 where there is none.
    """
    if edit.kind == "provide":
        return [""]
    index = tree.form.index
    if not is_pattern(edit.address):
        found = [edit.address] if edit.address in index else []
    else:
        match = compiled(edit.address).fullmatch
        found = [address for address in index if match(address)]
    if not found:
        raise no_site(tree, edit.address, f"the {edit.kind} edit of adapter `{edit.adapter}`")
    return found


def no_site(tree: Chain, address: str, asker: str) -> InarchError:
    """The error for an address that matches nothing, with the nearest that would."""
    import difflib

    near = difflib.get_close_matches(address, list(tree.form.index), 3, 0.5)
    return InarchError(
        "IA110",
        f"no site matches `{address}`",
        where=asker,
        why="a partial match is never accepted, so nothing was changed",
        remedy=f"did you mean: {', '.join(near)}"
        if near
        else "look at the tree: print(model.tree)",
    )


def _place(plan: _Plan, tree: Chain, address: str, edit: Edit) -> None:
    path, name = tree.form.index[address] if address else ((), "")
    inputs = dict.fromkeys(edit.inputs)
    plan.inputs |= inputs
    for child in path:
        plan = plan.below.setdefault(child, _Plan())
        plan.inputs |= inputs
    plan.sites.setdefault(name, []).append(edit)


def is_final(module: nn.Module) -> bool:
    """Whether a module was compiled or sharded in place, for the one tree that holds it."""
    return module.__dict__.get("_compiled_call_impl") is not None or _sharded(module)


def _refuse_final(tree: Chain) -> None:
    for name, module in tree.named_modules():
        compiled_in_place = module.__dict__.get("_compiled_call_impl") is not None
        if is_final(module):
            raise InarchError(
                "IA108",
                f"a tree that was {'compiled' if compiled_in_place else 'sharded'} can't be edited",
                where=name or "the root",
                why="its modules were changed in place for the tree that holds them now",
                remedy="adapt first; shard and compile the value that will run, last",
            )


def _sharded(module: nn.Module) -> bool:
    """Whether FSDP2 manages the module or its own parameters are DTensors, without importing it."""
    parameters = module.__dict__["_parameters"].values()
    return hasattr(module, "_get_fsdp_state") or any(hasattr(p, "device_mesh") for p in parameters)


def _rewritten(chain: SomeChain, plan: _Plan) -> SomeChain:
    twin = chain._twin()  # pyright: ignore[reportPrivateUsage]
    for name, below in plan.below.items():
        child = chain.module_at(name)
        if not isinstance(child, Chain):
            raise TypeError(f"{name} is no Chain")
        twin._replace(name, _rewritten(child, below))  # pyright: ignore[reportPrivateUsage]
    face = chain.interface
    if face.inputs is not None and plan.inputs:
        inputs = tuple(sorted({*face.inputs, *plan.inputs}))
        twin.interface = Interface(face.takes, inputs, face.keeps)
    program = chain.program
    provided = plan.sites.pop("", [])
    if plan.sites:
        program = _mapped(program, plan.sites, twin)
    for edit in provided:
        program = _provided(program, edit, twin)
    twin._write(program)  # pyright: ignore[reportPrivateUsage]
    return twin


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
            new = _brought(step, edit, chain)
            step = Site(step.name, graft(step.name, step.step, new, chain.module_at))
    return step


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
    return adopt(edit.step, Registry(RESERVED, chain._register, prefix=name))  # pyright: ignore[reportPrivateUsage]


def _provided(program: Step, edit: Edit, chain: Chain) -> Step:
    """The program with one more provided value before its first step; these sort by adapter."""
    new = Graft(edit.adapter, "provide", Let(edit.names, _adopted(edit.label, edit, chain)))
    steps = list(program.children)
    count = 0
    while count < len(steps) and isinstance(steps[count], Graft):
        count += 1
    first = sorted([*steps[:count], new], key=lambda graft: graft.adapter)
    return Seq(*first, *steps[count:])
