"""Terms that are yet to be trained, from options: their shapes are PEFT's."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator

from msgspec.structs import replace

from inarch.adapters import SiteView
from inarch_lora.edges import Layer, Layers, lora_shapes
from inarch_lora.options import Options
from inarch_lora.peft_format import pattern_value, scaling
from inarch_lora.terms import Format, Term

Shapes = dict[str, tuple[int, ...]]


def fresh_terms(options: Options, sites: SiteView, layers: Layers, form: Format) -> Iterator[Term]:
    """A term for each target, and for each other bias where all are to be adapted.

    Args:
        options: what the user asked for.
        sites: the pristine model.
        layers: of it.
        form: of the file it will be saved in, whose reading of the tensors it has.

    Raises:
        InarchError: IA402 for a target that matches nothing, IA421 for one that is no layer.
    """
    targets, made = sites.find(options.targets, modules=True), dict[Hashable, Term]()
    for site in targets:
        layer = layers[site.address]
        rank = int(pattern_value(options.rank_pattern, site.address, options.rank))
        alpha = pattern_value(options.alpha_pattern, site.address, options.alpha or rank)
        kind = (layer.form, rank, alpha)
        if kind not in made:  # of which a model has few
            made[kind] = _term(options, layer, rank, alpha, form)
        yield replace(made[kind], address=site.address)
    if options.bias != "all":
        return
    taken = {site.address for site in targets}
    for site in sites.all.values():
        bias = getattr(site.module, "bias", None)
        if site.address not in taken and bias is not None and not callable(bias):
            yield Term(address=site.address, algorithm="bias", shapes={"bias": tuple(bias.shape)})


def _term(options: Options, layer: Layer, rank: int, alpha: float, form: Format) -> Term:
    """What layers of one form get, each at its own address."""
    shapes = _SHAPES[options.algorithm](options, layer, rank)
    settings = {"lora_alpha": alpha, "use_rslora": options.use_rslora}
    return Term(
        address="",
        algorithm=options.algorithm,
        shapes=shapes,
        rank=rank,
        scaling=scaling(settings, "", rank),
        dropout=options.dropout,
        decompose="peft" if options.use_dora else "",
        start="" if options.start == "zero" else options.start,
        flat_kron=form == "peft" and len(shapes.get("lokr_w2", ())) == 3,
    )


def _lora(options: Options, layer: Layer, rank: int) -> Shapes:
    names = ("lora_A", "lora_B")
    if layer.kind == "embedding":
        names = ("lora_embedding_A", "lora_embedding_B")
    shapes: Shapes = dict(zip(names, lora_shapes(layer, rank), strict=True))
    if options.lora_bias:
        shapes["lora_B_bias"] = (layer.outputs,)
    if options.bias != "none" and layer.biased:
        shapes["bias"] = (layer.outputs,)
    return shapes


def _loha(options: Options, layer: Layer, rank: int) -> Shapes:
    outputs, inputs = layer.outputs, layer.shape[1]
    if _cored(options, layer):
        core = (rank, rank, *layer.kernel)
        halves: Shapes = {f"hada_w{n}_a": (rank, outputs) for n in (1, 2)}
        halves |= {f"hada_w{n}_b": (rank, inputs) for n in (1, 2)}
        return halves | {"hada_t1": core, "hada_t2": core}
    wide = inputs * math.prod(layer.kernel)
    halves = {f"hada_w{n}_a": (outputs, rank) for n in (1, 2)}
    return halves | {f"hada_w{n}_b": (rank, wide) for n in (1, 2)}


def _lokr(options: Options, layer: Layer, rank: int) -> Shapes:
    inner, outer = split(layer.shape[1], options.factor), split(layer.outputs, options.factor)
    shapes: Shapes = {"lokr_w1": (outer[0], inner[0])}
    if options.decompose_both and rank < max(outer[0], inner[0]) / 2:
        shapes = {"lokr_w1_a": (outer[0], rank), "lokr_w1_b": (rank, inner[0])}
    if rank >= max(outer[1], inner[1]) / 2:
        return shapes | {"lokr_w2": (outer[1], inner[1], *layer.kernel)}
    if _cored(options, layer):
        core = {"lokr_t2": (rank, rank, *layer.kernel)}
        return shapes | core | {"lokr_w2_a": (rank, outer[1]), "lokr_w2_b": (rank, inner[1])}
    wide = inner[1] * math.prod(layer.kernel)
    return shapes | {"lokr_w2_a": (outer[1], rank), "lokr_w2_b": (rank, wide)}


def _cored(options: Options, layer: Layer) -> bool:
    return options.tucker and any(size != 1 for size in layer.kernel)


def split(size: int, factor: int) -> tuple[int, int]:
    """A size as a product of two, the first near `factor` (-1: near its root) and not larger.

    Source: `factorization` of LyCORIS, which PEFT has too.
    """
    if factor > 0 and size % factor == 0:
        small, large = factor, size // factor
        return (small, large)
    most = size if factor == -1 else factor
    small, large = 1, size
    for first in range(2, math.isqrt(size) + 1):
        if size % first == 0 and first <= most:
            small, large = first, size // first
    return small, large


_SHAPES = {"lora": _lora, "loha": _loha, "lokr": _lokr}
