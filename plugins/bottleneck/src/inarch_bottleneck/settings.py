"""The settings of a bottleneck, in AdapterHub's words, and what each of them comes to.

Source: `BnConfig` of the adapters library, version 1.3, and its three published configurations:
`DoubleSeqBnConfig` (Houlsby), `SeqBnConfig` (Pfeiffer) and `ParBnConfig` (He).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from inarch.errors import InarchError

_SEQUENTIAL = {"is_parallel": False, "scaling": 1.0, "reduction_factor": 16}
PUBLISHED: Final[dict[str, dict[str, Any]]] = {
    "houlsby": {
        **_SEQUENTIAL,
        "mh_adapter": True,
        "output_adapter": True,
        "original_ln_before": False,
        "non_linearity": "swish",
    },
    "pfeiffer": {
        **_SEQUENTIAL,
        "mh_adapter": False,
        "output_adapter": True,
        "original_ln_before": True,
        "non_linearity": "relu",
    },
    "parallel": {
        "is_parallel": True,
        "scaling": 4.0,
        "reduction_factor": 2,
        "mh_adapter": False,
        "output_adapter": True,
        "original_ln_before": False,
        "non_linearity": "relu",
    },
}
DEFAULTS: Final[dict[str, Any]] = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "init_weights": "mam_adapter",
    "init_weights_seed": None,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "original_ln_after": True,
    "phm_layer": False,
    "residual_before_ln": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}
# Set to anything else they would change the result.
_ABSENT = ("cross_adapter", "inv_adapter", "phm_layer", "use_gating")
# What activations were called before configurations had a version.
_RENAMED = {"gelu": "gelu_new", "gelu_orig": "gelu"}

_tanh_gelu = partial(F.gelu, approximate="tanh")
ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "leaky_relu": F.leaky_relu,
    "leakyrelu": F.leaky_relu,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What all bottlenecks of an adapter have in common.

    Attributes:
        activation: a name in `ACTIVATIONS`.
        scaling: a factor of what comes out, or `learned` or `channel` for parameters.
        norm_before, norm_after: layer norms of their own.
        norm_whole: whether the second norm sees the sum with what the bottleneck stands at.
        dropout: the share of outputs dropped in training.
        depth: the share of rows for which it is left out in training.
    """

    activation: str
    scaling: float | str
    norm_before: bool
    norm_after: bool
    norm_whole: bool
    dropout: float
    depth: float


def read(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of a folder, complete and checked.

    Args:
        given: what stands in adapter_config.json.
        where: the folder's file, for errors.

    Raises:
        InarchError: IA433 for what is not built.
    """
    told = given.get("config")
    inner: Mapping[str, Any] = told if isinstance(told, dict) else {}
    if inner.get("architecture") is not None:
        raise _unsupported(inner, "architecture", where, "it is of another method")
    if not {"mh_adapter", "output_adapter", "reduction_factor", "non_linearity"} <= set(inner):
        raise _unsupported(given, "config", where, "it does not describe a bottleneck")
    settings = {**DEFAULTS, "original_ln_before": False, "is_parallel": False, "scaling": 1.0}
    settings |= {"init_weights": "bert", **inner}
    act = str(settings["non_linearity"]).lower()
    settings["non_linearity"] = act if "version" in given else _RENAMED.get(act, act)
    refuse_unsupported(settings, where)
    return settings


def refuse_unsupported(settings: Mapping[str, Any], where: str) -> None:
    """Refuse what would change the result and is not built.

    Raises:
        InarchError: IA433.
    """
    for name in _ABSENT:
        if settings[name]:
            raise _unsupported(settings, name, where, "without it the result would be another")
    if settings["non_linearity"] not in ACTIVATIONS:
        known = f"known are: {', '.join(ACTIVATIONS)}"
        raise _unsupported(settings, "non_linearity", where, known)
    scaling = settings["scaling"]
    if isinstance(scaling, bool) or not (
        isinstance(scaling, (int, float)) or scaling in ("learned", "channel")
    ):
        raise _unsupported(settings, "scaling", where, 'it is a number, "learned" or "channel"')
    for name in ("dropout", "stochastic_depth"):
        if type(settings[name]) not in (int, float) or not 0 <= settings[name] <= 1:
            raise _unsupported(settings, name, where, "it is a share, from 0 to 1")
    left_out = settings["leave_out"] or []
    if not isinstance(left_out, list) or not all(type(n) is int for n in left_out):
        raise _unsupported(settings, "leave_out", where, "it is a list of blocks' numbers")
    _refuse_sums(settings, where)


def _refuse_sums(settings: Mapping[str, Any], where: str) -> None:
    """Each way of adding up keeps the stream; those that lose it or count it twice are not had."""
    once = "the stream would be lost, or be there twice"
    if settings["is_parallel"] or not settings["original_ln_before"]:
        if not settings["original_ln_after"]:
            raise _unsupported(settings, "original_ln_after", where, once)
        return
    inner = settings["residual_before_ln"]
    if inner not in (True, False) or inner != settings["original_ln_after"]:
        raise _unsupported(settings, "residual_before_ln", where, once)
    if inner and settings["ln_after"] and settings["adapter_residual_before_ln"]:
        why = "the norm would see a sum that is no value of the block"
        raise _unsupported(settings, "adapter_residual_before_ln", where, why)


def site_role(settings: Mapping[str, Any], part: str) -> str:
    """The role at which the bottleneck of a part (`attention` or `mlp`) stands.

    Houlsby's sees what the part gives; Pfeiffer's the stream with it; the parallel one the stream
    before it.
    """
    after_part = not settings["is_parallel"] and not settings["original_ln_before"]
    return part if after_part else f"residual.{part}"


def shape_of(settings: Mapping[str, Any]) -> Shape:
    parallel = bool(settings["is_parallel"])
    return Shape(
        activation=str(settings["non_linearity"]),
        scaling=settings["scaling"],
        norm_before=bool(settings["ln_before"]),
        norm_after=bool(settings["ln_after"]),
        norm_whole=bool(settings["adapter_residual_before_ln"]) and not parallel,
        dropout=float(settings["dropout"]),
        depth=0.0 if parallel else float(settings["stochastic_depth"]),
    )


def narrow(settings: Mapping[str, Any], block: int, width: int) -> int:
    """How narrow the bottleneck of a block is.

    Raises:
        KeyError: where a table of factors has neither the block nor a default.
    """
    factor: Any = settings["reduction_factor"]
    if isinstance(factor, Mapping):
        table: Mapping[str, float] = factor
        factor = table[str(block)] if str(block) in table else table["default"]
    return max(1, int(width // factor))


def _unsupported(settings: Mapping[str, Any], name: str, where: str, why: str) -> InarchError:
    return InarchError(
        "IA433",
        f"the adapter's `{name}` is not what a bottleneck here has",
        where=f"{where}: {name} = {json.dumps(settings.get(name))}",
        why=why,
        remedy="train it without, or run it with the adapters library",
    )
