"""PEFT's folder: `adapter_config.json` and `adapter_model.safetensors`, read and written.

Source: PEFT's LoraConfig, `get_peft_model_state_dict` and `check_target_module_exists`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

from inarch.errors import InarchError
from inarch.weights.peft import Targets, refuse_malformed, write_folder
from inarch_lora.terms import Start

KINDS = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr"}
# PEFT wraps the layers it adapts, so the bias of one of them stands under `base_layer`.
SUFFIXES = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "lora_B_bias": "lora_B.bias",
    "bias": "base_layer.bias",
}
BARE_BIAS = "bias"
# What would change the result and is not built: refused when it is set.
_UNSUPPORTED = (
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "velora_config",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "megatron_config",
)
# Initialisations that subtract something from the base's own weights.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_STARTS: dict[str, Start] = {"pissa": "pissa", "olora": "olora"}
_CONVERT = (
    "convert it to a plain LoRA with PEFT, on the base it began from: "
    'model.save_pretrained(OUT, path_initial_model_for_weight_conversion="INITIAL_ADAPTER")'
)


_Number = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
_Rank = Annotated[int, msgspec.Meta(ge=1)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Settings(Targets, frozen=True, kw_only=True):
    """What the settings that are read must be."""

    r: _Rank = 8
    lora_alpha: _Number | None = None
    alpha: _Number | None = None
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Number] | None = None
    lora_dropout: _Share | None = None
    rank_dropout: _Share | None = None
    module_dropout: _Share | None = None

    def expressions(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().expressions()
        yield "rank_pattern", self.rank_pattern or ()
        yield "alpha_pattern", self.alpha_pattern or ()


def refuse_unsupported(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a setting that would change the result and that LoRA here does not have.

    Raises:
        InarchError: IA424, and IA426 for a setting that can't be what it is.
    """
    refuse_malformed(settings, Settings, "IA426", where)
    named = [name for name in _UNSUPPORTED if settings.get(name)]
    if settings.get("peft_type", "LORA") not in KINDS:
        named = ["peft_type"]
    if settings.get("lora_bias") and settings.get("use_dora"):
        named.append("lora_bias")
    begins = str(settings.get("init_lora_weights", "")).lower()
    remedy = "convert the adapter to a plain LoRA with PEFT, which can merge it first"
    why = "without it the result would be another, so it is not ignored"
    if begins.startswith(_CHANGES_BASE) and begins not in _STARTS:
        named.append("init_lora_weights")
        remedy = _CONVERT
        why = (
            "training began by taking something out of the base, which can't be made again exactly"
        )
    if named:
        raise InarchError(
            "IA424",
            f"the adapter needs `{named[0]}`, which this LoRA does not have",
            where=f"{where}: {named[0]} = {json.dumps(settings.get(named[0]))}",
            why=why,
            remedy=remedy,
        )


def start(settings: Mapping[str, Any]) -> Start:
    """What PEFT subtracted from the base before training."""
    return _STARTS.get(str(settings.get("init_lora_weights", "")).lower(), "")


def pattern_value(pattern: Mapping[str, float], address: str, default: float) -> float:
    """The value of the first pattern that matches the end of an address, as PEFT has it."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", address):
            return value
    return default


def scaling(settings: Mapping[str, Any], address: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank), of one module; without an alpha, alpha is the rank."""
    pattern: Mapping[str, float] = settings.get("alpha_pattern") or {}
    alpha = pattern_value(pattern, address, settings.get("lora_alpha", settings.get("alpha", rank)))
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def write(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    terms: Mapping[str, tuple[int, float]],
    settings: Mapping[str, Any],
    about: Mapping[str, str],
) -> None:
    """Write a folder PEFT reads, both files whole or neither.

    Args:
        folder: where to.
        tensors: by the file's keys.
        terms: rank and alpha by the address of each adapted module.
        settings: what else the configuration holds, `peft_type` among it.
        about: `base` and `fingerprint` of the model, where known.
    """
    alpha_name = "lora_alpha" if settings.get("peft_type", "LORA") == "LORA" else "alpha"
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": about.get("base", ""),
        "inference_mode": True,
        **ranks(terms, alpha_name),
        **settings,
    }
    write_folder(folder, config, tensors, about)


def ranks(terms: Mapping[str, tuple[int, float]], alpha_name: str) -> dict[str, Any]:
    """The commonest rank and alpha, and patterns for the modules that have others."""
    rank = Counter(r for r, _ in terms.values()).most_common(1)[0][0] if terms else 8
    alpha = Counter(a for _, a in terms.values()).most_common(1)[0][0] if terms else 8
    return {
        "r": rank,
        alpha_name: alpha,
        "rank_pattern": {re.escape(a): r for a, (r, _) in terms.items() if r != rank},
        "alpha_pattern": {re.escape(a): x for a, (_, x) in terms.items() if x != alpha},
    }
