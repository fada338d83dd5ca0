"""From a file of any format to terms: every key finds its layer, and every layer its scaling."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from msgspec.structs import replace
from torch.nn import Embedding

from inarch.adapters import SiteView
from inarch.errors import InarchError
from inarch.weights import WeightsHeader
from inarch.weights.peft import PREFIX, targeted
from inarch_lora import peft_format
from inarch_lora.keys import split_key
from inarch_lora.names import Names
from inarch_lora.terms import Algorithm, Format, Term

DIFFUSERS_METADATA = "lora_adapter_metadata"
_READ = ("alpha", "scalar")
_WHOLE_FILE = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file holds.

    Attributes:
        format: whose keys and settings it has.
        terms: one for each layer.
        settings: PEFT's, where the file comes with them.
    """

    format: Format
    terms: tuple[Term, ...]
    settings: Mapping[str, Any]


def read(weights: WeightsHeader, sites: SiteView, alpha: float | None = None) -> Reading:
    """The terms of a file, in the order of its keys.

    Args:
        weights: the file.
        sites: of the model.
        alpha: what the user says it is, for a file that records none.

    Raises:
        InarchError: IA423 to IA428, IA436.
    """
    where = str(weights.path)
    peft_format.refuse_unsupported(weights.settings, where)
    names = Names.of(sites)
    keys = [key for key in weights.keys() if not _copies_base(key, names, sites, weights)]  # noqa: SIM118
    found = _by_address(keys, weights, names)
    metadata = _metadata(weights)
    terms: list[Term] = []
    for address, (name, keys) in found.items():
        tree = sites.all[address].tree
        settings = weights.settings or metadata.get(tree) or metadata.get(_WHOLE_FILE, {})
        path = name.removeprefix(PREFIX).removeprefix(f"{tree}.")
        if alpha is not None and (settings or "alpha" in keys):
            raise _recorded(alpha, f"{where}: {keys.get('alpha', name)}")
        terms.append(_term(address, path, name, keys, weights, settings, alpha))
    form: Format = "peft"
    if not weights.settings:
        flat = any("." not in name for name, _ in found.values())
        form = "kohya" if flat else "peft" if "" in sites.trees else "diffusers"
    return Reading(form, tuple(terms), weights.settings)


def _copies_base(key: str, names: Names, sites: SiteView, weights: WeightsHeader) -> bool:
    """Whether a key is the base's own weight, which PEFT saves with adapted embeddings.

    A head that an adapter starts from is saved less what it started from, which is made again here.

    Raises:
        InarchError: IA410 where it is another than this base's.
    """
    if not key.endswith(".weight"):
        return False
    address = names.find(key.removesuffix(".weight").removesuffix(".base_layer"))
    own = getattr(sites.all[address].module, "weight", None) if address else None
    if own is None:
        return False
    saved = weights.read(key)
    if peft_format.start(weights.settings) and not isinstance(sites.all[address].module, Embedding):
        return True
    kind = min(saved.dtype, own.dtype, key=lambda dtype: dtype.itemsize)
    if not own.is_meta and not torch.equal(saved.to(kind), own.detach().cpu().to(kind)):
        raise InarchError(
            "IA410",
            f"the file has another weight for `{address}` than this base",
            where=f"{weights.path}: {key}",
            why="PEFT saves the embeddings of its base beside an adapter, and these are not equal",
            remedy="load the base it was trained on, with the tokens that were added to it",
        )
    return True


def _by_address(
    keys: Iterable[str], weights: WeightsHeader, names: Names
) -> dict[str, tuple[str, dict[str, str]]]:
    """For each adapted layer its name in the file, and its keys by the parameters they fill."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    known: dict[str, str] = {}
    for key in keys:
        called, parameter = split_key(key, str(weights.path))
        if called[0] not in known:
            addresses = (names.find(name) for name in called)
            address = next((a for a in addresses if a is not None), None)
            if address is None:
                raise _no_layer(key, called[0], names, str(weights.path))
            known[called[0]] = address
        name, own = found.setdefault(known[called[0]], (called[0], {}))
        if parameter in own:
            raise InarchError(
                "IA426",
                f"the file has two tensors for the {parameter} of `{name}`",
                where=f"{weights.path}: {key}",
                why=f"the other is {own[parameter]}",
                remedy="leave one of the two out",
            )
        own[parameter] = key
    return found


def _no_layer(key: str, name: str, names: Names, where: str) -> InarchError:
    near = names.near(name)
    bare = name.removeprefix(PREFIX)
    return InarchError(
        "IA425",
        f"the model has no layer `{bare}`",
        where=f"{where}: {key}",
        why="the adapter was trained on a model that has it",
        remedy="load the base it was trained on"
        + (f"; the nearest names here are {' and '.join(near)}" if near else ""),
    )


def _metadata(weights: WeightsHeader) -> dict[str, dict[str, Any]]:
    """PEFT's settings for each component, as diffusers keeps them in a file's header."""
    settings: dict[str, dict[str, Any]] = {}
    text = weights.metadata.get(DIFFUSERS_METADATA)
    if text is None:
        return settings
    try:
        entries: dict[str, Any] = json.loads(text)
        for name, value in entries.items():
            component, mark, setting = name.partition(".")
            if mark:
                settings.setdefault(component, {})[setting] = value
            else:  # a single model's file, as its own `save_lora_adapter` writes it
                settings.setdefault(_WHOLE_FILE, {})[name] = value
    except (ValueError, AttributeError):
        raise InarchError(
            "IA426",
            f"the file's `{DIFFUSERS_METADATA}` is no JSON object",
            where=str(weights.path),
            remedy="save the adapter again",
        ) from None
    for component, own in settings.items():
        peft_format.refuse_unsupported(own, f"{weights.path}: {DIFFUSERS_METADATA} {component}")
    return settings


def _term(
    address: str,
    path: str,
    name: str,
    keys: Mapping[str, str],
    weights: WeightsHeader,
    settings: Mapping[str, Any],
    alpha: float | None,
) -> Term:
    """What a layer's keys mean, under PEFT's settings or with the alpha among them, or told."""
    algorithm = _algorithm(keys, name, weights)
    fills = {parameter: key for parameter, key in keys.items() if parameter not in _READ}
    shapes = {parameter: weights.shape(key) for parameter, key in fills.items()}
    term = Term(address=address, algorithm=algorithm, fills=fills, shapes=shapes, key=name)
    if algorithm in ("bias", "norm", "full"):
        _settle_alpha(keys, weights)
        return term
    if algorithm == "oft":  # LyCORIS and kohya-ss keep the constraint where others keep alpha
        return replace(term, scaling=_settle_alpha(keys, weights)[0])
    term = replace(term, rank=_rank(term, weights))
    if "lora_magnitude_vector" in fills:
        term = replace(term, decompose="peft")
    elif "dora_scale" in fills:
        term = replace(term, decompose="lycoris")
    if settings:
        return _by_settings(term, path, weights, settings)
    return replace(term, scaling=_by_alpha(term, keys, weights, alpha))


def _algorithm(keys: Mapping[str, str], name: str, weights: WeightsHeader) -> Algorithm:
    kinds = {_KIND.get(parameter.partition("_")[0], "lora") for parameter in keys} - {""}
    if "full" in kinds and "diff" not in keys and len(kinds) > 1:
        kinds.discard("full")  # a bias's change beside another kind of term
    if kinds == {"bias", "lora"}:
        kinds.discard("bias")
    if len(kinds) != 1:
        raise InarchError(
            "IA426",
            f"the tensors of `{name}` make no term",
            where=f"{weights.path}: {next(iter(keys.values()))}",
            why=f"they are of {' and '.join(sorted(kinds)) or 'nothing'}: {', '.join(keys)}",
            remedy="save the adapter again",
        )
    return kinds.pop()


_KIND: dict[str, Any] = {
    "hada": "loha",
    "lokr": "lokr",
    "oft": "oft",
    "diff": "full",
    "w": "norm",
    "b": "norm",
    "bias": "bias",
    "alpha": "",
    "scalar": "",
    "dora": "",
}


def _rank(term: Term, weights: WeightsHeader) -> int:
    """The rank a layer's tensors have; 0 where none of them has one."""
    for parameter in ("lora_A", "lora_embedding_A", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if parameter in term.shapes:
            shape = term.shapes[parameter]
            if shape and shape[0]:
                return shape[0]
            raise InarchError(
                "IA426",
                f"the {term.algorithm} of `{term.address}` has no rank",
                where=f"{weights.path}: {term.fills[parameter]}",
                why=f"the tensor is {list(shape)}",
                remedy="save the adapter again",
            )
    if term.algorithm == "lokr":
        return 0
    raise InarchError(
        "IA426",
        f"the file has half of the LoRA of `{term.address}`",
        where=f"{weights.path}: {next(iter(term.fills.values()), term.key)}",
        why="there is no A for it",
        remedy="save the adapter again",
    )


def _by_settings(
    term: Term, path: str, weights: WeightsHeader, settings: Mapping[str, Any]
) -> Term:
    """Rank and alpha as PEFT's settings have them; the tensors must agree."""
    pattern: Mapping[str, float] = settings.get("rank_pattern") or {}
    told = int(peft_format.pattern_value(pattern, path, settings.get("r", term.rank)))
    if term.rank and told != term.rank:
        raise InarchError(
            "IA426",
            f"the file and its settings disagree on the rank of `{term.address}`",
            where=f"{weights.path}: {next(iter(term.fills.values()))}",
            why=f"the tensor has rank {term.rank}, the settings say {told}",
            remedy="put the adapter_config.json beside it that it was saved with",
        )
    dora = bool(settings.get("use_dora"))
    if dora != (term.decompose == "peft") and term.algorithm == "lora":
        raise InarchError(
            "IA426",
            f"the file and its settings disagree on the magnitude of `{term.address}`",
            where=f"{weights.path}: {term.key}",
            why=f"use_dora is {json.dumps(dora)}, and the file has "
            + ("one" if term.decompose else "none"),
            remedy="put the adapter_config.json beside it that it was saved with",
        )
    return replace(
        term,
        rank=told,
        scaling=peft_format.scaling(settings, path, told),
        dropout=float(settings.get("lora_dropout") or 0.0),
        rank_dropout=float(settings.get("rank_dropout") or 0.0),
        dropout_scaled=term.algorithm == "loha" or bool(settings.get("rank_dropout_scale")),
        module_dropout=float(settings.get("module_dropout") or 0.0),
        start=peft_format.start(settings) if term.algorithm == "lora" else "",
        flat_kron=len(term.shapes.get("lokr_w2", ())) == 3,
    )


def _by_alpha(
    term: Term, keys: Mapping[str, str], weights: WeightsHeader, told: float | None
) -> float:
    """alpha / rank of a layer; where none is in the file or told, or it is 0, it is the rank.

    Raises:
        InarchError: IA436 for a file of PEFT, which always keeps alpha beside it.
    """
    alpha, scalar = _settle_alpha(keys, weights)
    if term.algorithm == "lokr" and term.rank == 0:
        return scalar  # both factors are whole, so there is no rank, and LyCORIS ignores alpha
    if told is None and "alpha" not in keys and term.key.startswith(PREFIX):
        raise InarchError(
            "IA436",
            "the adapter_config.json of this adapter is missing",
            where=str(weights.path),
            why=f"PEFT keeps alpha there, and the term is scaled by alpha / {term.rank}",
            remedy=f"pass the folder it was saved in, or say alpha={term.rank}, if that is it",
        )
    return scalar * ((alpha or told or term.rank) / term.rank)


def _recorded(alpha: float, where: str) -> InarchError:
    return InarchError(
        "IA401",
        "`alpha` is for a file that records none, and this one does",
        where=where,
        why=f"alpha={alpha:g} would be another than it was trained with",
        remedy="leave `alpha` out; `scale` is how strongly it acts",
    )


def _settle_alpha(keys: Mapping[str, str], weights: WeightsHeader) -> tuple[float, float]:
    """alpha and scalar, where a layer has them; reading one marks its key as used."""
    return _number("alpha", 0.0, keys, weights), _number("scalar", 1.0, keys, weights)


def _number(name: str, default: float, keys: Mapping[str, str], weights: WeightsHeader) -> float:
    if name not in keys:
        return default
    value = weights.read(keys[name])
    if value.numel() != 1 or not torch.isfinite(value.float()).all():
        raise InarchError(
            "IA426",
            f"`{keys[name]}` is not one number",
            where=f"{weights.path}: {keys[name]}",
            why=f"it is {list(value.shape)}: {value.flatten()[:4].tolist()}",
            remedy="save the adapter again",
        )
    return float(value)


def layers_without_term(
    terms: tuple[Term, ...], sites: SiteView, settings: Mapping[str, Any]
) -> Iterator[str]:
    """The layers that PEFT's settings target and the file has nothing for."""
    if not settings.get("target_modules") or settings["target_modules"] == "all-linear":
        return
    taken = {term.address for term in terms if term.algorithm != "bias"}
    trees = {sites.all[address].tree for address in taken}
    for address, site in sites.all.items():
        path = address.removeprefix(f"{site.tree}.") if site.tree else address
        if site.module is None or site.tree not in trees or address in taken:
            continue
        if targeted(settings, path):
            yield address


def layers_beyond(
    terms: tuple[Term, ...], sites: SiteView, settings: Mapping[str, Any]
) -> Iterator[str]:
    """The layers that the file has something for and PEFT's settings don't target."""
    if not settings.get("target_modules") or settings["target_modules"] == "all-linear":
        return
    for term in terms:
        tree = sites.all[term.address].tree
        names = (
            term.address.removeprefix(f"{tree}.") if tree else term.address,
            term.key.removeprefix(PREFIX),
        )
        if term.algorithm != "bias" and not any(targeted(settings, name) for name in names):
            yield term.address
