"""How tensors lie over processes that share a model: what an adapter says of its own.

Where a layer is split over processes, an adapter's modules beside it are split with it. The terms
are those of DTensor, less what no module here needs; nothing of `torch.distributed` is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Placement:
    """How one tensor lies.

    Attributes:
        kind: `shard` is cut along `dim`, a part for each process. The others are whole in every
            process: `whole` has whole gradients, `summed` has a part of the gradient in each
            process, whose sum is the gradient, and `first` has its values in the first process
            and zeros in the others, for what a sum over processes must hold once.
        dim: of `shard`.
        pieces: of `shard`: the dimension is so many equal pieces, each of which is cut; what
            stands beside a layer of pieces is cut as that is, and need not say so.
    """

    kind: Literal["whole", "summed", "shard", "first"]
    dim: int = 0
    pieces: int = 1


WHOLE = Placement("whole")
SUMMED = Placement("summed")
FIRST = Placement("first")


def shard(dim: int) -> Placement:
    """Cut along a dimension."""
    return Placement("shard", dim)


@dataclass(frozen=True, slots=True)
class Split:
    """How a site lies, and which part this process has.

    Attributes:
        kind: `columns` takes a whole input and gives its part of the outputs; `rows` takes its
            part of the inputs and gives a part of a sum, which is added up after all that stands
            at the site; `inside` stands between the two, where values are parts; `whole` is none
            of these.
        part: which.
        parts: of how many.
        pieces: of how many equal pieces the outputs of `columns` are made, each of which is cut.
        total: the sum of a tensor over the processes, which all of them ask for, with its gradient:
            for what depends on all parts, such as a norm.
        shared: the value as it is, whose gradient is the sum of what the processes make of it: for
            what is whole and comes from elsewhere to a module that has a part.
    """

    kind: Literal["whole", "columns", "rows", "inside"] = "whole"
    part: int = 0
    parts: int = 1
    pieces: int = 1
    total: Callable[[Tensor], Tensor] | None = None
    shared: Callable[[Tensor], Tensor] | None = None


class Unplaceable(Exception):
    """Why a module can't stand where a layer is split; its text is the reason."""


@runtime_checkable
class Placed(Protocol):
    """A module of an adapter that says how it lies: see `Edge.placements` and `Edge.placed`."""

    def placements(self, split: Split) -> Mapping[str, Placement]: ...

    def placed(self, split: Split, site: nn.Module | None) -> None: ...
