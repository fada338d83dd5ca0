"""Terms: what one adapted layer's part of a file means, whatever format the file has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

Algorithm = Literal["lora", "loha", "lokr", "oft", "full", "norm", "bias"]
Start = Literal["", "pissa", "olora"]
Format = Literal["peft", "diffusers", "kohya"]


class Term(Struct, frozen=True, kw_only=True):
    """What is put beside one layer: every format is read as these, and edges are made of these.

    Attributes:
        address: of the layer.
        algorithm: `lora` B A, `loha` (B1 A1) * (B2 A2), `lokr` kron(C, B A), `oft` a rotation of
            the outputs, `full` a whole weight, `norm` the weight and bias of a normalisation,
            `bias` a layer's bias alone.
        fills: for each parameter, the file's key; empty for a term that is yet to be trained.
        shapes: of the parameters.
        rank: 0 where the algorithm has none, and where a slot has nothing for the layer yet.
        room: the rank that there is to be room for; 0 for no more than its own.
        scaling: alpha / rank, or what the format makes of the two; of `oft`, its constraint.
        factor: of the layer's block, beside the user's scale.
        decompose: whether the layer's weight is split into direction and magnitude, as PEFT does
            it (DoRA, with `lora_magnitude_vector`) or as LyCORIS does (`dora_scale`).
        start: what was subtracted from the base when training began, or nothing.
        dropout: the share of a term's inputs dropped in training.
        rank_dropout: of the outputs of a whole change; `dropout_scaled` if the others grow.
        module_dropout: how likely the whole term is dropped in training.
        flat_kron: that a Kronecker product pairs axes from the last, as PEFT's does for Conv1d.
        key: what the file calls the layer.
    """

    address: str
    algorithm: Algorithm
    fills: Mapping[str, str] = {}
    shapes: Mapping[str, tuple[int, ...]] = {}
    rank: int = 0
    room: int = 0
    scaling: float = 1.0
    factor: float = 1.0
    decompose: Literal["", "peft", "lycoris"] = ""
    start: Start = ""
    dropout: float = 0.0
    rank_dropout: float = 0.0
    dropout_scaled: bool = False
    module_dropout: float = 0.0
    flat_kron: bool = False
    key: str = ""
