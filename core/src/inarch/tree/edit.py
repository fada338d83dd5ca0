"""Edits: what an adapter does to a tree, as data, and the new tree that comes of applying them.

Applying copies the Chains on the way from the root to an edited site and shares everything else,
so the tree that was edited is never touched. What edits leave at one site is kept in a normal
form (terms and factors sorted by adapter), so that equal edits give equal trees in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

from torch import nn

from inarch.errors import InarchError
from inarch.naming import check_adapter_name
from inarch.tree.address import compiled, is_pattern
from inarch.tree.chain import Chain
from inarch.tree.names import is_name
from inarch.tree.rewrite import Plan, rewritten
from inarch.tree.steps import Identity, Step

Kind = Literal["add", "scale", "before", "after", "wrap", "replace", "provide", "tap"]
SomeChain = TypeVar("SomeChain", bound=Chain)
_KINDS = get_args(Kind)
_LABEL = "provided"
_PLAIN = frozenset({nn.Parameter, type(None)})
_COMPILED = "_compiled_call_impl"
_MANAGED = "_get_fsdp_state"  # FSDP2 gives a module a class of its own, which has this


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
        padded: parameters that a smaller tensor of a file may fill the beginning of. What is left
            is zero and then means nothing; where all of an edit's are zero, so does the edit.
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
    padded: tuple[str, ...] = field(default=(), repr=False)
    export: bool = False
    label: str = _LABEL
    kin: str = ""

    def __post_init__(self) -> None:
        wrong = ""
        if self.kind not in _KINDS:
            wrong = f"`{self.kind}` is no kind of edit; the kinds are {', '.join(_KINDS)}"
        elif (self.kind in ("provide", "tap")) != bool(self.names):
            wrong = f"a {self.kind} edit {'binds no name' if self.names else 'must bind a name'}"
        elif not self.address and self.kind != "provide":
            wrong = f"a {self.kind} edit needs an address"
        elif self.label != _LABEL and (not is_name(self.label) or "__" in self.label):
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

    def at(self, address: str) -> Edit:
        """The same edit elsewhere."""
        edit = object.__new__(type(self))
        edit.__dict__.update(self.__dict__, address=address)
        return edit

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


def apply(tree: SomeChain, edits: Iterable[Edit], origin: SomeChain | None = None) -> SomeChain:
    """A new tree with the edits applied in their order; `tree` itself when there are none.

    Args:
        tree: edited or not.
        edits: whose addresses are found in `origin`.
        origin: what `tree` was made of by edits, whatever was done to `tree` since; itself where
            it is as its author wrote it.
    """
    plan = planned(edits, origin or tree)
    if not plan.sites and not plan.below:
        return tree
    return rewritten(tree, plan, origin)


def planned(edits: Iterable[Edit], tree: Chain) -> Plan:
    """Where the edits go in a tree, which is to be one that can be edited.

    Raises:
        InarchError: IA108, IA110, IA113, and what an adapter's name can be refused with.
    """
    plan, checked, index = Plan(), set[str](), tree.form.index
    for edit in edits:
        if edit.adapter not in checked:
            check_adapter_name(edit.adapter)
            checked.add(edit.adapter)
        found = None if edit.kind == "provide" else index.get(edit.address)
        if found is not None:
            plan.put(*found, edit)
            continue
        for address in addresses(tree, edit):
            plan.put(*(index[address] if address else ((), "")), edit)
    if plan.sites or plan.below:
        _refuse_final(tree, plan)
    return plan


def addresses(tree: Chain, edit: Edit) -> list[str]:
    """The exact addresses an edit is for.

    Raises:
        InarchError: IA110 where there is none.
    """
    index = tree.form.index
    if edit.kind == "provide":
        return [""]
    if edit.address in index:
        return [edit.address]
    match = compiled(edit.address).fullmatch if is_pattern(edit.address) else None
    found = [] if match is None else [address for address in index if match(address)]
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


def is_final(module: nn.Module) -> bool:
    """Whether a module was compiled or sharded in place, for the one tree that holds it."""
    return module.__dict__.get(_COMPILED) is not None or _sharded(module)


def _refuse_final(tree: Chain, plan: Plan) -> None:
    """Refuse to edit what was changed in place; blocks of FSDP2 that no edit is in are shared."""
    modules = _modules(tree)
    plain = {type(p) for m in modules for p in m._parameters.values()} <= _PLAIN
    managed = any(hasattr(kind, _MANAGED) for kind in {type(m) for m in modules})
    if plain and not managed and not any(m.__dict__.get(_COMPILED) for m in modules):
        return
    copied = set(_copied(tree, plan))
    for name, module in tree.named_modules():
        compiled_in_place = module.__dict__.get(_COMPILED) is not None
        if compiled_in_place or (module in copied and is_final(module)):
            raise InarchError(
                "IA108",
                f"a tree that was {'compiled' if compiled_in_place else 'sharded'} can't be edited",
                where=name or "the root",
                why="its modules were changed in place for the tree that holds them now",
                remedy="adapt first; shard and compile the value that will run, last",
            )


def _copied(tree: Chain, plan: Plan) -> Iterator[nn.Module]:
    """The Chains that are copied for edits, and their own layers, which copies share."""
    ahead: list[nn.Module] = [tree]
    while ahead:
        module = ahead.pop()
        yield module
        ahead += [m for m in module._modules.values() if m is not None and not isinstance(m, Chain)]
    for name, below in plan.below.items():
        child = tree.module_at(name)
        if isinstance(child, Chain):
            yield from _copied(child, below)


def _modules(tree: nn.Module) -> list[nn.Module]:
    """Every module of a tree, as `nn.Module.modules` and without making names."""
    found, seen = [tree], {id(tree)}
    for module in found:
        for child in module._modules.values():
            if child is not None and not (child._modules and id(child) in seen):
                if child._modules:
                    seen.add(id(child))
                found.append(child)
    return found


def refuse_sharded(tree: Chain) -> None:
    """Refuse to run a piece of a tree that FSDP2 manages, which only the whole puts together.

    Raises:
        InarchError: IA108.
    """
    if _sharded(tree):
        raise InarchError(
            "IA108",
            "a tree that was sharded can't be run in pieces",
            why="its weights are put together when the whole of it is called",
            remedy='shard with another plan: inarch.shard(model, "replicate")',
        )


def _sharded(module: nn.Module) -> bool:
    """Whether FSDP2 manages the module or its own parameters are DTensors, without importing it."""
    parameters = module.__dict__["_parameters"].values()
    return hasattr(type(module), _MANAGED) or any(hasattr(p, "device_mesh") for p in parameters)
