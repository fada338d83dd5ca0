"""A tree as lines for a picture: what stands where, what each adapter did there, equal ones folded.

The lines are those of `inarch.tree.draw`, with addresses, roles and sizes beside them, so a picture
and the printed tree can't disagree.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping

import msgspec
from torch import nn

from inarch.adapters import Model
from inarch.tree import Chain
from inarch.tree.address import compiled
from inarch.tree.draw import Node, chain_node
from inarch_view.sources import Sources


class Mark(msgspec.Struct, frozen=True):
    """What one adapter did at a site: `add`, `scale`, ..., or `read`."""

    adapter: str
    kind: str
    text: str = ""


class Line(msgspec.Struct, omit_defaults=True):
    """One line of the picture.

    Attributes:
        label: what is printed before the text.
        text: what stands there.
        name: of a site, its name within the Chain around, of which its address is made.
        folded: of equal siblings folded into this line, the names of all.
        roles: the roles the model gives the site.
        marks: what adapters did at this site.
        by: the adapter that put this line there.
        needs: the named values it asks for.
        names: the named values it binds.
        parameters: in it and below.
        bytes: of those.
        source: the number of its sources in `Sources`; -1 where it is no Chain.
        below: the lines under it.
    """

    label: str
    text: str
    name: str = ""
    folded: list[str] = []
    roles: list[str] = []
    marks: list[Mark] = []
    by: str = ""
    needs: list[str] = []
    names: list[str] = []
    parameters: int = 0
    bytes: int = 0
    source: int = -1
    below: list[Line] = []


class Outline:
    """The lines of one tree.

    Args:
        tree: as it is now.
        before: the tree without adapters; None for one that an adapter brought.
        roles: by address, without the tree's name.
        reads: adapters by the address they read, without the tree's name.
        sources: where the sources of its Chains are kept.
    """

    def __init__(
        self,
        tree: Chain,
        before: Chain | None,
        roles: Mapping[str, list[str]],
        reads: Mapping[str, list[str]],
        sources: Sources,
    ) -> None:
        self.roles, self.reads, self.sources = roles, reads, sources
        self.registered = {id(module): name for name, module in tree.named_modules()}
        self.before = {} if before is None else dict(before.named_modules(remove_duplicate=False))
        self.root = self._line(chain_node("", tree), "")[0]

    def _line(self, node: Node, around: str) -> tuple[Line, Hashable]:
        """The line of a node, and what must be equal for two siblings to fold.

        Args:
            node: of the drawing.
            around: the address of the Chain around.
        """
        address = _joined(around, node.site) if node.site else ""
        if not address and node.module is not None:
            address = self.registered[id(node.module)]
        inside = address if isinstance(node.module, Chain) else around
        below = list(_folded(self._line(child, inside) for child in node.below))
        parameters, size = _size(node.module)
        line = Line(
            label=node.label,
            text=node.text,
            name=node.site or ("" if node.module is None else _last(address, around)),
            roles=list(self.roles.get(address, ())) if node.site else [],
            marks=list(self._marks(node, address)),
            by="" if node.graft is None else node.graft[1],
            needs=list(node.needs),
            names=list(node.names),
            parameters=parameters,
            bytes=size,
            source=self._source(node.module, address),
            below=[one for one, _ in below],
        )
        facts = (*line.roles, None, *line.marks, None, *line.needs, None, *line.names)
        inner = tuple((one.label, one.name, *one.folded, key) for one, key in below)
        return line, (line.text, line.by, facts, parameters, size, line.source, inner)

    def _marks(self, node: Node, address: str) -> Iterator[Mark]:
        for child in node.below:
            if child.graft is not None and child.graft[0] != "provide":
                yield Mark(child.graft[1], child.graft[0], child.line)
        if node.graft is not None and node.graft[0] in ("wrap", "replace", "provide"):
            yield Mark(node.graft[1], node.graft[0], node.line)
        if node.site:
            yield from (Mark(adapter, "read") for adapter in self.reads.get(address, ()))

    def _source(self, module: nn.Module | None, address: str) -> int:
        if not isinstance(module, Chain):
            return -1
        old = self.before.get(address)
        return self.sources.number(old.source if isinstance(old, Chain) else "", module.source)


def outlines(model: Model) -> tuple[dict[str, Line], Sources]:
    """The lines of each tree of a model, and the sources of all its Chains."""
    roles, reads, sources = roles_of(model), reads_of(model), Sources()
    lines = {
        name: Outline(
            tree, model.pristine.get(name), _within(roles, name), _within(reads, name), sources
        ).root
        for name, tree in model.trees.items()
    }
    return lines, sources


def roles_of(model: Model) -> dict[str, list[str]]:
    """The roles of every site that has one, by its full address."""
    found: dict[str, list[str]] = {}
    for role, pattern in model.roles.items():
        match = compiled(pattern).fullmatch
        for address in model.sites.all:
            if match(address):
                found.setdefault(address, []).append(role)
    return found


def reads_of(model: Model) -> dict[str, list[str]]:
    """The adapters that read at a site, by its full address; a weight's site is its module."""
    found: dict[str, list[str]] = {}
    for member in model.adapters:
        for read in dict.fromkeys(r for edit in member.edits for r in edit.reads):
            match = compiled(read).fullmatch
            for address in model.sites.all:
                if match(address) or match(f"{address}.weight"):
                    found.setdefault(address, []).append(member.name)
    return found


def _within(table: Mapping[str, list[str]], tree: str) -> dict[str, list[str]]:
    """The part of a table by address that is about one tree, without the tree's name."""
    prefix = f"{tree}." if tree else ""
    return {a.removeprefix(prefix): v for a, v in table.items() if a.startswith(prefix)}


def _folded(lines: Iterable[tuple[Line, Hashable]]) -> Iterator[tuple[Line, Hashable]]:
    """Runs of equal numbered siblings as one line, which knows the names of all."""
    run: list[tuple[Line, Hashable]] = []
    for line, key in lines:
        if run and line.label.isdigit() and run[0][0].label.isdigit() and key == run[0][1]:
            run.append((line, key))
            continue
        yield from _closed(run)
        run = [(line, key)]
    yield from _closed(run)


def _closed(run: list[tuple[Line, Hashable]]) -> Iterator[tuple[Line, Hashable]]:
    if len(run) > 1:
        run[0][0].folded = [line.name for line, _ in run]
    yield from run[:1]


def _size(module: nn.Module | None) -> tuple[int, int]:
    """Parameters and their bytes, in a module and below."""
    parameters = [] if module is None else list(module.parameters())
    return (
        sum(p.numel() for p in parameters),
        sum(p.numel() * p.element_size() for p in parameters),
    )


def _joined(around: str, name: str) -> str:
    return f"{around}.{name}" if around else name


def _last(address: str, around: str) -> str:
    return address.removeprefix(f"{around}.") if around else address
