"""Llama as a language model: what `inarch.load` makes of a checkpoint of these architectures."""

from __future__ import annotations

from typing import Any

from inarch.nn import LanguageModel
from inarch.tree import Chain
from inarch_llama.config import LlamaConfig, parse
from inarch_llama.tree import llama


class Llama(LanguageModel):
    """LLaMA 1 to 3, Mistral, SmolLM2."""

    config: LlamaConfig
    ignored = ("*.rotary_emb.inv_freq",)

    @classmethod
    def parse_config(cls, config: dict[str, Any]) -> LlamaConfig:
        return parse(config)

    @classmethod
    def build(cls, config: LlamaConfig) -> dict[str, Chain]:
        return {"": llama(config)}
