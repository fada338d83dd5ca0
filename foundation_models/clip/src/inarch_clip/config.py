"""CLIP's configuration, read from config.json as transformers writes it: both towers or one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from inarch.errors import InarchError

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The text tower.

    Attributes:
        eos_token_id: ends a text and is where it is pooled. 2 stands in old files for the
            highest id of the text, as they were written before the id itself was recorded.
        projection_dim: of the projection; None where there is none.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    projection_dim: int | None = None


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The vision tower; `projection_dim` is None where there is no projection."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = None


class ClipConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint: one tower or both."""

    text: TextConfig | None = None
    vision: VisionConfig | None = None


def parse(given: Mapping[str, Any]) -> ClipConfig:
    """The configuration of a checkpoint of `clip`, `clip_text_model` or `clip_vision_model`.

    Raises:
        InarchError: IA210 for a setting that is missing, of the wrong type, or that would make
            another model than this one.
    """
    kind = given.get("model_type")
    if kind == "clip_text_model":
        return ClipConfig(text=parse_text(given, projection=_projects(given)))
    if kind == "clip_vision_model":
        return ClipConfig(vision=parse_vision(given, projection=_projects(given)))
    width = {"projection_dim": given.get("projection_dim", 512)}
    text, vision = (
        {**(given.get(f"{name}_config_dict") or given.get(f"{name}_config") or {}), **width}
        for name in ("text", "vision")
    )
    return ClipConfig(
        text=parse_text(text, projection=True), vision=parse_vision(vision, projection=True)
    )


def _projects(given: Mapping[str, Any]) -> bool:
    return any(str(a).endswith("WithProjection") for a in given.get("architectures") or ())


def parse_text(given: Mapping[str, Any], *, projection: bool) -> TextConfig:
    """A text tower's configuration, with its projection or without.

    Raises:
        InarchError: IA210.
    """
    return _parsed(TextConfig, _TEXT, given, projection)


def parse_vision(given: Mapping[str, Any], *, projection: bool) -> VisionConfig:
    """A vision tower's configuration, with its projection or without.

    Raises:
        InarchError: IA210.
    """
    return _parsed(VisionConfig, _VISION, given, projection)


def _parsed(kind: Any, defaults: dict[str, int], given: Mapping[str, Any], projection: bool) -> Any:
    config = {**defaults, **{k: v for k, v in given.items() if v is not None}}
    config["projection_dim"] = config.get("projection_dim", 512) if projection else None
    act = config.get("hidden_act", "quick_gelu")
    if act not in ACTIVATIONS:
        raise _wrong(f"the activation `{act}` is not known", f"hidden_act = {act}")
    if config.get("quantization_config"):
        raise _wrong("its weights are quantised by a method of its own", "quantization_config")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if isinstance(width, int) and isinstance(heads, int) and (heads < 1 or width % heads):
        raise _wrong(f"{heads} heads can't share a width of {width}", "num_attention_heads")
    config |= {n: _side(config[n], n) for n in ("image_size", "patch_size") if n in config}
    try:
        return msgspec.convert(config, kind)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), "config.json") from None


def _side(value: Any, name: str) -> Any:
    """The side of a square given as one number or two."""
    if isinstance(value, list | tuple):
        if len(value) != 2 or value[0] != value[1]:
            raise _wrong("images and patches are square", f"{name} = {value}")
        return value[0]
    return value


def _wrong(why: str, where: str) -> InarchError:
    return InarchError(
        "IA210",
        "this configuration is not a CLIP's that can be built",
        where=where,
        why=why,
        remedy="pass a CLIP checkpoint in plain weights",
    )
