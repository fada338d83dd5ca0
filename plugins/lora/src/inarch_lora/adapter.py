"""LoRA as an adapter: one `add` at each target, from options or from a PEFT folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import nn

from inarch.adapters import Adapter, SiteView, TargetSite
from inarch.errors import InarchError
from inarch.tree import Edit
from inarch.weights import WeightsHeader
from inarch_lora import peft_format
from inarch_lora.edges import BiasEdge, LoRAEdge, edge_for


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("lora", ...)` takes for an adapter that is to be trained.

    Attributes:
        targets: roles (`attention.*`) or address patterns.
        rank: of the product.
        alpha: the term is scaled by alpha / rank; None is the rank, so by 1.
        dropout: the share of the term's inputs dropped in training.
        rank_pattern: another rank for addresses that end so, as regular expressions.
        alpha_pattern: likewise another alpha.
        use_rslora: scale by alpha / sqrt(rank).
        bias: which of the base's biases are adapted with it, as PEFT has it.
        lora_bias: give B a bias.
    """

    targets: tuple[str, ...] = ("attention.*", "mlp.*")
    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    bias: Literal["none", "lora_only", "all"] = "none"
    lora_bias: bool = False

    def __post_init__(self) -> None:
        if min([self.rank, *self.rank_pattern.values()]) < 1:
            raise ValueError("a rank is at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError("dropout is a share from 0 up to, not including, 1")

    def settings(self) -> dict[str, Any]:
        """The options in PEFT's words."""
        return {
            "r": self.rank,
            "lora_alpha": self.rank if self.alpha is None else self.alpha,
            "lora_dropout": self.dropout,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "use_rslora": self.use_rslora,
            "bias": self.bias,
            "lora_bias": self.lora_bias,
        }


class LoRA(Adapter):
    """Low-rank adaptation of linear layers, embeddings and convolutions."""

    Options = Options
    options: Options

    def __init__(self, name: str, options: Options) -> None:
        super().__init__(name, options)
        self.settings = options.settings()
        self.targets: list[str] = []

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        found = self._fresh(sites) if weights is None else self._from_file(sites, weights)
        edits = list(found)
        terms = [e.address for e in edits if isinstance(e.step, LoRAEdge)]
        self.targets = _short_targets(terms, sites)
        return edits

    def _fresh(self, sites: SiteView) -> Iterable[Edit]:
        options = self.options
        targets = sites.find(options.targets, modules=True)
        for site in targets:
            module = _module(site)
            rank = int(peft_format.pattern_value(options.rank_pattern, site.address, options.rank))
            settings = self.settings | {"lora_alpha": options.alpha or rank}
            biased = options.bias != "none" and _has_bias(module)
            edge = self._edge(site, rank, settings, options.lora_bias, biased)
            yield Edit.add(site.address, edge, self.name)
        if options.bias == "all":
            taken = {site.address for site in targets}
            for site in sites.all.values():
                if site.address not in taken and _has_bias(site.module):
                    edge = BiasEdge(len(_module(site).get_parameter("bias")))
                    yield Edit.add(site.address, edge, self.name)

    def _from_file(self, sites: SiteView, weights: WeightsHeader) -> Iterable[Edit]:
        settings, where = weights.settings, str(weights.path)
        peft_format.refuse_unsupported(settings, where)
        self.settings = {**self.settings, **_kept(settings)}
        found = peft_format.parse_keys(weights.keys(), where)
        self._check_targets(found, sites, settings, where)
        for address, keys in found.items():
            site = sites.all.get(address)
            if site is None or site.module is None:
                raise InarchError(
                    "IA425",
                    f"the model has no layer `{address}`",
                    where=f"{where}: {next(iter(keys.values()))}",
                    why="the adapter was trained on a model that has it",
                    remedy="load the base it was trained on",
                )
            if set(keys) == {"bias"}:
                edge: LoRAEdge | BiasEdge = BiasEdge(weights.shape(keys["bias"])[0])
            else:
                rank = self._rank(address, keys, weights)
                edge = self._edge(site, rank, settings, "lora_B_bias" in keys, "bias" in keys)
            yield Edit.add(address, edge, self.name, fills=dict(keys))

    def _edge(
        self,
        site: TargetSite,
        rank: int,
        settings: Mapping[str, Any],
        lora_bias: bool,
        bias: bool,
    ) -> LoRAEdge:
        factor = peft_format.scaling(settings, site.address, rank)
        dropout = float(settings.get("lora_dropout") or 0.0)
        module = _module(site)
        options = {"dropout": dropout, "lora_bias": lora_bias, "bias": bias}
        return edge_for(module, site.address, rank, factor, **options)

    def _rank(self, address: str, keys: Mapping[str, str], weights: WeightsHeader) -> int:
        """The rank of a module: the file's, with which the settings must agree."""
        key = keys.get("lora_A", keys.get("lora_embedding_A"))
        if key is None:
            raise InarchError(
                "IA426",
                f"the file has half of the LoRA of `{address}`",
                where=f"{weights.path}: {next(iter(keys.values()))}",
                why="there is no A for it",
                remedy="save the adapter again",
            )
        rank = weights.shape(key)[0]
        settings = weights.settings
        told = peft_format.pattern_value(
            settings.get("rank_pattern") or {}, address, settings.get("r", rank)
        )
        if told != rank:
            raise InarchError(
                "IA426",
                f"the file and its settings disagree on the rank of `{address}`",
                where=f"{weights.path}: {key}",
                why=f"the tensor has rank {rank}, adapter_config.json says {told}",
                remedy="put the adapter_config.json beside it that it was saved with",
            )
        return rank

    def _check_targets(
        self, found: Mapping[str, Any], sites: SiteView, settings: Mapping[str, Any], where: str
    ) -> None:
        """What the settings target and the file must be the same modules."""
        if not settings.get("target_modules") or settings["target_modules"] == "all-linear":
            return
        layers = {
            a
            for a, site in sites.all.items()
            if isinstance(site.module, nn.Module) and peft_format.targeted(settings, a)
        }
        terms = {address for address, keys in found.items() if set(keys) != {"bias"}}
        absent = sorted(layers - terms)
        if absent:
            raise InarchError(
                "IA426",
                f"the settings target {len(absent)} layers that the file has nothing for",
                where=f"{where}: {absent[0]}",
                why=", ".join(absent[:4]) + (", ..." if len(absent) > 4 else ""),
                remedy="put the adapter_config.json beside it that it was saved with",
            )

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save as PEFT does; see `inarch_lora.peft_format`."""
        tensors: dict[str, torch.Tensor] = {}
        terms: dict[str, tuple[int, float]] = {}
        rooted = bool(self.settings.get("use_rslora"))
        for address, edge in edges.items():
            if not isinstance(edge, LoRAEdge | BiasEdge):
                continue
            for name, parameter in edge.named_parameters():
                base = edge.base()
                full = parameter
                if name == "bias" and base is not None:
                    full = parameter + base.get_parameter("bias")
                suffix = peft_format.SUFFIXES[name]
                if isinstance(edge, BiasEdge):
                    suffix = peft_format.BARE_BIAS
                tensors[f"{peft_format.PREFIX}{address}.{suffix}"] = full
            if isinstance(edge, LoRAEdge):
                root = math.sqrt(edge.rank) if rooted else edge.rank
                terms[address] = (edge.rank, _whole(edge.scaling * root))
        settings = {
            "target_modules": self.targets,
            "lora_dropout": self.settings.get("lora_dropout", 0.0),
            "bias": self.settings.get("bias", "none"),
            "use_rslora": rooted,
            "lora_bias": bool(self.settings.get("lora_bias")),
            "fan_in_fan_out": any(type(e).__name__ == "TransposedLoRA" for e in edges.values()),
        }
        peft_format.write(folder, tensors, terms, settings, about)


def _module(site: TargetSite) -> nn.Module:
    if site.module is None:
        raise InarchError("IA421", "LoRA adapts layers, and here is none", where=site.address)
    return site.module


def _has_bias(module: nn.Module | None) -> bool:
    return isinstance(getattr(module, "bias", None), nn.Parameter)


def _kept(settings: Mapping[str, Any]) -> dict[str, Any]:
    names = ("lora_dropout", "bias", "use_rslora", "lora_bias")
    return {name: settings[name] for name in names if settings.get(name) is not None}


def _whole(value: float) -> float:
    """An alpha without the rounding that dividing by a root left."""
    near = round(value, 6)
    return int(near) if near == int(near) else near


def _short_targets(terms: list[str], sites: SiteView) -> list[str]:
    """The last names of the targets where these single out the very same layers, else addresses."""
    names = sorted({address.rpartition(".")[2] for address in terms})
    same = {
        a
        for a, s in sites.all.items()
        if s.module is not None and any(a == n or a.endswith(f".{n}") for n in names)
    }
    return names if same == set(terms) else sorted(terms)
