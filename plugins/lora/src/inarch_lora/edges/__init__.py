"""What stands beside a layer: the one place where a term becomes a module."""

from __future__ import annotations

from math import prod
from typing import Any

from msgspec.structs import replace
from torch import nn

from inarch.errors import InarchError
from inarch_lora.edges.bias import BiasEdge
from inarch_lora.edges.dora import ConvDoRA, DoRAEdge, EmbeddingDoRA, LinearDoRA, TransposedDoRA
from inarch_lora.edges.layer import Layer, Layers
from inarch_lora.edges.lora import ConvLoRA, EmbeddingLoRA, LinearLoRA, LoRAEdge, TransposedLoRA
from inarch_lora.edges.norm import NORMS, NormEdge
from inarch_lora.edges.oft import OFTEdge
from inarch_lora.edges.site import SiteEdge
from inarch_lora.edges.start import StartedEdge, StartedLinear, StartedTransposed
from inarch_lora.edges.whole import FullEdge, LoHaEdge, LoKrEdge, ProductEdge, WholeEdge
from inarch_lora.terms import Term

__all__ = [
    "NORMS",
    "BiasEdge",
    "ConvLoRA",
    "DoRAEdge",
    "EmbeddingLoRA",
    "FullEdge",
    "Layer",
    "Layers",
    "LinearLoRA",
    "LoHaEdge",
    "LoKrEdge",
    "LoRAEdge",
    "NormEdge",
    "OFTEdge",
    "ProductEdge",
    "SiteEdge",
    "StartedEdge",
    "TransposedLoRA",
    "WholeEdge",
    "beside",
    "edge_for",
    "lora_shapes",
    "reads_weight",
]

_PLAIN: dict[str, type[LoRAEdge]] = {
    "linear": LinearLoRA,
    "transposed": TransposedLoRA,
    "embedding": EmbeddingLoRA,
    "conv": ConvLoRA,
}
_DORA: dict[str, type[DoRAEdge]] = {
    "linear": LinearDoRA,
    "transposed": TransposedDoRA,
    "embedding": EmbeddingDoRA,
    "conv": ConvDoRA,
}
_READING = (DoRAEdge, OFTEdge, StartedEdge)
_STARTED: dict[str, type[StartedEdge]] = {"linear": StartedLinear, "transposed": StartedTransposed}
_WHOLE: dict[str, type[WholeEdge]] = {
    "lora": ProductEdge,
    "loha": LoHaEdge,
    "lokr": LoKrEdge,
    "oft": OFTEdge,
    "full": FullEdge,
}


def edge_for(site: nn.Module | None, term: Term) -> SiteEdge:
    """The module that stands beside a layer for a term.

    Raises:
        InarchError: IA421 for a layer the term can't stand beside, IA422 for a rank its groups
            don't divide, IA427 for tensors that don't make a weight of its form.
    """
    if isinstance(site, NORMS) and term.algorithm == "norm":
        return NormEdge(site, term.shapes, factor=term.factor)
    layer = Layer.of(site, term.address)
    if term.algorithm == "norm":
        raise _unfit(term, layer, "it is no normalisation")
    if term.algorithm == "bias":
        return BiasEdge(layer, factor=term.factor)
    if term.algorithm != "lora" or _must_be_whole(layer, term):
        return _whole(layer, term)
    return _lora(site, layer, term)


def beside(site: nn.Module | None, term: Term) -> Term:
    """The term as the layer has it: a whole change of a normalisation has names of its own."""
    if not isinstance(site, NORMS) or term.algorithm != "full":
        return term
    names = {"diff": "w_norm", "diff_b": "b_norm"}
    fills = {names[name]: key for name, key in term.fills.items()}
    shapes = {names[name]: shape for name, shape in term.shapes.items()}
    return replace(term, algorithm="norm", fills=fills, shapes=shapes)


def reads_weight(edge: SiteEdge) -> bool:
    """Whether what the edge adds depends on the weight it stands beside."""
    return isinstance(edge, _READING) or (
        isinstance(edge, WholeEdge) and edge.dora_scale is not None
    )


def lora_shapes(layer: Layer, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of A and B beside a layer, as PEFT has them."""
    if layer.kind != "conv":
        return (rank, layer.inputs), (layer.outputs, rank)
    first = (rank, layer.inputs, *layer.kernel)
    return first, (layer.outputs, rank // layer.groups, *(1 for _ in layer.kernel))


def _must_be_whole(layer: Layer, term: Term) -> bool:
    """Whether LoRA's own edges can't run it: cores, LyCORIS's decomposition, another layout."""
    if term.decompose == "lycoris" or {"lora_mid", "diff_b"} & set(term.shapes):
        return True
    given = [term.shapes.get(name) for name in ("lora_A", "lora_B")]
    if None in given or layer.kind == "embedding" or term.decompose:
        return False
    first, second = lora_shapes(layer, term.rank)
    if layer.groups > 1:  # LyCORIS's A sees the inputs of one group, PEFT's sees all
        return given[0] == (term.rank, *layer.shape[1:])
    same_size = [prod(g or ()) == prod(s) for g, s in zip(given, (first, second), strict=True)]
    return given != [first, second] and all(same_size)


def _lora(site: Any, layer: Layer, term: Term) -> LoRAEdge:
    if layer.kind == "conv" and term.rank % layer.groups:
        raise InarchError(
            "IA422",
            f"the rank {term.rank} is not divided by the {layer.groups} groups of the convolution",
            where=term.address,
            remedy=f"rank={layer.groups * max(1, term.rank // layer.groups)}",
        )
    room = max(term.room, term.rank)
    options: dict[str, Any] = {
        "rank": term.rank,
        "dropout": term.dropout,
        "factor": term.factor,
        "outputs": layer.outputs,
        "lora_bias": "lora_B_bias" in term.shapes,
        "bias": "bias" in term.shapes,
    }
    arguments: list[Any] = [*lora_shapes(layer, room), term.scaling]
    if layer.kind == "conv":
        arguments.insert(0, site)
    if term.start and layer.kind != "embedding":  # PEFT starts embeddings as ever
        if layer.kind not in _STARTED or (term.start == "olora" and layer.kind != "linear"):
            raise _unfit(term, layer, f"{term.start} starts from a linear layer's weight")
        return _STARTED[layer.kind](layer, term.start, *arguments, **options)
    if term.decompose == "peft":
        return _DORA[layer.kind](layer, *arguments, **options)
    return _PLAIN[layer.kind](*arguments, **options)


def _whole(layer: Layer, term: Term) -> WholeEdge:
    if layer.kind in ("transposed", "embedding") and (term.algorithm != "full" or term.decompose):
        raise _unfit(term, layer, f"{term.algorithm} is for linear layers and convolutions")
    shapes = {**term.shapes}
    if "diff_b" in shapes:
        shapes["diff_b"] = (layer.outputs,)
    edge = _WHOLE[term.algorithm](
        layer,
        shapes,
        term.scaling,
        factor=term.factor,
        rank_dropout=term.rank_dropout,
        dropout_scaled=term.dropout_scaled,
        module_dropout=term.module_dropout,
    )
    if isinstance(edge, LoKrEdge):
        edge.flat_kron = term.flat_kron
    if term.algorithm != "full" or "diff" in term.shapes:
        _check(edge, layer, term)
    return edge


def _check(edge: WholeEdge, layer: Layer, term: Term) -> None:
    """Whether the tensors make a change of the layer's form, tried on the meta device."""
    try:
        shape = tuple(edge.change().shape)
        scale = edge.dora_scale
        sizes = (layer.outputs, layer.shape[1])
        edge.check_shapes()
        scaled = scale is None or scale.numel() in sizes
    except (RuntimeError, AttributeError, IndexError) as error:
        raise _unfit(term, layer, str(error).splitlines()[0]) from None
    if shape != layer.shape or not scaled:
        raise _unfit(term, layer, f"they make a change of {list(shape)}")


def _unfit(term: Term, layer: Layer, why: str) -> InarchError:
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in term.shapes.items())
    return InarchError(
        "IA427",
        f"the {term.algorithm} of `{term.address}` does not fit the layer there",
        where=term.key or term.address,
        why=f"the weight is {list(layer.shape)}; {shapes + '; ' if shapes else ''}{why}",
        remedy="pass the file that was trained for this base",
    )
