"""PEFT's folders of prompt learning: settings of virtual tokens, and one tensor.

Source: PEFT's `PromptLearningConfig`, `PrefixEncoder` and `PeftModel.get_prompt`. A projection or
an encoder that training went through is not in the file: what it gave is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inarch.errors import InarchError
from inarch.weights import WeightsHeader

KEY = "prompt_embeddings"


def tokens_of(weights: WeightsHeader, kinds: tuple[str, ...], model: Mapping[str, int]) -> int:
    """How many virtual tokens a file has, with its settings checked against it and the model.

    Args:
        weights: the file.
        kinds: the `peft_type`s whose files these are.
        model: what the settings must be for this model, by their names.

    Raises:
        InarchError: IA441 for a tensor that is none of theirs, IA442 for settings that don't fit.
    """
    for key in weights.keys():  # noqa: SIM118 - no mapping
        if key != KEY:
            raise InarchError(
                "IA441",
                f"`{key}` is no tensor of virtual tokens",
                where=f"{weights.path}: {key}",
                why=f"such a file holds `{KEY}` alone",
                remedy="load it with the adapter it belongs to",
            )
    shape = weights.shape(KEY)
    if len(shape) != 2:
        raise _denied(weights, KEY, f"has {len(shape)} dimensions", "it is [virtual tokens, width]")
    settings = weights.settings
    if settings.get("peft_type", kinds[0]) not in kinds:
        kind = json.dumps(settings["peft_type"])
        raise _denied(weights, f"peft_type = {kind}", "is of another method", f"not {kinds[0]}")
    expected = {"num_virtual_tokens": shape[0], "num_transformer_submodules": 1, **model}
    for name, wanted in expected.items():
        told = settings.get(name)
        if told is not None and told != wanted:
            of = f"the tensor {KEY}" if name == "num_virtual_tokens" else "this model"
            raise _denied(weights, f"{name} = {told}", f"is not that of {of}", f"it is {wanted}")
    return shape[0]


def config(
    kind: str, tokens: int, model: Mapping[str, int], about: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """The settings as PEFT writes them for a decoder."""
    return {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": about.get("base", ""),
        "inference_mode": True,
        "num_virtual_tokens": tokens,
        "num_transformer_submodules": 1,
        **model,
        **more,
    }


def _denied(weights: WeightsHeader, at: str, what: str, why: str) -> InarchError:
    name = at.partition(" ")[0]
    return InarchError(
        "IA442",
        f"the adapter's `{name}` {what}",
        where=f"{weights.path}: {at}",
        why=why,
        remedy="load the base it was trained on, with the settings it was saved with",
    )
