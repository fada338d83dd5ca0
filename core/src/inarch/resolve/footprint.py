"""What an adapter's edits touch: addresses by kind, what it reads, the names it binds and asks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import cast

from torch import nn

from inarch.resolve.places import Numbered
from inarch.tree import Chain, Edit, Use
from inarch.tree.signature import of_function, of_module
from inarch.tree.steps import Combinator, Labelled, Let, Ref, Site, walk


@dataclass(frozen=True, slots=True)
class Footprint:
    """Where one adapter's edits stand. Two adapters of equal footprints meet others alike.

    All are sets of addresses, as the bits of `Grounds.sites`.

    Attributes:
        kinds: for each kind of edit but `provide`, where it is made.
        reads: what the edits were made from.
        over: what was read and all that is above it.
        binds: for each name that a `tap` or `provide` binds, the Chains it is known in.
        asks: for each name that steps need and don't bind, the Chains it is sought in.
        all: wherever an edit is made.
        kin: for each kind of edit and each kin, where such edits are.
    """

    kinds: Mapping[str, int]
    reads: int = 0
    over: int = 0
    binds: Mapping[str, int] = field(default_factory=dict[str, int])
    asks: Mapping[str, int] = field(default_factory=dict[str, int])
    all: int = 0
    kin: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])

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
    stood: dict[str, list[str]] = {}
    binds: dict[str, int] = {}
    asked: dict[str, int] = {}
    kin: dict[tuple[str, str], int] = {}
    read: list[str] = []
    sites = grounds.sites
    edits = tuple(edits)
    for edit in edits:
        try:
            stood[edit.kind].append(edit.address)
        except KeyError:
            stood[edit.kind] = [edit.address]
        if edit.reads:
            read += edit.reads
        if edit.names:
            for name in edit.names:
                binds[name] = binds.get(name, 0) | sites.mask(grounds.known_in(edit, name))
        if edit.kin:
            alike = (edit.kind, edit.kin)
            kin[alike] = kin.get(alike, 0) | sites[edit.address]
    kinds = {kind: sites.mask(where) for kind, where in stood.items() if kind != "provide"}
    for edit in edits if asks else ():
        for name in needs(edit):
            if name not in binds:
                asked[name] = asked.get(name, 0) | sites.mask(grounds.above(edit.address))
    over = reduce(or_, map(grounds.over, read), 0)
    return Footprint(
        kinds, sites.mask(read), over, binds, asked, reduce(or_, kinds.values(), 0), kin
    )


class Grounds:
    """The pristine trees, asked for what lies around a site.

    Args:
        trees: by name; a model of one tree calls it "".
        addresses: such as will be asked for, in the order in which they are to be told.

    Attributes:
        sites: the bit of each address.
    """

    def __init__(self, trees: Mapping[str, Chain], addresses: Iterable[str] = ()) -> None:
        self.trees = trees
        self.sites = Numbered(addresses)
        self._inside: dict[str, frozenset[str]] = {}
        self._over: dict[str, int] = {}
        self._under: dict[str, int] = {}
        self._around: dict[int, tuple[int, int]] = {}

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

    def over(self, read: str) -> int:
        """What is read and all above it, as a set."""
        if read not in self._over:
            self._over[read] = self.sites.mask(_upwards(read))
            for address in _upwards(read):
                self._under[address] = self._under.get(address, 0) | self.sites[read]
        return self._over[read]

    def around(self, sites: int) -> tuple[int, int]:
        """What is inside any of a set of sites, and what is above any of them, as sets."""
        if sites not in self._around:
            within = above = 0
            for site in self.sites.spelled(sites):
                within |= self.sites.mask(self.inside(site))
                above |= self.sites.mask(_upwards(site)[1:])
            self._around[sites] = within, above
        return self._around[sites]

    def touched(self, site: str) -> int:
        """What was read of a site, of what is inside it, or whole with the site in it, as a set."""
        found = self.sites.mask(_upwards(site))
        for address in (site, *self.inside(site)):
            found |= self._under.get(address, 0)
        return found


def _upwards(address: str) -> list[str]:
    """An address and those above it."""
    parts = address.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def needs(edit: Edit) -> Collection[str]:
    """The names an edit's step needs of whoever is around it."""
    if isinstance(edit.step, nn.Module):
        return of_module(edit.step).needs
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
