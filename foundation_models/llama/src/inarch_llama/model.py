"""Llama as a language model: what `inarch.load` makes of a checkpoint of these architectures."""

from __future__ import annotations

from typing import Any

from inarch.nn import LanguageModel
from inarch.tree import Chain
from inarch_llama.config import LlamaConfig, parse
from inarch_llama.tree import llama

_TINY = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


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

    @classmethod
    def tiny_configs(cls) -> dict[str, dict[str, Any]]:
        llama, mistral = {"model_type": "llama", **_TINY}, {"model_type": "mistral", **_TINY}
        return {
            "grouped queries": {**llama, "num_key_value_heads": 2},
            "tied, biased, long": {
                **llama,
                "tie_word_embeddings": True,
                "attention_bias": True,
                "mlp_bias": True,
                "rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 16},
            },
            "mistral's window": {
                **mistral,
                "num_key_value_heads": 1,
                "head_dim": 8,
                "sliding_window": 4,
            },
        }
