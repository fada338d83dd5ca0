"""Modules of adapters on some rows of a batch: the other rows never meet them.

Rows are chosen and put back, never multiplied by nought, so what is no number stays in its row.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from inarch.errors import InarchError
from inarch.tree.signature import of_module


class RowEdge(nn.Module):
    """A module of an adapter, and the rows of a batch that it is for.

    Args:
        edge: makes of each row what it makes of that row alone.
        rows: their numbers, ascending.
        count: of rows in a batch.
    """

    index: Tensor

    def __init__(self, edge: nn.Module, rows: Iterable[int], count: int) -> None:
        super().__init__()
        self.edge = edge
        self.rows = tuple(rows)
        self.count = count
        place = next(iter((*edge.parameters(), *edge.buffers())), torch.empty(0)).device
        self.register_buffer("index", torch.tensor(self.rows, device=place), persistent=False)

    @property
    def all(self) -> bool:
        """Whether no row is left out."""
        return len(self.rows) == self.count

    def batch(self, x: Tensor) -> Tensor:
        """`x` with all its rows: what is the same for every row, [1, ...], once for each.

        Raises:
            InarchError: IA513 for a batch of another size.
        """
        if x.shape[0] == self.count:
            return x
        if x.shape[0] != 1:
            raise other_batch(self.count, x.shape[0])
        return x.expand(self.count, *x.shape[1:])

    def own(self, x: Tensor) -> Tensor:
        """Its rows of a batch."""
        return x if self.all else x.index_select(0, self.index)

    def put(self, x: Tensor, own: Tensor) -> Tensor:
        """The batch `x` with its rows replaced."""
        return own if self.all else x.index_copy(0, self.index, own)

    def extra_repr(self) -> str:
        return f"rows {', '.join(map(str, self.rows))} of {self.count}"


class RowTerm(RowEdge):
    """For an `add` edit: a term in some rows of a sum."""

    def __init__(self, edge: nn.Module, rows: Iterable[int], count: int) -> None:
        super().__init__(edge, rows, count)
        self.adds = of_module(edge).plus  # read once: a compiler would go through the reading

    def forward(self, x: Tensor, *, plus: Tensor) -> Tensor:
        x, plus = self.batch(x), self.batch(plus)
        own, total = self.own(x), self.own(plus)
        return self.put(plus, self.edge(own, plus=total) if self.adds else total + self.edge(own))


class RowFactor(RowEdge):
    """For a `scale` edit: a factor in some rows, and one in the others."""

    def forward(self, x: Tensor) -> Tensor:
        factor: Tensor = self.edge(self.own(self.batch(x)))
        own = factor[(None,) * (x.dim() - factor.dim())]  # [1 or its rows, ...]
        ones = own.new_ones(self.count, *own.shape[1:])
        return self.put(ones, own.expand(len(self.rows), *own.shape[1:]))


class RowStep(RowEdge):
    """For a `before` or `after` edit: a step that some rows take."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(x)
        return self.put(x, self.edge(self.own(x)))


def has_rows(tree: nn.Module) -> bool:
    """Whether adapters of some rows stand in a tree."""
    return any(isinstance(module, RowEdge) for module in tree.modules())


def other_batch(count: int, found: int) -> InarchError:
    return InarchError(
        "IA513",
        f"this model is for batches of {count} rows, and {found} came in",
        why="each row was told its own adapters",
        remedy="give as many rows, or make another: model.rows([...])",
    )
