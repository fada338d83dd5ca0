"""LoRAs of different rows of one batch: two batched products, whoever is in which row.

What the two are depends on the layer: of a linear layer see `LinearRows`, of a convolution
`conv_rows`, of an embedding `embedding_rows`.

The matrices of each row's adapters are laid out once, filled up with noughts to the largest rank:
a slot for each row, or for several with the same adapters. A row meets its slot's matrices and no
others, so nothing of another's reaches it; a row without any isn't touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inarch.adapters.row_edges import RowTerm
from inarch.tree.joint import writable
from inarch_lora.edges.joint import Source, copyable, gathering, renewed, target

if TYPE_CHECKING:
    from inarch_lora.edges.lora import LoRAEdge

_Set = tuple["LoRAEdge", ...]


class RowLoRA(RowTerm):
    """A LoRA on some rows, computed with those of others beside the layer."""

    edge: LoRAEdge
    joins = "rows"

    @classmethod
    def joined(cls, modules: Sequence[RowLoRA], onto: nn.Module | None) -> JointRows:
        return JointRows(modules, onto)

    def __init__(self, edge: LoRAEdge, rows: Sequence[int], count: int) -> None:
        super().__init__(edge, rows, count)
        self.__dict__["apart"] = JointRows([self], None)

    def forward(self, x: Tensor, *, plus: Tensor) -> Tensor:
        return self.__dict__["apart"](x, plus=plus)


@dataclass(frozen=True, slots=True, eq=False)
class RowBank:
    """Matrices by slot, and where each row is.

    Attributes:
        source: what it was made of.
        form: one of its terms, which says how all of them run.
        matrices: [slots, rank, inputs, ...] and [slots, rank, outputs], the second with the ratio
            of each strength to the largest in it; None where nothing acts in any row.
        strength: the largest.
        order: the row in each place of each slot; None where the rows are the places.
        places: the place of each row that has adapters, in the order of `rows`.
        rows: those that have adapters; None where all have.
    """

    source: Source
    form: Any
    matrices: tuple[Tensor, Tensor] | None = None
    strength: float = 0.0
    order: Tensor | None = None
    places: Tensor | None = None
    rows: Tensor | None = None

    @staticmethod
    def ordered(slots: Sequence[Sequence[int]]) -> list[int]:
        """The row in each place, from the rows of each slot: a slot's places side by side."""
        return [row for rows in slots for row in rows]

    def add(self, x: Tensor, plus: Tensor, matrices: tuple[Tensor, Tensor], write: bool) -> Tensor:
        """`plus` [batch, ...], every row with its terms of the row of `x` [batch, ...].

        Args:
            write: whether `plus` may be written into.
        """
        raise NotImplementedError

    def placed(self, x: Tensor) -> Tensor:
        """The row of each place."""
        return x if self.order is None else x.index_select(0, self.order)

    def target(self, total: Tensor, z: Tensor, second: Tensor, write: bool) -> Tensor | None:
        """Where the sum goes: rows that were gathered into their places are a copy already."""
        copied = self.order is not None and not (total.requires_grad or z.requires_grad)
        return target(total, z, second, write or copied)

    def put(self, plus: Tensor, total: Tensor, write: bool) -> Tensor:
        """The batch, with what its places hold now."""
        if self.places is not None:
            total = total.index_select(0, self.places)
        if self.rows is None:
            return total
        copy = plus.index_copy_ if write and total.dtype == plus.dtype else plus.index_copy
        return copy(0, self.rows, total)


class LinearRows(RowBank):
    """Of linear layers: a slot's places and their times are what its matrices are multiplied by."""

    __slots__ = ()

    def add(self, x: Tensor, plus: Tensor, matrices: tuple[Tensor, Tensor], write: bool) -> Tensor:
        first, second = matrices
        slots, shape = first.shape[0], plus.shape
        x, plus = (value.reshape(len(value), -1, value.shape[-1]) for value in (x, plus))
        total = self.placed(plus)
        z = torch.bmm(self.placed(x).reshape(slots, -1, x.shape[2]), first.transpose(1, 2))
        placed = total.reshape(slots, -1, plus.shape[2])
        out = self.target(placed, z, second, write)
        total = torch.baddbmm(placed, z, second, alpha=self.strength, out=out).view(total.shape)
        return self.put(plus, total, write).view(shape)


class JointRows:
    """Computes the terms of several adapters on their rows together.

    Where something depends on each term by itself every adapter runs on its own rows, one after
    another: see `JointLoRA`.
    """

    def __init__(self, modules: Sequence[RowLoRA], onto: nn.Module | None) -> None:
        self.modules = tuple(modules)
        self.onto = onto
        self.bank: RowBank | None = None

    def __call__(self, x: Tensor, *, plus: Tensor) -> Tensor:
        given = plus
        x, plus = self.modules[0].batch(x), self.modules[0].batch(plus)
        if torch.compiler.is_compiling() or plus.numel() == 0:
            return self._in_turn(x, plus)
        bank = self.bank
        if bank is None or torch.is_grad_enabled() or gathering() or not bank.source.stands():
            terms = [module.edge for module in self.modules]
            bank = self.bank = renewed(self.bank, terms, self._laid_out)
        if bank is None:
            return self._in_turn(x, plus)
        if bank.matrices is None:
            return plus
        write = plus is given and writable(plus, self.onto, x)
        return bank.add(x, plus, bank.matrices, write)

    def _in_turn(self, x: Tensor, plus: Tensor) -> Tensor:
        for module in self.modules:
            plus = RowTerm.forward(module, x, plus=plus)
        return plus

    @torch.inference_mode(False)
    @torch.no_grad()
    def _laid_out(self) -> RowBank | None:
        """A bank of the terms; None where what it would be made of can change unseen."""
        terms = [module.edge for module in self.modules]
        if not copyable([value for term in terms for value in term.pair()], terms):
            return None
        strengths = {term: term.whole_strength() for term in terms}
        holders, source, kind = self._holders(strengths), Source(terms), terms[0].row_bank
        if not holders:
            return kind(source, terms[0])
        most = max((strengths[term] for has in holders for term in has), key=abs)
        slots = list(_slots(holders))
        rank = max(sum(len(term.pair()[0]) for term in has) for has in holders)
        a, b = terms[0].pair()
        first = a.new_zeros(len(slots), rank, *a.shape[1:])
        second = b.new_zeros(len(slots), rank, b.shape[0])
        for number, (has, _) in enumerate(slots):
            start = 0
            for term in has:
                a, b = term.pair()
                end = start + len(a)
                first[number, start:end] = a
                second[number, start:end] = b.flatten(1).t() * (strengths[term] / most)
                start = end
        order = kind.ordered([rows for _, rows in slots])
        place = {row: order.index(row) for row in sorted(set(order))}
        count, device = self.modules[0].count, a.device
        same = order == list(range(count))
        return kind(
            source,
            terms[0],
            (first, second),
            most,
            None if same else torch.tensor(order, device=device),
            None if same else torch.tensor(list(place.values()), device=device),
            None if len(place) == count else torch.tensor(list(place), device=device),
        )

    def _holders(self, strengths: dict[LoRAEdge, float]) -> dict[_Set, list[int]]:
        """The rows of each set of adapters; what acts with no strength is in none."""
        sets: dict[int, list[LoRAEdge]] = {}
        for module in self.modules:
            for row in module.rows if strengths[module.edge] != 0 else ():
                sets.setdefault(row, []).append(module.edge)
        holders: dict[_Set, list[int]] = {}
        for row in sorted(sets):
            holders.setdefault(tuple(sets[row]), []).append(row)
        return holders


def _slots(holders: dict[_Set, list[int]]) -> Iterator[tuple[_Set, list[int]]]:
    """Each set with equally many rows at a time, the last of which is repeated where some lack.

    With the mean number of rows a slot, there are at most twice as many slots as sets, and at most
    about twice as many places as rows.
    """
    size = math.ceil(sum(map(len, holders.values())) / len(holders))
    for has, rows in holders.items():
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            yield has, some + some[-1:] * (size - len(some))
