"""Bottlenecks as an adapter: after the parts of a block or beside them, in AdapterHub's format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from torch import nn

from inarch.adapters import Adapter, SiteView
from inarch.errors import InarchError
from inarch.tree import Edit
from inarch.weights import WeightsHeader
from inarch.weights.peft import write_folder
from inarch_bottleneck import adapterhub, settings
from inarch_bottleneck.edges import BottleneckEdge, ParallelBottleneck, SequentialBottleneck


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("bottleneck", ...)` takes for an adapter that is to be trained.

    Attributes:
        kind: the published configuration that the others change.
        attention: whether attention has one; None is the kind's own.
        mlp: whether the feed-forward part has one; None is the kind's own.
        reduction: how many times narrower than the stream, or by the number of the block, with
            `default` for the rest; None is the kind's own.
        activation: None is the kind's own.
        scaling: a factor, or `learned` or `channel`; None is the kind's own.
        norm_before: begin with a layer norm.
        norm_after: end with a layer norm of what is added.
        dropout: the share of outputs dropped in training.
        leave_out: numbers of blocks that have none.
    """

    kind: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    attention: bool | None = None
    mlp: bool | None = None
    reduction: float | dict[str, float] | None = None
    activation: str | None = None
    scaling: float | Literal["learned", "channel"] | None = None
    norm_before: bool = False
    norm_after: bool = False
    dropout: float = 0.0
    leave_out: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        factors = self.reduction.values() if isinstance(self.reduction, dict) else [self.reduction]
        if any(factor is not None and not factor > 0 for factor in factors):
            raise ValueError("a reduction is above 0")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError("dropout is a share from 0 up to, not including, 1")

    def settings(self) -> dict[str, Any]:
        """The options in AdapterHub's words."""
        own: dict[str, Any] = {
            "mh_adapter": self.attention,
            "output_adapter": self.mlp,
            "reduction_factor": self.reduction,
            "non_linearity": None if self.activation is None else self.activation.lower(),
            "scaling": self.scaling,
        }
        return {
            **settings.DEFAULTS,
            **settings.PUBLISHED[self.kind],
            **{name: value for name, value in own.items() if value is not None},
            "ln_before": self.norm_before,
            "ln_after": self.norm_after,
            "dropout": self.dropout,
            "leave_out": list(self.leave_out),
        }


class Bottleneck(Adapter):
    """Small networks after the parts of a block, or beside them."""

    Options = Options
    options: Options
    for_training = Options.__struct_fields__
    by_header = True

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        blocks = [site.address for site in sites.find(["block"])]
        self.width = _width(sites)
        if weights is None:
            self.settings = self.options.settings()
            where = f"adapter `{self.name}`"
            settings.refuse_unsupported(self.settings, where)
            found: Mapping[tuple[str, str], Mapping[str, str]] = {}
        else:
            where = str(weights.path)
            self.settings = settings.read(weights.settings, where)
            norm = bool(self.settings["ln_before"])
            found = adapterhub.places(weights, blocks, norm)
            self._check(found, blocks, weights)
        self.places: dict[str, tuple[str, str]] = {}
        edits = [self._edit(sites, *place, found) for place in self._places(blocks, where)]
        if not edits:
            raise InarchError(
                "IA433",
                "no block has a bottleneck",
                where=where,
                why="neither attention nor the feed-forward part has one, or all are left out",
                remedy="set `attention` or `mlp`, and leave out fewer blocks",
            )
        return edits

    def _places(self, blocks: list[str], where: str) -> Iterator[tuple[str, str, int]]:
        """Each block and part that has a bottleneck, and how narrow it is."""
        left_out = self.settings["leave_out"] or ()
        for number, block in enumerate(blocks):
            for part, chosen in adapterhub.CHOSEN.items():
                if self.settings[chosen] and number not in left_out:
                    try:
                        yield block, part, settings.narrow(self.settings, number, self.width)
                    except (KeyError, TypeError, ValueError, ZeroDivisionError):
                        raise InarchError(
                            "IA435",
                            f"the reduction of block {number} can't be told",
                            where=f"{where}: reduction_factor",
                            why=f"it is {self.settings['reduction_factor']!r}",
                            remedy='give a number, or a table with a "default"',
                        ) from None

    def _edit(
        self,
        sites: SiteView,
        block: str,
        part: str,
        narrow: int,
        found: Mapping[tuple[str, str], Mapping[str, str]],
    ) -> Edit:
        role = settings.site_role(self.settings, part)
        inside = [s for s in sites.find([role]) if s.address.startswith(f"{block}.")]
        if len(inside) != 1:
            raise InarchError(
                "IA402",
                f"the block `{block}` has {len(inside)} sites of the role `{role}`",
                where=f"adapter `{self.name}`",
                remedy="name the roles of the model's blocks in its manifest",
            )
        shape = settings.shape_of(self.settings)
        address, fills = inside[0].address, dict(found.get((block, part), {}))
        self.places[address] = (block, part)
        if self.settings["is_parallel"]:
            edge = ParallelBottleneck(self.width, narrow, shape)
            return Edit.add(address, edge, self.name, fills=fills)
        edge = SequentialBottleneck(self.width, narrow, shape)
        return Edit.after(address, edge, self.name, fills=fills)

    def _check(
        self,
        found: Mapping[tuple[str, str], Mapping[str, str]],
        blocks: list[str],
        weights: WeightsHeader,
    ) -> None:
        """The settings and the file must have the same bottlenecks, equally narrow."""
        told = {(b, p): n for b, p, n in self._places(blocks, str(weights.path))}
        for place in sorted(told.keys() ^ found.keys()):
            block, part = place
            raise _denied(
                weights,
                next(iter(found[place].values())) if place in found else f"{block} ({part})",
                f"a bottleneck of `{block}` ({part}) that only "
                + ("the file has" if place in found else "the settings have"),
            )
        for place, narrow in told.items():
            key = found[place].get("down_weight", "")
            if key and weights.shape(key)[0] != narrow:
                raise _denied(
                    weights,
                    key,
                    f"how narrow it is: {weights.shape(key)[0]} in the file, {narrow} by the "
                    f"settings' reduction_factor = {self.settings['reduction_factor']}",
                )

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save as the adapters library does; see `inarch_bottleneck.adapterhub`."""
        tensors: dict[str, Any] = {}
        for address, edge in edges.items():
            if isinstance(edge, BottleneckEdge):
                own = dict(edge.named_parameters())
                tensors |= adapterhub.tensors(*self.places[address], self.name, own)
        config = adapterhub.config(self.name, self.width, self.settings, about)
        write_folder(folder, config, tensors, about, name=adapterhub.FILE)


def _width(sites: SiteView) -> int:
    """The width of the stream, which the norms before attention have."""
    norms = sites.find(["norm.attention"], modules=True)
    widths = {
        parameter.shape[-1]
        for site in norms
        if site.module
        for parameter in site.module.parameters()
    }
    if len(widths) != 1:
        raise InarchError(
            "IA402",
            "the width of this model's stream can't be told",
            where=norms[0].address,
            why=f"the norms before attention are {sorted(widths) or 'without weights'}",
            remedy="use another adapter, such as lora",
        )
    return widths.pop()


def _denied(weights: WeightsHeader, at: str, what: str) -> InarchError:
    return InarchError(
        "IA435",
        "the file and its settings disagree on a bottleneck",
        where=f"{weights.path}: {at}",
        why=what,
        remedy="put the adapter_config.json beside it that it was saved with",
    )
