"""A Llama's configuration, read from config.json as transformers writes it, old and new."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from inarch.errors import InarchError

_DEFAULTS = {
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "mistral": {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
}
# What configurations of neighbouring architectures hold. Where a file sets one of them to more than
# nothing, its weights were trained with other maths than this tree's.
_FOREIGN = (
    "attention_multiplier",
    "attn_logit_softcapping",
    "embedding_multiplier",
    "final_logit_softcapping",
    "layer_types",
    "logits_scaling",
    "no_rope_layers",
    "num_experts",
    "num_local_experts",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "use_qk_norm",
)
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")


Size = Annotated[int, msgspec.Meta(ge=1)]


class LlamaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes and settings of a Llama or Mistral."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Annotated[int, msgspec.Meta(ge=0)]
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    max_position_embeddings: Size
    rms_norm_eps: float
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None


def parse(given: Mapping[str, Any]) -> LlamaConfig:
    """The configuration of a checkpoint.

    Raises:
        InarchError: IA210 for a setting that is missing, of the wrong type, or that would make
            another model than this one.
    """
    config = {**_DEFAULTS.get(str(given.get("model_type")), _DEFAULTS["llama"])}
    config |= {k: v for k, v in given.items() if v is not None or k == "sliding_window"}
    heads = config.get("num_attention_heads")
    config.setdefault("num_key_value_heads", heads)
    if isinstance(heads, int) and heads > 0 and isinstance(config.get("hidden_size"), int):
        config.setdefault("head_dim", config["hidden_size"] // heads)
    if given.get("model_type") != "mistral":
        config["sliding_window"] = None  # in a Llama's file it means nothing, as to transformers
    config |= _rope(config)
    _refuse(config)
    try:
        return msgspec.convert(config, LlamaConfig)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), "config.json") from None


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings: `rope_parameters` since transformers 5, `rope_scaling` before."""
    new = config.get("rope_parameters") or {}
    old = config.get("rope_scaling") or {}
    settings = {**old, **new}
    theta = settings.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    kind = settings.pop("type", None)
    settings.setdefault("rope_type", kind or "default")
    if settings["rope_type"] in ("llama3", "yarn") and "max_position_embeddings" in config:
        original = config.get("original_max_position_embeddings")
        fallback = original or config["max_position_embeddings"]
        settings.setdefault("original_max_position_embeddings", fallback)
    plain = settings["rope_type"] == "default"
    partial = settings.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise _wrong("part of each head is not rotated", f"partial_rotary_factor = {partial}")
    return {"rope_theta": theta, "rope_scaling": None if plain else settings}


def _refuse(config: Mapping[str, Any]) -> None:
    act = config.get("hidden_act", "silu")
    if act not in ACTIVATIONS:
        raise _wrong(f"the activation `{act}` is not known", f"hidden_act = {act}")
    if config.get("quantization_config"):
        raise _wrong("its weights are quantised by a method of its own", "quantization_config")
    for name in _FOREIGN:
        if config.get(name) not in (None, False, 1):
            raise _wrong(f"`{name}` changes what a Llama computes", f"{name} = {config[name]}")
    heads, groups = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(groups, int) and (groups < 1 or heads % groups):
        raise _wrong(f"{heads} query heads can't share {groups} key heads", "num_key_value_heads")


def _wrong(why: str, where: str) -> InarchError:
    return InarchError(
        "IA210",
        "this configuration is not a Llama's that can be built",
        where=where,
        why=why,
        remedy="pass a Llama, Mistral or SmolLM2 checkpoint in plain weights",
    )
