"""Which layers of a model are split over processes: a table of roles, the same for every model.

A region is a Chain of which some layers take whole inputs and are split by columns, and one adds
up what comes of the parts. Between them every process has its own heads, or its own features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from inarch.errors import InarchError
from inarch.nn import TransposedLinear
from inarch.nn.pieces import pieces_of
from inarch.tree import Chain
from inarch.tree.signature import Call
from inarch.tree.steps import Combinator, Let, Ref, Residual, Seq, Site, Step, Use, walk

if TYPE_CHECKING:
    from inarch.adapters import Model

COLUMNS = ("attention.query", "attention.key", "attention.value", "mlp.gate", "mlp.up")
"""Roles of layers whose outputs are split. A longer role may end so: `text.attention.query`."""

ROWS = ("attention.output", "mlp.down")
"""Roles of layers whose inputs are split, and whose outputs are added up."""


@dataclass(frozen=True, slots=True)
class Region:
    """One Chain of which the layers are split.

    Attributes:
        tree: the name of its tree.
        chain: its address there.
        columns, rows: the names of its layers, within it.
        at_start: whether nothing but layers split by columns takes the Chain's input.
        pieces: of how many the outputs of `columns` are made, each of which is cut.
    """

    tree: str
    chain: str
    columns: tuple[str, ...]
    rows: str
    at_start: bool
    pieces: int


def regions_of(model: Model, parts: int) -> list[Region]:
    """The regions that can be split over so many processes.

    Feed-forward parts of another form stay whole, and so do regions whose heads or features don't
    divide while those of others do: a UNet has more heads where it is narrow in pixels.

    Raises:
        InarchError: IA880 where the model has no region, or no heads or no features divide.
    """
    regions: list[Region] = []
    kept: dict[str, list[InarchError]] = {"heads": [], "features": []}
    divided: set[str] = set()
    for (tree, chain), names in _chains(model).items():
        found = list(_region(model.pristine[tree], tree, chain, names))
        headed = bool(_head_dim(model.pristine[tree].get_submodule(chain)))
        if not found and headed:
            raise _refused("heads that can't be shared out", f"those of `{chain}` can't")
        word = "heads" if headed else "features"
        for region, units in found:
            problem = _undivided(region, units, word, parts)
            if problem is None:
                regions.append(region)
                divided.add(word)
            else:
                kept[word].append(problem)
    for word, problems in kept.items():
        if problems and word not in divided:
            raise problems[0]
    if not regions:
        wanted = ", ".join((*COLUMNS, *ROWS))
        raise _refused("no layers that can be split", f"wanted are the roles {wanted}")
    return regions


def _refused(what: str, why: str) -> InarchError:
    return InarchError(
        "IA880",
        f"this model has {what} over processes",
        why=why,
        remedy='inarch.shard(model, "fsdp")',
    )


def _chains(model: Model) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
    """The layers to split by the Chain they stand in: those by columns, those by rows."""
    found: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for role in model.roles:
        by_rows = role.endswith(ROWS)
        if not by_rows and not role.endswith(COLUMNS):
            continue
        for site in model.sites.find([role]):
            tree = model.pristine[site.tree]
            inside = site.address.removeprefix(site.tree).removeprefix(".")
            path, name = tree.form.index[inside]
            names = found.setdefault((site.tree, ".".join(path)), ([], []))[by_rows]
            if name not in names:
                names.append(name)
    return found


def _region(
    tree: Chain, name: str, address: str, layers: tuple[list[str], list[str]]
) -> Iterator[tuple[Region, dict[str, int]]]:
    """The region, and how many heads or features each of its layers has."""
    columns, rows = layers
    chain = tree.get_submodule(address)
    if not isinstance(chain, Chain) or not address or len(rows) != 1 or not columns:
        return
    sizes = [_size(chain.module_at(n), 0) for n in columns] + [_size(chain.module_at(rows[0]), 1)]
    refs = {step.name for step in walk(chain.program) if isinstance(step, Ref)}
    if 0 in sizes or refs != {*columns, *rows}:
        return
    head, pieces = _head_dim(chain), _pieces(chain)
    wide = sizes[-1] * pieces
    if max(sizes) != wide or (head == 0 and set(sizes[:-1]) != {wide}):
        return
    units = {n: size // (head or 1) for n, size in zip((*columns, *rows), sizes, strict=True)}
    units = {n: size if n == rows[0] else size // pieces for n, size in units.items()}
    takers = list(_takers(chain.program))
    at_start = {t.name for t in takers if isinstance(t, Ref)} == set(columns)
    at_start = at_start and all(isinstance(taker, Ref) for taker in takers)
    yield Region(name, address, tuple(columns), rows[0], at_start, pieces), units


def _size(layer: nn.Module, side: int) -> int:
    """The outputs (0) or the inputs (1) of a linear layer; 0 for another."""
    if isinstance(layer, TransposedLinear):
        return layer.weight.shape[1 - side]
    return layer.weight.shape[side] if isinstance(layer, nn.Linear) else 0


def _head_dim(chain: nn.Module) -> int:
    """The width of a head where a function of the Chain splits what it is given; 0 for none."""
    if not isinstance(chain, Chain):
        return 0
    bound: list[Mapping[str, Any]] = [c.keywords for c in _calls(chain) if isinstance(c, partial)]
    widths = {given["head_dim"] for given in bound if "head_dim" in given}
    return widths.pop() if len(widths) == 1 else 0


def _pieces(chain: Chain) -> int:
    """Of how many pieces the functions of a Chain without heads take their values."""
    return 1 if _head_dim(chain) else max(map(pieces_of, _calls(chain)), default=1)


def _calls(chain: Chain) -> list[Any]:
    return [step.function for step in walk(chain.program) if isinstance(step, Call)]


def _undivided(
    region: Region, units: Mapping[str, int], word: str, parts: int
) -> InarchError | None:
    """What is wrong with the first layer whose heads or features can't be divided."""
    for layer, count in units.items():
        if count % parts:
            where = ".".join(part for part in (region.tree, region.chain, layer) if part)
            return InarchError(
                "IA880",
                f"the {count} {word} of `{where}` can't be divided by {parts} processes",
                where=where,
                why="each process has as many of them as every other",
                remedy="start a number of processes that divides them, or shard with fsdp",
            )
    return None


def _takers(step: Step) -> Iterator[Step]:
    """The steps that take the input of a program; a Residual stands for its own use of it."""
    if isinstance(step, Seq):
        for child in step.children:
            yield from _takers(child)
            if not isinstance(child, Let):
                return
    elif isinstance(step, Residual):
        yield step
    elif isinstance(step, (Site, Let)) or (isinstance(step, Combinator) and step.children):
        for child in step.children:
            yield from _takers(child)
    elif not isinstance(step, Use):
        yield step
