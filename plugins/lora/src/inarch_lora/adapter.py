"""LoRA and its relatives as an adapter: one `add` at each layer, from options or from a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from torch import nn

from inarch.adapters import Adapter, Part, SiteView
from inarch.errors import InarchError
from inarch.tree import Edit
from inarch.tree.address import compiled
from inarch.weights import WeightsHeader
from inarch_lora import writing
from inarch_lora.combining import summed
from inarch_lora.edges import Layers, LoRAEdge, beside, reads_weight
from inarch_lora.edges.twins import Twins
from inarch_lora.fresh import fresh_terms
from inarch_lora.options import FROM_FILE, Options
from inarch_lora.reading import Reading, layers_beyond, layers_without_term, read
from inarch_lora.room import roomy
from inarch_lora.terms import Term


class LoRA(Adapter):
    """Low-rank adaptation of linear layers, embeddings, convolutions and normalisations.

    Attributes:
        saved: what is kept of how it came, to save it so.
        discarded: of a sum with a given rank, by layer: the share of its squared singular values
            that the rank has no room for.
    """

    Options = Options
    options: Options
    for_training = frozenset(Options.__struct_fields__) - FROM_FILE
    by_header = True

    def __init__(self, name: str, options: Options) -> None:
        super().__init__(name, options)
        self.saved = writing.Saved()
        self.discarded: Mapping[str, float] = {}
        self._asked: Mapping[str, Any] = {}

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        layers = Layers(sites)
        if weights is None:
            form = self.options.format or writing.usual_format(self.options, sites)
            terms = tuple(fresh_terms(self.options, sites, layers, form))
            reading = Reading(form, terms, writing.settings_of(self.options))
        else:
            reading = read(weights, sites, self.options.alpha)
            _check_targets(reading, sites, str(weights.path))
        self.saved = writing.Saved.of(reading, sites, self.options.format)
        terms, twins = list(reading.terms), Twins(layers)
        _refuse_tied([term for term in terms if term.start], sites)
        if self.options.capacity is not None:
            terms = roomy(terms, self.options.capacity, self.options.covers, sites, self.name)
        for term in _scaled(terms, self.options.block_scales, self.name):
            yield self._edit(term, sites.all[term.address].module, twins)

    def asks(self) -> Mapping[str, Any]:
        return {**self._asked, **self.options.asks}

    def combine(self, parts: Sequence[Part], sites: SiteView, rank: int | None) -> Iterable[Edit]:
        sums = summed(parts, sites, rank)
        forms = [part.adapter.saved.format for part in parts if isinstance(part.adapter, LoRA)]
        terms = tuple(one.term for one in sums)
        reading = Reading(forms[0], terms, writing.settings_of_sum(terms))
        self.saved = writing.Saved.of(reading, sites, None)
        self.discarded = {one.term.address: one.discarded for one in sums}
        self._asked = {name: value for part in parts for name, value in part.asks.items()}
        return [Edit.add(one.term.address, one.edge, self.name) for one in sums]

    def _edit(self, term: Term, site: nn.Module | None, twins: Twins) -> Edit:
        term = beside(site, term)
        edge = twins.edge_for(site, term)
        reads = (f"{term.address}.weight",) if reads_weight(edge) else ()
        padded = edge.names if isinstance(edge, LoRAEdge) and term.room else ()
        return Edit.add(
            term.address, edge, self.name, fills=dict(term.fills), reads=reads, padded=padded
        )

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save in the format the adapter came in, or the one its options name."""
        writing.write(folder, self.saved, edges, about)


def _check_targets(reading: Reading, sites: SiteView, where: str) -> None:
    """What PEFT's settings target and the file must be the same layers.

    Raises:
        InarchError: IA426.
    """
    beyond = sorted(layers_beyond(reading.terms, sites, reading.settings))
    if beyond:
        raise InarchError(
            "IA426",
            f"the file has {len(beyond)} layers that its settings don't target",
            where=f"{where}: {beyond[0]}",
            why=f"target_modules is {json.dumps(reading.settings['target_modules'])}",
            remedy="put the adapter_config.json beside it that it was saved with",
        )
    absent = sorted(layers_without_term(reading.terms, sites, reading.settings))
    if absent:
        raise InarchError(
            "IA426",
            f"the settings target {len(absent)} layers that the file has nothing for",
            where=f"{where}: {absent[0]}",
            why=", ".join(absent[:4]) + (", ..." if len(absent) > 4 else ""),
            remedy="put the adapter_config.json beside it that it was saved with",
        )


def _refuse_tied(started: Sequence[Term], sites: SiteView) -> None:
    """PEFT takes what such a term starts from out of the weight, and so out of every layer of it.

    Raises:
        InarchError: IA427.
    """
    holders: dict[int, list[str]] = {}
    for address, site in sites.all.items() if started else ():
        holders.setdefault(id(getattr(site.module, "weight", None)), []).append(address)
    for term in started:
        weight = getattr(sites.all[term.address].module, "weight", None)
        tied = [address for address in holders[id(weight)] if address != term.address]
        if weight is not None and tied:
            raise InarchError(
                "IA427",
                f"the {term.start} of `{term.address}` starts from a weight that is tied",
                where=term.key or term.address,
                why=f"PEFT takes it out of `{tied[0]}` too, where this adapter has nothing",
                remedy="leave the layer out, or train a plain LoRA there",
            )


def _scaled(terms: Iterable[Term], scales: Mapping[str, float], adapter: str) -> Iterable[Term]:
    """The terms with the factors of their blocks: of the longest pattern that matches.

    Raises:
        InarchError: IA402 for a pattern under which the adapter has nothing.
    """
    terms = list(terms)
    if not scales:
        return terms
    matches = {pattern: compiled(pattern).fullmatch for pattern in scales}
    used: set[str] = set()
    scaled: list[Term] = []
    for term in terms:
        parts = term.address.split(".")
        above: list[Any] = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        found = [p for p, match in matches.items() if any(match(address) for address in above)]
        used |= set(found)
        factor = scales[max(found, key=len)] if found else 1.0
        scaled.append(replace(term, factor=float(factor)))
    unused = [pattern for pattern in scales if pattern not in used]
    if unused:
        raise InarchError(
            "IA402",
            f"the block `{unused[0]}` holds nothing of this adapter",
            where=f"adapter `{adapter}`: block_scales",
            why=f"it adapts {len(terms)} layers, the first is {terms[0].address if terms else '-'}",
            remedy="name addresses as `inarch tree` shows them, with `*` for one level",
        )
    return scaled
