"""What `inarch.adapter("lora", ...)` takes."""

from __future__ import annotations

import re
from math import isfinite
from typing import Any, Literal

import msgspec

FROM_FILE = frozenset(("alpha", "capacity", "covers", "block_scales", "asks", "format"))


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """For an adapter that is to be trained; those of `FROM_FILE` are for one from a file too.

    Attributes:
        targets: roles (`attention.*`) or address patterns.
        algorithm: `lora`, `loha` or `lokr`.
        rank: of the product.
        alpha: the term is scaled by alpha / rank; None is the rank, so by 1. For one from a file
            that records none.
        dropout: the share of the term's inputs dropped in training.
        rank_pattern: another rank for addresses that end so, as regular expressions.
        alpha_pattern: likewise another alpha.
        use_rslora: scale by alpha / sqrt(rank).
        use_dora: adapt each weight's magnitude beside its direction.
        start: `pissa` or `olora`: train the weight's principal part, from no effect at all.
        factor: for `lokr`, what the first factor's sides are to be near to; -1 for a square.
        decompose_both: for `lokr`, make a product of the first factor too.
        tucker: for `loha` and `lokr` beside convolutions, give each product a core.
        bias: which of the base's biases are adapted with it, as PEFT has it.
        lora_bias: give B a bias.
        capacity: the rank that there is room for, so that `Model.swap` takes files of any rank up
            to it; None is each layer's own rank.
        covers: with `capacity`, roles or address patterns of layers that there is room for whether
            the file adapts them or not.
        block_scales: for addresses, or what stands under them, a factor beside the scale.
        asks: settings of the model's tasks that it was made for: `scheduler`, `guidance`, `steps`.
        format: what `save_adapter` writes; None is the format of the file, or the usual one.
    """

    targets: tuple[str, ...] = ("attention.*", "mlp.*")
    algorithm: Literal["lora", "loha", "lokr"] = "lora"
    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    use_dora: bool = False
    start: Literal["zero", "pissa", "olora"] = "zero"
    factor: int = -1
    decompose_both: bool = False
    tucker: bool = False
    bias: Literal["none", "lora_only", "all"] = "none"
    lora_bias: bool = False
    capacity: int | None = None
    covers: tuple[str, ...] = ()
    block_scales: dict[str, float] = {}
    asks: dict[str, Any] = {}
    format: Literal["peft", "diffusers", "kohya"] | None = None

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets name one role or address at least")
        factors = [*self.alpha_pattern.values(), *self.block_scales.values(), self.alpha or 0.0]
        if not all(map(isfinite, factors)):
            raise ValueError("an alpha and a block's scale are finite")
        for expression in [*self.rank_pattern, *self.alpha_pattern]:
            _check_expression(expression)
        if min([self.rank, *self.rank_pattern.values()]) < 1:
            raise ValueError("a rank is at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError("dropout is a share from 0 up to, not including, 1")
        only_lora = (self.use_dora, self.start != "zero", self.lora_bias, self.bias != "none")
        if self.algorithm != "lora" and (any(only_lora) or self.dropout):
            raise ValueError(f"{self.algorithm} has no dora, start, dropout or bias")
        if sum([self.use_dora, self.start != "zero"]) > 1:
            raise ValueError("use_dora and a start don't go together")
        if self.use_dora and self.lora_bias:
            raise ValueError("use_dora and lora_bias don't go together")
        if self.covers and self.capacity is None:
            raise ValueError("covers goes with capacity, the rank to make room for there")
        if self.capacity is not None:
            self._check_capacity(self.capacity)
        if self.factor == 0 or self.factor < -1:
            raise ValueError("factor is a positive number, or -1")

    def _check_capacity(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a capacity is at least 1")
        if self.algorithm != "lora" or self.start != "zero":
            raise ValueError("only a plain LoRA or DoRA has a capacity")


def _check_expression(expression: str) -> None:
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(f"`{expression}` is no regular expression: {error}") from None
