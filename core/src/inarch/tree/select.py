"""Finding sites of a tree: by address, class and predicate, with a count that can be demanded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from torch import nn

from inarch.errors import InarchError
from inarch.tree.address import compiled
from inarch.tree.chain import Chain
from inarch.tree.names import adapter_of
from inarch.tree.steps import Combinator, Graft, Ref, Site, Step, walk


@dataclass(frozen=True, slots=True)
class Found:
    """One site: its address, what stands there, and the Chain it stands in.

    Attributes:
        address: from the tree that was searched.
        step: the expression at the site.
        module: the module that the tree's author put there; None for functions and combinators.
        chain: the Chain whose program holds the site.
    """

    address: str
    step: Step
    module: nn.Module | None
    chain: Chain


@dataclass(frozen=True, slots=True)
class Selection(Sequence[Found]):
    """Sites in the order of the tree."""

    found: tuple[Found, ...]
    asked: str

    @overload
    def __getitem__(self, index: int) -> Found: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Found]: ...
    def __getitem__(self, index: int | slice) -> Found | Sequence[Found]:
        return self.found[index]

    def __len__(self) -> int:
        return len(self.found)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(found.address for found in self.found)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return tuple(found.module for found in self.found if found.module is not None)

    def expect(self, count: int) -> Selection:
        """The same selection, if it holds so many sites.

        Raises:
            InarchError: IA114.
        """
        if len(self) != count:
            raise InarchError(
                "IA114",
                f"{len(self)} sites match where {count} were expected",
                where=self.asked,
                why=", ".join(self.addresses[:8]) + (", ..." if len(self) > 8 else ""),
                remedy="correct the pattern or the count",
            )
        return self

    def __repr__(self) -> str:
        lines = [f"{len(self)} sites match {self.asked}"]
        lines += [f"  {address}" for address in self.addresses[:10]]
        return "\n".join(lines + (["  ..."] if len(self) > 10 else []))


def select(
    tree: Chain,
    pattern: str | None,
    *,
    type: type | tuple[type, ...] | None,
    where: Callable[[Found], bool] | None,
    count: int | None,
) -> Selection:
    """See `Chain.select`."""
    match = None if pattern is None else compiled(pattern).fullmatch
    chosen = tuple(
        found
        for found in sites(tree)
        if (match is None or match(found.address))
        and (type is None or isinstance(found.module, type))
        and (where is None or where(found))
    )
    asked = [] if pattern is None else [pattern]
    if type is not None:
        kinds = type if isinstance(type, tuple) else (type,)
        asked.append(" or ".join(kind.__name__ for kind in kinds))
    if where is not None:
        asked.append("a predicate")
    selection = Selection(chosen, " and ".join(asked) or "everything")
    return selection if count is None else selection.expect(count)


def sites(tree: Chain, prefix: str = "") -> Iterator[Found]:
    """Every site of a tree, each Chain before what is in it."""
    for step in walk(tree.program):
        if isinstance(step, Site):
            name = origin(step.step)
            if name is None and any(step.name in pack.sites for pack in tree.packs):
                name = step.name
            module = None if name is None else tree.module_at(name)
            yield Found(prefix + step.name, step.step, module, tree)
            if isinstance(module, Chain) and name == step.name:
                yield from sites(module, f"{prefix}{name}.")
        elif isinstance(step, Graft):
            for name in brought(step):
                module = tree.module_at(name)
                if isinstance(module, Chain):
                    yield from sites(module, f"{prefix}{name}.")


def brought(graft: Graft) -> Iterator[str]:
    """The names of the modules an edit brought, without those of what it wraps."""
    for step in walk(graft.step):
        if isinstance(step, Ref) and adapter_of(step.name) == graft.adapter:
            yield step.name


def origin(step: Step) -> str | None:
    """The name of the module that stands at a site, whatever edits added around it."""
    if isinstance(step, Ref):
        return step.name
    if isinstance(step, Graft):
        return next(_originals(step), None)
    children = step.children if isinstance(step, Combinator) else ()
    if any(isinstance(child, Graft) for child in children):
        base = (c for c in children if not isinstance(c, Graft) or not c.beside)
        return next((origin(child) for child in base), None)
    return None


def _originals(step: Step) -> Iterator[str]:
    """The modules of an expression that no edit put beside others or around them."""
    if isinstance(step, Ref):
        yield step.name
    elif isinstance(step, Combinator) and not (isinstance(step, Graft) and step.beside):
        around = step.adapter if isinstance(step, Graft) and step.kind == "wrap" else None
        for child in step.children:
            for name in _originals(child):
                if around is None or adapter_of(name) != around:
                    yield name
