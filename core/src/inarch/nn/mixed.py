"""Generation for prompts that have adapters of their own: one batch, or one for each stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from inarch.adapters.model import Model
from inarch.adapters.rows import Row, obstacle, rows_of

SomeModel = TypeVar("SomeModel", bound=Model)
Step = list[int | None]


@dataclass(frozen=True, slots=True)
class Batch(Generic[SomeModel]):
    """Prompts that run together.

    Attributes:
        model: runs them.
        numbers: of the prompts, ascending.
        apart: whether each draws what it would draw alone.
    """

    model: SomeModel
    numbers: tuple[int, ...]
    apart: bool = True


def batches(
    model: SomeModel, adapters: Sequence[Row], count: int, *, compile: bool
) -> list[Batch[SomeModel]]:
    """As few batches as the adapters of some prompts allow.

    One, where every adapter can run on some rows only, and otherwise one for each stack. A compiled
    step is one of a stack too: it would be compiled anew for every other mixture.

    Raises:
        InarchError: IA403 and IA513, see `Model.rows`.
    """
    rows = rows_of(model, adapters, count)
    if not compile and len(set(rows)) > 1 and obstacle(model, rows) is None:
        return [Batch(model.rows(adapters), tuple(range(count)))]
    found: list[Batch[SomeModel]] = []
    for stack in dict.fromkeys(rows):
        others = [name for name in model.adapters.names if name not in stack]
        numbers = tuple(i for i, row in enumerate(rows) if row == stack)
        found.append(Batch(model.without(*others) if others else model, numbers))
    return found


def in_order(steps: Sequence[tuple[Sequence[int], Iterator[Step]]], count: int) -> Iterator[Step]:
    """The steps of several batches as those of one, until the last has ended.

    Args:
        steps: of each batch, with the numbers of its prompts.
        count: of prompts.
    """
    running = list(steps)
    while running:
        tokens: Step = [None] * count
        for numbers, batch in list(running):
            step = next(batch, None)
            if step is None:
                running.remove((numbers, batch))
                continue
            for number, token in zip(numbers, step, strict=True):
                tokens[number] = token
        if running:
            yield tokens
