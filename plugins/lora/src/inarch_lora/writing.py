"""From an adapter's modules to a file, in the format it came in or another."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inarch.adapters import SiteView
from inarch.errors import InarchError
from inarch.weights import write_adapter
from inarch.weights.peft import PREFIX, target_names
from inarch_lora import peft_format
from inarch_lora.edges import Layer, LoRAEdge, NormEdge, SiteEdge
from inarch_lora.names import flat_name
from inarch_lora.options import Options
from inarch_lora.reading import DIFFUSERS_METADATA, Reading
from inarch_lora.terms import Format, Term

_PEFT_SETTINGS = (
    "lora_dropout",
    "bias",
    "use_rslora",
    "lora_bias",
    "use_dora",
    "init_lora_weights",
    "rank_dropout",
    "module_dropout",
    "rank_dropout_scale",
    "use_effective_conv2d",
    "decompose_both",
    "decompose_factor",
)
_CORES = ("hada_t1", "hada_t2", "lokr_t2")
_KOHYA = {
    "lora_A": "lora_down.weight",
    "lora_B": "lora_up.weight",
    "lora_mid": "lora_mid.weight",
    "oft_rescale": "rescale",
}


@dataclass(frozen=True)
class Saved:
    """What must be kept of how an adapter came, to save it so.

    Attributes:
        format: to write.
        terms: by address.
        settings: PEFT's, of those that are written again.
        came: the format it came in.
        trees: the names of the model's.
        layers: the addresses of all the model's modules.
    """

    format: Format = "peft"
    terms: Mapping[str, Term] = field(default_factory=dict[str, Term])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    came: Format = "peft"
    trees: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()

    @classmethod
    def of(cls, reading: Reading, sites: SiteView, wanted: Format | None) -> Saved:
        terms = {term.address: term for term in reading.terms}
        kept = {n: reading.settings[n] for n in _PEFT_SETTINGS if n in reading.settings}
        form = wanted or reading.format
        return cls(form, terms, kept, reading.format, tuple(sites.trees), sites.layers)

    @cached_property
    def flat(self) -> Mapping[str, str]:
        """For each address, its flat name."""
        keys = self.terms.items() if self.came == "kohya" else ()
        own = {a: term.key for a, term in keys if term.key and "." not in term.key}
        return {address: flat_name(address, self.trees) for address in self.terms} | own

    @cached_property
    def targets(self) -> Sequence[str]:
        """The shortest list of names PEFT finds the layers by."""
        adapted = [a for a, term in self.terms.items() if term.algorithm != "bias"]
        return target_names(adapted, self.layers)


def usual_format(options: Options, sites: SiteView) -> Format:
    """PEFT's, where a model is one tree; else what pipelines of several trees read."""
    if "" in sites.trees:
        return "peft"
    return "diffusers" if options.algorithm == "lora" else "kohya"


def settings_of(options: Options) -> dict[str, Any]:
    """The options in PEFT's words."""
    if options.algorithm != "lora":
        cored = {"use_effective_conv2d": options.tucker}
        if options.algorithm == "loha":
            return cored
        factors = {"decompose_both": options.decompose_both, "decompose_factor": options.factor}
        return cored | factors
    return {
        "lora_dropout": options.dropout,
        "use_rslora": options.use_rslora,
        "use_dora": options.use_dora,
        "bias": options.bias,
        "lora_bias": options.lora_bias,
        "init_lora_weights": True if options.start == "zero" else options.start,
    }


def settings_of_sum(terms: Collection[Term]) -> dict[str, Any]:
    """PEFT's words for plain terms, whose scaling is 1."""
    alone = any(term.algorithm == "bias" for term in terms)
    beside = any("bias" in term.shapes for term in terms)
    return {
        "lora_dropout": 0.0,
        "use_rslora": False,
        "bias": "all" if alone else "lora_only" if beside else "none",
        "lora_bias": any("lora_B_bias" in term.shapes for term in terms),
        "init_lora_weights": True,
    }


def write(
    folder: Path, saved: Saved, edges: Mapping[str, nn.Module], about: Mapping[str, str]
) -> None:
    """Write an adapter's modules, by address, into a folder.

    Raises:
        InarchError: IA408 for what the format has no place for.
    """
    own = {
        address: edge
        for address, edge in edges.items()
        if isinstance(edge, SiteEdge) and address in saved.terms
    }
    for address in own:
        term = saved.terms[address]
        if term.start and saved.format == "kohya":
            raise _no_place(saved.format, f"it can't say what `{address}` started from")
        paired = len(term.shapes.get("lokr_w2", ())) == 3
        if paired and term.flat_kron != (saved.format == "peft"):
            why = f"it pairs the axes of the factors of `{address}`, a Conv1d, otherwise"
            raise _no_place(saved.format, why)
    _WRITE[saved.format](folder, saved, own, about)


def _peft(
    folder: Path, saved: Saved, edges: Mapping[str, SiteEdge], about: Mapping[str, str]
) -> None:
    kinds = {saved.terms[address].algorithm for address in edges} - {"bias"}
    names = {algorithm: name for name, algorithm in peft_format.KINDS.items()}
    if len(kinds) > 1 or not kinds <= set(names):
        raise _no_place("PEFT", f"one of its folders holds one of {', '.join(names)}")
    kind = names[kinds.pop()] if kinds else "LORA"
    tensors: dict[str, Tensor] = {}
    for address, name, value in _tensors(edges):
        if name in ("lora_mid", "dora_scale", "diff_b"):
            raise _no_place("PEFT", f"it has no {name}, and `{address}` has one")
        if name in _CORES and value.dim() == 3:
            value = value.unsqueeze(-1)
        suffix = peft_format.SUFFIXES.get(name, name)
        if saved.terms[address].algorithm == "bias":
            suffix = peft_format.BARE_BIAS
        tensors[f"{PREFIX}{address}.{suffix}"] = value
    settings = {**saved.settings, "peft_type": kind, "target_modules": list(saved.targets)}
    if kind == "LORA":
        transposed = (_layer(edge) for edge in edges.values())
        settings["fan_in_fan_out"] = any(layer == "transposed" for layer in transposed)
        settings["use_dora"] = any(t.decompose == "peft" for t in saved.terms.values())
    peft_format.write(folder, tensors, _alphas(saved, edges), settings, about)


def _diffusers(
    folder: Path, saved: Saved, edges: Mapping[str, SiteEdge], about: Mapping[str, str]
) -> None:
    """`pytorch_lora_weights.safetensors`: PEFT's names after the tree's, settings in the header."""
    tensors: dict[str, Tensor] = {}
    for address, name, value in _tensors(edges):
        if name not in ("lora_A", "lora_B", "lora_magnitude_vector"):
            raise _no_place("diffusers", f"it has no {name}, and `{address}` has one")
        tensors[f"{address}.{peft_format.SUFFIXES.get(name, name)}"] = value
    metadata: dict[str, Any] = {}
    alphas = _alphas(saved, edges)
    for tree in sorted({address.partition(".")[0] for address in edges}):
        # transformers had a level `text_model` in its text encoders and has none now; both match.
        inside = {
            a.removeprefix(f"{tree}.").removeprefix("text_model."): v
            for a, v in alphas.items()
            if a.startswith(f"{tree}.")
        }
        own = [a for a in alphas if a.startswith(f"{tree}.")]
        settings = {
            **peft_format.ranks(inside, "lora_alpha"),
            "peft_type": "LORA",
            "target_modules": sorted(inside),
            "lora_dropout": saved.settings.get("lora_dropout", 0.0),
            "use_rslora": bool(saved.settings.get("use_rslora")),
            "use_dora": any(saved.terms[a].decompose == "peft" for a in own),
            "init_lora_weights": next((saved.terms[a].start for a in own), "") or True,
        }
        metadata |= {f"{tree}.{name}": value for name, value in settings.items()}
    text = {DIFFUSERS_METADATA: json.dumps(metadata, indent=2, sort_keys=True)}
    write_adapter(folder / "pytorch_lora_weights.safetensors", tensors, about, text)


def _kohya(
    folder: Path, saved: Saved, edges: Mapping[str, SiteEdge], about: Mapping[str, str]
) -> None:
    """One safetensors file with flat names and an alpha for each layer, as kohya-ss and LyCORIS."""
    tensors: dict[str, Tensor] = {}
    for address, name, value in _tensors(edges):
        if name in ("lora_embedding_A", "lora_embedding_B", "lora_B_bias", "bias"):
            raise _no_place("kohya-ss", f"it has no {name}, and `{address}` has one")
        if name == "lora_magnitude_vector":
            name, value = (
                "dora_scale",
                value.reshape(-1, *(1 for _ in range(_dims(edges, address) - 1))),
            )
        if name in _CORES and value.dim() > _dims(edges, address):
            value = value.squeeze(-1)
        if name == "lokr_w1" and _unscaled(saved.terms[address]):
            value = value * saved.terms[address].scaling
        tensors[f"{saved.flat[address]}.{_KOHYA.get(name, name)}"] = value
    for address, (rank, alpha) in _alphas(saved, edges).items():
        if rank and not _unscaled(saved.terms[address]):
            tensors[f"{saved.flat[address]}.alpha"] = torch.tensor(float(alpha))
    for address in edges:
        if saved.terms[address].algorithm == "oft":  # its constraint
            constraint = torch.tensor(float(saved.terms[address].scaling))
            tensors[f"{saved.flat[address]}.alpha"] = constraint
    ranks = [rank for rank, _ in _alphas(saved, edges).values() if rank]
    plain = all(saved.terms[a].algorithm == "lora" for a in edges)
    more = {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": str(max(ranks, default=0)),
    }
    write_adapter(folder / "adapter.safetensors", tensors, about, more)


def _tensors(edges: Mapping[str, SiteEdge]) -> Iterator[tuple[str, str, Tensor]]:
    """Each parameter of each edge, a bias as the whole bias that files hold."""
    for address, edge in edges.items():
        for name, parameter in edge.named_parameters():
            site = edge.base()
            if name in edge.biases and site is not None:
                yield address, name, parameter + site.get_parameter("bias")
            else:
                own = edge.own(name, parameter) if isinstance(edge, LoRAEdge) else parameter
                yield address, name, own


def _alphas(saved: Saved, edges: Mapping[str, SiteEdge]) -> dict[str, tuple[int, float]]:
    """Rank and alpha of each layer that has them, under the format's own rule of the two."""
    rooted = bool(saved.settings.get("use_rslora")) and saved.format != "kohya"
    found: dict[str, tuple[int, float]] = {}
    for address in edges:
        term = saved.terms[address]
        if term.algorithm in ("lora", "loha", "lokr"):
            rank = term.rank or 1
            root = math.sqrt(rank) if rooted else rank
            kohya = saved.format == "kohya"
            found[address] = (rank, term.scaling * root if kohya else _alpha(term.scaling, root))
    return found


def _unscaled(term: Term) -> bool:
    """Whether LyCORIS ignores alpha: two whole factors have no rank."""
    return {"lokr_w1", "lokr_w2"} <= set(term.shapes)


def _layer(edge: SiteEdge) -> str:
    site = edge.base()
    return "" if site is None or isinstance(edge, NormEdge) else Layer.of(site, "").kind


def _dims(edges: Mapping[str, SiteEdge], address: str) -> int:
    site = edges[address].base()
    return 2 if site is None else site.get_parameter("weight").dim()


def _alpha(scaling: float, root: float) -> float:
    """The shortest alpha that gives a scaling to the bit, as the one did that it was made of."""
    value = scaling * root
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    alpha = next((each for each in shorter if each / root == scaling), value)
    return int(alpha) if alpha.is_integer() else alpha


def _no_place(form: str, why: str) -> InarchError:
    return InarchError(
        "IA408",
        f"the adapter can't be saved in {form}'s format",
        why=why,
        remedy='name another: inarch.adapter(..., format="kohya")',
    )


_WRITE = {"peft": _peft, "diffusers": _diffusers, "kohya": _kohya}
