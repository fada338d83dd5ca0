"""What an adapter's edits touch: addresses by kind, what it reads, the names it binds and asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from torch import nn

from inarch.tree import Chain, Edit, Use
from inarch.tree.signature import of_function, of_module
from inarch.tree.steps import Combinator, Labelled, Let, Ref, Site, walk


@dataclass(frozen=True, slots=True)
class Footprint:
    """Where one adapter's edits stand. Two adapters of equal footprints meet others alike.

    Attributes:
        kinds: for each kind of edit but `provide`, the exact addresses it is made at.
        reads: addresses of what the edits were made from.
        binds: for each name that a `tap` or `provide` binds, the Chains it is known in.
        asks: for each name that steps need and don't bind, the Chains it is sought in.
        all: every address.
        kin: for each kind of edit and each kin, the addresses where such edits are.
    """

    kinds: Mapping[str, frozenset[str]]
    reads: frozenset[str] = frozenset()
    binds: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    asks: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    all: frozenset[str] = frozenset()
    kin: Mapping[tuple[str, str], frozenset[str]] = field(
        default_factory=dict[tuple[str, str], frozenset[str]]
    )

    @property
    def key(self) -> object:
        """Equal for adapters that touch the same."""
        parts = (self.kinds, self.binds, self.asks, self.kin)
        return self.reads, *(tuple(sorted(part.items())) for part in parts)


def footprint(edits: Iterable[Edit], grounds: Grounds, *, asks: bool) -> Footprint:
    """The footprint of edits at exact addresses.

    Args:
        edits: one adapter's.
        grounds: of the trees they are made to.
        asks: whether to look into the steps for the names they need, which costs more.
    """
    kinds: dict[str, set[str]] = {}
    binds: dict[str, frozenset[str]] = {}
    asked: dict[str, frozenset[str]] = {}
    reads: set[str] = set()
    kin: dict[tuple[str, str], frozenset[str]] = {}
    edits = tuple(edits)
    for edit in edits:
        if edit.kind != "provide":
            try:
                kinds[edit.kind].add(edit.address)
            except KeyError:
                kinds[edit.kind] = {edit.address}
        for name in edit.names:
            binds[name] = binds.get(name, frozenset()) | grounds.known_in(edit, name)
        if edit.reads:
            reads.update(edit.reads)
        if edit.kin:
            alike = (edit.kind, edit.kin)
            kin[alike] = kin.get(alike, frozenset()) | {edit.address}
    for edit in edits if asks else ():
        for name in needs(edit):
            asked[name] = asked.get(name, frozenset()) | grounds.above(edit.address)
    frozen = {kind: frozenset(addresses) for kind, addresses in kinds.items()}
    every = next(iter(frozen.values())) if len(frozen) == 1 else frozenset().union(*frozen.values())
    asked = {name: chains for name, chains in asked.items() if name not in binds}
    return Footprint(frozen, frozenset(reads), binds, asked, every, kin)


class Grounds:
    """The pristine trees, asked for what lies around a site.

    Args:
        trees: by name; a model of one tree calls it "".
    """

    def __init__(self, trees: Mapping[str, Chain]) -> None:
        self.trees = trees
        self._inside: dict[str, frozenset[str]] = {}

    def within(self, address: str) -> tuple[str, Chain, str]:
        """The tree an address is in, and the address from there."""
        if "" in self.trees:
            return "", self.trees[""], address
        name, _, rest = address.partition(".")
        return f"{name}.", self.trees[name], rest

    def chain(self, address: str) -> tuple[str, Chain, str]:
        """The Chain that holds a site: its address, itself, and the site's name there."""
        prefix, tree, inner = self.within(address)
        if not inner:
            return prefix.rstrip("."), tree, ""
        path, name = tree.form.index[inner]
        chain: Chain = tree
        for part in path:
            chain = cast("Chain", chain.module_at(part))
        return (prefix + ".".join(path)).rstrip("."), chain, name

    def above(self, address: str) -> frozenset[str]:
        """The Chain that holds a site and those around it, by their addresses."""
        prefix, tree, inner = self.within(address)
        path = tree.form.index[inner][0] if inner else ()
        return frozenset((prefix + ".".join(path[:i])).rstrip(".") for i in range(len(path) + 1))

    def known_in(self, edit: Edit, name: str) -> frozenset[str]:
        """The Chains in which a name is bound: the site's own, and those it is exported to."""
        at, _, _ = self.chain(edit.address)
        if not edit.export:
            return frozenset((at,))
        prefix, tree, inner = self.within(edit.address)
        path = tree.form.index[inner][0]
        chains: list[Chain] = [tree]
        for part in path:
            chains.append(cast("Chain", chains[-1].module_at(part)))
        known: set[str] = set()
        for i in range(len(path), -1, -1):
            known.add((prefix + ".".join(path[:i])).rstrip("."))
            if name in chains[i].interface.keeps:
                break
        return frozenset(known)

    def inside(self, address: str) -> frozenset[str]:
        """The sites that go when what stands at a site is replaced, without the site itself."""
        if address not in self._inside:
            at, chain, name = self.chain(address)
            prefix = f"{at}." if at else ""
            found: set[str] = set()
            site = next(s for s in walk(chain.program) if isinstance(s, Site) and s.name == name)
            for step in walk(site.step):
                if isinstance(step, Site):
                    found.add(prefix + step.name)
                module = chain.module_at(step.name) if isinstance(step, Ref) else None
                if isinstance(module, Chain):
                    found |= {f"{prefix}{step.name}.{inner}" for inner in module.form.index}
            self._inside[address] = frozenset(found)
        return self._inside[address]


def needs(edit: Edit) -> set[str]:
    """The names an edit's step needs of whoever is around it."""
    asked: set[str] = set()
    bound: set[str] = set()
    for step in walk(edit.step):
        if isinstance(step, Use):
            asked.update(step.names)
        elif isinstance(step, Let):
            bound.update(step.names)
        elif isinstance(step, nn.Module):
            asked.update(of_module(step).needs)
        elif not isinstance(step, Combinator | Labelled) and callable(step):
            asked.update(of_function(step).needs)
    return asked - bound
