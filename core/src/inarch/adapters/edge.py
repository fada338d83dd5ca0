"""Edge: a module that an adapter puts beside a site, with a strength the user sets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from inarch.adapters.placement import Placement, Split, Unplaceable
from inarch.adapters.row_edges import RowTerm
from inarch.tree.chain import HOOKS
from inarch.tree.twin import holding


def scalar(value: float, device: torch.device) -> Tensor:
    """A number as a 0-dim float32 tensor; on the meta device, where `full` is slow, any."""
    if device.type == "meta":
        return torch.empty((), dtype=torch.float32, device=device)
    return torch.full((), value, dtype=torch.float32, device=device)


def rescale(edges: Iterable[Edge], value: float) -> None:
    """Set the strength of an adapter's edges in place; every model that holds them follows."""
    strength, scales = float(value), dict[int, Tensor]()
    for edge in edges:
        edge.__dict__["strength"] = strength
        scale = edge._buffers["scale"]
        if scale is not None:
            scales[id(scale)] = scale
    for scale in scales.values():
        if not scale.is_meta:
            with torch.no_grad():
                scale.fill_(strength)


@runtime_checkable
class Settled(Protocol):
    """A module of an adapter that is told when its parameters are filled: see `Edge.settle`."""

    def settle(self, site: nn.Module | None, *, loaded: bool) -> None: ...


class Edge(nn.Module):
    """What an adapter's modules have in common: how strongly they act.

    Attributes:
        scale: the user's scale as a 0-dim float32 buffer, outside of the state dict. Compiled code
            multiplies by it, so that another scale recompiles nothing. One tensor serves all edges
            of an adapter.
        strength: the same as a Python float, which eager code folds into an operation it
            does anyway.
        from_file: names of other plain attributes that a file decides and compiled code doesn't
            read, so that `Model.swap` may set them. All others must be equal for a swap.
    """

    from_file: ClassVar[tuple[str, ...]] = ()
    rowwise: ClassVar[bool] = False
    """Whether it makes of each row of a batch what it makes of that row alone, so that it may run
    on some of them. It then takes one value, whose first dimension is the batch."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.strength = 1.0
        self.register_buffer("scale", torch.ones((), dtype=torch.float32), persistent=False)

    def twin(self) -> Self:
        """Another edge of the same form, whose parameters are this one's until they are filled.

        Building a module takes longer than all else that adapting a layer does, and an adapter
        builds the same in every block. For edges that hold no modules.
        """
        held = self.__dict__.copy()
        for name in HOOKS:
            held[name] = OrderedDict()
        for name in ("_parameters", "_buffers", "_modules"):
            held[name] = held[name].copy()
        return holding(type(self), held)

    def rescale(self, value: float) -> None:
        """Set the strength of this edge alone; every model that holds it follows."""
        self.strength = float(value)
        self._buffers["scale"] = scalar(value, self.scale.device)

    def numbers(self) -> Mapping[str, float]:
        """Its other 0-dim float32 buffers by their names, and what is to be in each.

        Asked before it is settled; a file that is swapped in is asked anew.
        """
        return {}

    def settle(self, site: nn.Module | None, *, loaded: bool) -> None:
        """Told, once its parameters are filled, of the base's module at the site.

        For what depends on the base's weights: they may be read and never changed.

        Args:
            site: the base's module; None where a function or combinator stands.
            loaded: whether the parameters came from a file.
        """

    def on_rows(self, rows: Iterable[int], count: int) -> nn.Module:
        """What adds its term to some rows of a batch; for edges that are `rowwise`.

        Overridden where the terms of several adapters in different rows can be computed at once.

        Args:
            rows: their numbers, ascending.
            count: of rows in the batch.
        """
        return RowTerm(self, rows, count)

    def reset_parameters(self) -> None:
        """Give fresh parameters the values an untrained adapter starts from: no effect at all."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it starts")

    def placements(self, split: Split) -> Mapping[str, Placement]:
        """How its own parameters and buffers lie where the site is split over processes.

        Those that are not named are whole; a child's have the child's name before theirs. What it
        adds must be a part as the site's is: of the outputs, or of a sum.

        Raises:
            Unplaceable: it can't stand there, and why.
        """
        if split.kind == "whole":
            return {}
        raise Unplaceable(f"{type(self).__name__} does not say how it lies over processes")

    def placed(self, split: Split, site: nn.Module | None) -> None:
        """Told, as a twin whose tensors are its part, of the part of the base's module.

        For what else depends on sizes. Saving asks again, with `whole`: the twin's tensors and
        the site's are whole then, but the site's weight has a shape and no values.
        """

    def delta(self) -> Tensor:
        """What merging adds to the site's weight at strength 1, float32, in the weight's layout."""
        raise NotImplementedError(f"{type(self).__name__} can't be merged")

    def deltas(self) -> dict[str, Tensor]:
        """What merging adds to the site's parameters, by their names, at the present strength.

        Overridden by edges that change more than the weight, or not in proportion to the strength.
        """
        delta = self.delta().float()
        return {"weight": delta if self.strength == 1.0 else delta * self.strength}

    def merge(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What merging makes of the site's parameters, at the present strength.

        Overridden by edges that don't add: a factor, for one.

        Args:
            parameters: by their names in the site's module, float32, with what was merged before.
        """
        changed = dict(parameters)
        for name, delta in self.deltas().items():
            changed[name] = parameters[name] + delta.to(parameters[name].device)
        return changed

    @property
    def mergeable(self) -> bool:
        """Whether it says in one of the three ways what merging makes of a site."""
        own = type(self)
        return any(
            getattr(own, how) is not getattr(Edge, how) for how in ("delta", "deltas", "merge")
        )
