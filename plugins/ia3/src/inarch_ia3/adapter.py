"""(IA)^3 as an adapter: a factor at each target, from options or from a PEFT folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from inarch.adapters import Adapter, SiteView, TargetSite
from inarch.errors import InarchError
from inarch.nn import TransposedLinear
from inarch.tree import Edit
from inarch.weights import WeightsHeader
from inarch.weights.peft import targeted, write_folder
from inarch_ia3 import peft_format
from inarch_ia3.edges import InputFactor, OutputFactor, edge_for


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("ia3", ...)` takes for an adapter that is to be trained.

    Attributes:
        targets: roles or address patterns of layers.
        feedforward: those of the targets that are scaled at their input; None is the role
            `mlp.down`, where the model has it.
    """

    targets: tuple[str, ...] = ("attention.key", "attention.value", "mlp.down")
    feedforward: tuple[str, ...] | None = None


class IA3(Adapter):
    """Factors of what comes out of layers, and of what goes into feed-forward layers."""

    Options = Options
    options: Options
    for_training = Options.__struct_fields__
    by_header = True

    def __init__(self, name: str, options: Options) -> None:
        super().__init__(name, options)
        self.layers: dict[str, type[nn.Module]] = {}

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        self.layers = {a: type(s.module) for a, s in sites.all.items() if s.module is not None}
        return list(self._fresh(sites) if weights is None else self._from_file(sites, weights))

    def _fresh(self, sites: SiteView) -> Iterable[Edit]:
        chosen = self.options.feedforward
        if chosen is None:
            chosen = ("mlp.down",) if "mlp.down" in sites.roles else ()
        inputs = {site.address for site in sites.find(chosen)}
        targets = sites.find(self.options.targets)
        stray = inputs - {site.address for site in targets}
        if stray and self.options.feedforward is not None:
            raise InarchError(
                "IA401",
                "a feed-forward layer is not among the targets",
                where=f"adapter `{self.name}`: {min(stray)}",
                why=f"the targets are: {', '.join(self.options.targets)}",
                remedy="name it in `targets` too",
            )
        for site in targets:
            yield self._edit(site, feedforward=site.address in inputs)

    def _edit(
        self, site: TargetSite, *, feedforward: bool, fills: Mapping[str, str] | None = None
    ) -> Edit:
        edge = edge_for(site.module, site.address, feedforward=feedforward)
        make = Edit.before if feedforward else Edit.scale
        return make(site.address, edge, self.name, fills=fills or {})

    def _from_file(self, sites: SiteView, weights: WeightsHeader) -> Iterable[Edit]:
        settings, where = weights.settings, str(weights.path)
        peft_format.refuse_unsupported(settings, where)
        found = peft_format.addresses_of(weights.keys(), where)
        self._check_targets(found, settings, where)
        for address, key in found.items():
            site = sites.all.get(address)
            if site is None or site.module is None:
                raise InarchError(
                    "IA431",
                    f"the model has no layer `{address}`",
                    where=f"{where}: {key}",
                    why="the adapter was trained on a model that has it",
                    remedy="load the base it was trained on",
                )
            feedforward = peft_format.is_feedforward(settings, address)
            if feedforward is None:
                feedforward = self._by_shape(site, weights, key)
            yield self._edit(site, feedforward=feedforward, fills={"ia3_l": key})

    def _by_shape(self, site: TargetSite, weights: WeightsHeader, key: str) -> bool:
        """Whether a vector is of a layer's input, in a file that has no settings beside it."""
        shapes = [
            tuple(edge_for(site.module, site.address, feedforward=f).ia3_l.shape)
            for f in (False, True)
        ]
        if shapes[0] == shapes[1]:
            raise InarchError(
                "IA432",
                f"nothing says whether `{site.address}` is scaled at its input or its output",
                where=f"{weights.path}: {key}",
                why="no feedforward_modules stand beside the file, and both have this shape",
                remedy="put the adapter_config.json beside it that it was saved with",
            )
        return weights.shape(key) == shapes[1]

    def _check_targets(
        self, found: Mapping[str, str], settings: Mapping[str, Any], where: str
    ) -> None:
        """What the settings target and the file must be the same layers."""
        absent = [a for a in self.layers if a not in found and targeted(settings, a)]
        if absent:
            raise InarchError(
                "IA432",
                f"the settings target {len(absent)} layers that the file has nothing for",
                where=f"{where}: {absent[0]}",
                why=", ".join(absent[:4]) + (", ..." if len(absent) > 4 else ""),
                remedy="put the adapter_config.json beside it that it was saved with",
            )

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save as PEFT does; see `inarch_ia3.peft_format`."""
        outputs = [a for a, e in edges.items() if not isinstance(e, InputFactor)]
        inputs = [a for a, e in edges.items() if isinstance(e, InputFactor)]
        transposed = any(issubclass(self.layers[a], TransposedLinear) for a in edges)
        config = {
            "peft_type": "IA3",
            "task_type": None,
            "base_model_name_or_path": about.get("base", ""),
            "inference_mode": True,
            "fan_in_fan_out": transposed,
            "init_ia3_weights": True,
            **peft_format.named(outputs, inputs, self.layers),
        }
        tensors = {
            peft_format.key_of(a): e.ia3_l for a, e in edges.items() if isinstance(e, OutputFactor)
        }
        write_folder(folder, config, tensors, about)
