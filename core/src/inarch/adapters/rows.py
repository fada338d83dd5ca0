"""Models for batches in which each row has adapters of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from inarch.adapters.edge import Edge
from inarch.adapters.graft import by_tree
from inarch.adapters.member import Member
from inarch.adapters.packing import packed_trees
from inarch.adapters.row_edges import RowEdge, RowFactor, RowStep
from inarch.errors import InarchError
from inarch.tree import Edit
from inarch.tree.signature import of_module

if TYPE_CHECKING:
    from inarch.adapters.model import Model

Row = str | None | Sequence[str]
"""What one row of a batch has: an adapter's name, None for the base, or several names."""
Rows = tuple[tuple[str, ...], ...]
SomeModel = TypeVar("SomeModel", bound="Model")
_REMEDY = 'adapters=["a", None, ("a", "b")]'


def rows_of(model: Model, adapters: Sequence[Row], count: int | None = None) -> Rows:
    """The names of each row's adapters, in the model's order.

    Args:
        model: which must have all that are named.
        adapters: one entry a row.
        count: how many rows there are.

    Raises:
        InarchError: IA403 for an adapter that the model doesn't have, IA513 where the entries are
            not as many as rows, or can't be entries, or the model's weights hold an adapter.
    """
    if model.row_adapters is not None:
        raise of_rows()
    listed = _is_list(adapters)
    if not listed or (len(adapters) == 0 if count is None else len(adapters) != count):
        found = len(adapters) if listed else repr(adapters)
        many = "a batch" if count is None else f"{count} prompt{'' if count == 1 else 's'}"
        raise _refused(
            f"the adapters of {many} are one entry for each row, not {found}",
            "an entry is a name, None for the base, or several names",
            _REMEDY,
        )
    merged = [member.name for member in model.adapters if member.merged]
    if merged:
        raise _refused(
            f"the weights of this model hold the adapter `{merged[0]}` for every row",
            "it was merged, and rows share the weights",
            "ask the model that it was merged from",
        )
    return tuple(_row(model, entry, number) for number, entry in enumerate(adapters))


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _row(model: Model, entry: Row, number: int) -> tuple[str, ...]:
    names: tuple[Any, ...] = ()
    if entry is not None:
        names = tuple(entry) if _is_list(entry) else (entry,)
    why = ""
    if not all(isinstance(name, str) for name in names):
        why = "an entry is a name, None for the base, or several names"
    elif len({*names}) < len(names):
        why = "it names an adapter twice"
    if why:
        raise _refused(f"`{entry!r}` can't be what row {number} has", why, _REMEDY)
    for name in names:
        model.adapters[name]
    return tuple(name for name in model.order.names if name in names)


def of_rows() -> InarchError:
    return InarchError(
        "IA513",
        "a model of rows can't be adapted, merged or told its rows again",
        why="each of its rows has adapters of its own",
        remedy="begin with the model that rows was called on",
    )


def _refused(what: str, why: str, remedy: str) -> InarchError:
    return InarchError("IA513", what, where="adapters", why=why, remedy=remedy)


def obstacle(model: Model, rows: Rows) -> InarchError | None:
    """Why the adapters of these rows can't run in one batch; None where they can."""
    for name in dict.fromkeys(name for row in rows for name in row):
        member = model.adapters[name]
        why = next(_obstacles(member), "")
        if why:
            return InarchError(
                "IA514",
                f"the adapter `{name}` can't run on some rows of a batch",
                where="adapters",
                why=why,
                remedy="run its rows as a batch of their own, as model.generate does: "
                f'model.without(...) with "{name}" left in',
            )
    return None


def _obstacles(member: Member) -> Iterator[str]:
    if list(member.adapter.learned()):
        yield "it teaches the model words, and all rows share the embedding"
    for edit in member.edits:
        edge = edit.step
        if edit.kind not in ("add", "scale", "before", "after"):
            at = f" at {edit.address}" if edit.address else ""
            yield f"its {edit.kind}{at} changes what all rows share"
        elif not isinstance(edge, Edge) or not edge.rowwise or of_module(edge).needs:
            yield f"its {edit.kind} at {edit.address} isn't said to keep rows apart"


def in_rows(model: SomeModel, rows: Rows) -> SomeModel:
    """The model for batches of these rows.

    Raises:
        InarchError: IA514 for an adapter that can't run on some rows only.
    """
    problem = obstacle(model, rows)
    if problem is not None:
        raise problem
    holders = {
        name: [i for i, row in enumerate(rows) if name in row] for row in rows for name in row
    }
    edits = [
        replace(edit, step=_on_rows(edit, holders[name], len(rows)))
        for name in model.order.names
        if name in holders
        for edit in model.adapters[name].edits
    ]
    of_tree = by_tree(edits, model.pristine)
    trees = {name: tree.edit(of_tree[name]) for name, tree in model.pristine.items()}
    if model._packed:  # pyright: ignore[reportPrivateUsage]
        trees = packed_trees(trees, model.sites)
    twin = copy.copy(model)
    twin.trees, twin.row_adapters = trees, rows
    twin._made = {}  # pyright: ignore[reportPrivateUsage]
    twin.tokenizer = model.sites.tokenizers.get("", model.tokenizer)  # no row was taught words
    twin._grown = {}  # pyright: ignore[reportPrivateUsage]
    return twin


def _on_rows(edit: Edit, rows: Iterable[int], count: int) -> nn.Module:
    """The module of an edit, for some rows."""
    edge: Edge = edit.step
    if edit.kind == "add":
        return edge.on_rows(rows, count)
    kind: type[RowEdge] = RowFactor if edit.kind == "scale" else RowStep
    return kind(edge, rows, count)
