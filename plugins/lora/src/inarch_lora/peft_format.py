"""PEFT's folder: `adapter_config.json` and `adapter_model.safetensors`, read and written.

Source: PEFT's LoraConfig, `get_peft_model_state_dict` and `check_target_module_exists`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from inarch.errors import InarchError

PREFIX = "base_model.model."
_KINDS = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_B.bias": "lora_B_bias",
    "lora_embedding_A": "lora_embedding_A",
    "lora_embedding_B": "lora_embedding_B",
    "base_layer.bias": "bias",
    "bias": "bias",
}
# PEFT wraps the layers it adapts, so the bias of one of them stands under `base_layer`.
SUFFIXES = {name: suffix for suffix, name in reversed(_KINDS.items())}
BARE_BIAS = "bias"
# What would change the result and is not built: refused when it is set.
_UNSUPPORTED = (
    "use_dora",
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


def parse_keys(keys: Iterable[str], where: str) -> dict[str, dict[str, str]]:
    """The file's keys by the address they are for, then by the parameter they fill.

    Raises:
        InarchError: IA423 for a key that is no LoRA's.
    """
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        path = key.removeprefix(PREFIX)
        suffix = next((s for s in _KINDS if path.endswith(f".{s}")), None)
        if suffix is None:
            raise InarchError(
                "IA423",
                f"`{key}` is no tensor of a LoRA",
                where=f"{where}: {key}",
                why=f"a LoRA's keys end in: {', '.join(_KINDS)}",
                remedy="leave it out when saving, or use the adapter it belongs to",
            )
        found.setdefault(path.removesuffix(f".{suffix}"), {})[_KINDS[suffix]] = key
    return found


def refuse_unsupported(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a setting that would change the result and that LoRA here does not have.

    Raises:
        InarchError: IA424.
    """
    named = [name for name in _UNSUPPORTED if settings.get(name)]
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        named = ["peft_type"]
    start = str(settings.get("init_lora_weights", ""))
    if start.lower().startswith(_CHANGES_BASE):
        named.append("init_lora_weights")
    if named:
        raise InarchError(
            "IA424",
            f"the adapter needs `{named[0]}`, which this LoRA does not have",
            where=f"{where}: {named[0]} = {json.dumps(settings.get(named[0]))}",
            why="without it the result would be another, so it is not ignored",
            remedy="convert the adapter to a plain LoRA with PEFT, which can merge it first",
        )


def pattern_value(pattern: Mapping[str, float], address: str, default: float) -> float:
    """The value of the first pattern that matches the end of an address, as PEFT has it."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", address):
            return value
    return default


def scaling(settings: Mapping[str, Any], address: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank), of one module; without an alpha, alpha is the rank."""
    pattern: Mapping[str, float] = settings.get("alpha_pattern") or {}
    alpha = pattern_value(pattern, address, settings.get("lora_alpha", rank))
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def targeted(settings: Mapping[str, Any], address: str) -> bool:
    """Whether PEFT's settings would adapt the module at an address."""
    targets: str | list[str] | None = settings.get("target_modules")
    if (
        targets is None
        or targets == "all-linear"
        or _matches(settings.get("exclude_modules"), address)
    ):
        return False
    if not _matches(targets, address):
        return False
    layers = settings.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return True
    patterns = settings.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", address)
        if found:
            return int(found["layer"]) in ([layers] if isinstance(layers, int) else layers)
    return False


def _matches(targets: str | list[str] | None, address: str) -> bool:
    if not targets:
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, address) is not None
    return any(address == t or address.endswith(f".{t}") for t in targets)


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
        settings: what else the configuration holds.
        about: `base` and `fingerprint` of the model, where known.
    """
    rank = Counter(r for r, _ in terms.values()).most_common(1)[0][0] if terms else 8
    alpha = Counter(a for _, a in terms.values()).most_common(1)[0][0] if terms else 8
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": about.get("base", ""),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(a): r for a, (r, _) in terms.items() if r != rank},
        "alpha_pattern": {re.escape(a): x for a, (_, x) in terms.items() if x != alpha},
        **settings,
    }
    metadata = {"format": "pt"}
    if "fingerprint" in about:
        metadata["inarch.base_fingerprint"] = about["fingerprint"]
    if "base" in about:
        metadata["inarch.base"] = about["base"]
    weights = folder / "adapter_model.safetensors"
    partial = folder / ".adapter_model.safetensors.partial"
    save_file({k: t.detach().contiguous().cpu() for k, t in tensors.items()}, partial, metadata)
    partial.replace(weights)
    text = folder / ".adapter_config.json.partial"
    text.write_text(json.dumps(config, indent=2) + "\n")
    text.replace(folder / "adapter_config.json")
