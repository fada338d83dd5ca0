"""What llama.cpp's architecture `llama` is in transformers' terms: configuration and names.

Llama, Mistral and SmolLM2 files all have it. Sources: the GGUF specification's keys, and the
converter that wrote the files (convert_hf_to_gguf.py), which also reorders the rows of query and
key: for each head, transformers' [2, half] becomes [half, 2].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

from inarch.errors import InarchError

_BLOCK = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
ROPE_FACTORS = "rope_freqs.weight"


def names(blocks: int) -> dict[str, str]:
    """transformers' name of each GGUF name, weights and biases."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, blocks)
    modules = ["model.embed_tokens", "model.norm", "lm_head"]
    modules += [f"model.layers.{i}.{module}" for i in range(blocks) for module in _BLOCK]
    found: dict[str, str] = {}
    for module in modules:
        for kind in ("weight", "bias"):
            name = table.get_name(f"{module}.{kind}", try_suffixes=(".weight", ".bias"))
            if name is not None:
                found[name] = f"{module}.{kind}"
    return found


def permuted_heads(name: str, config: Mapping[str, Any]) -> int:
    """The number of heads whose rows were reordered in a tensor; 0 where none were."""
    if ".self_attn.q_proj." in name:
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if ".self_attn.k_proj." in name else 0


def config(
    fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, Any]:
    """transformers' config.json for a file's metadata.

    Args:
        fields: the metadata by key.
        shapes: of the tensors, by GGUF name, sizes in torch's order.
        where: the file, for errors.

    Raises:
        InarchError: IA251 for another architecture, or metadata a Llama needs and the file lacks.
    """
    kind = fields.get("general.architecture")
    if kind != "llama" or fields.get("llama.expert_count"):
        what = "llama with experts" if kind == "llama" else kind
        raise InarchError(
            "IA251",
            f"GGUF files of architecture `{what}` can't be read yet",
            where=f"{where}: general.architecture",
            why="the known one is llama, which Llama, Mistral and SmolLM2 files have",
            remedy="use the model's transformers folder",
        )

    def need(key: str) -> Any:
        if f"llama.{key}" not in fields:
            raise InarchError(
                "IA251",
                f"the file lacks `llama.{key}`",
                where=where,
                why="a Llama needs it",
                remedy="download it again, or convert the checkpoint anew",
            )
        return fields[f"llama.{key}"]

    heads = int(need("attention.head_count"))
    hidden = int(need("embedding_length"))
    window = fields.get("llama.attention.sliding_window")
    result: dict[str, Any] = {
        "model_type": "mistral" if window else "llama",
        "architectures": ["MistralForCausalLM" if window else "LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": int(need("feed_forward_length")),
        "num_hidden_layers": int(need("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(fields.get("llama.attention.head_count_kv", heads)),
        "head_dim": int(fields.get("llama.attention.key_length", hidden // heads)),
        "max_position_embeddings": int(need("context_length")),
        "rms_norm_eps": float(need("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
    }
    if window:
        result["sliding_window"] = int(window)
    for name in ("bos", "eos", "padding"):
        token = fields.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None:
            result[f"{name.replace('padding', 'pad')}_token_id"] = int(token)
    scaling = _scaling(fields)
    return {**result, "rope_scaling": scaling} if scaling else result


def _scaling(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = fields.get("llama.rope.scaling.type")
    factor = fields.get("llama.rope.scaling.factor", fields.get("llama.rope.scale_linear"))
    if kind in (None, "none", "linear"):
        return {"rope_type": "linear", "factor": float(factor)} if factor not in (None, 1) else None
    if kind != "yarn":
        raise InarchError(
            "IA251",
            f"rope scaling `{kind}` in a GGUF file can't be read",
            where="llama.rope.scaling.type",
            remedy="load the checkpoint's transformers folder",
        )
    result: dict[str, Any] = {"rope_type": "yarn", "factor": float(factor or 1.0)}
    keys = {
        "original_context_length": "original_max_position_embeddings",
        "attn_factor": "attention_factor",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    }
    for key, name in keys.items():
        value = fields.get(f"llama.rope.scaling.{key}")
        if value is not None:
            result[name] = value
    return result


def llama3_scaling(factors: np.ndarray[Any, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The Llama 3 scaling whose factors a file holds, one for each rotary frequency.

    The file has the factors and not what they were made from, so Llama 3's published settings are
    tried, and must give the very factors.
    """
    exponents = np.arange(0, 2 * len(factors), 2, dtype=np.float64) / (2 * len(factors))
    frequencies = float(config["rope_theta"]) ** -exponents
    for original in (8192, 4096):
        settings = {
            "rope_type": "llama3",
            "factor": float(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        if np.allclose(_llama3(frequencies, settings), factors, rtol=1e-3):
            return settings
    raise InarchError(
        "IA251",
        "the file scales rotary positions by factors that are not Llama 3's",
        where=ROPE_FACTORS,
        remedy="use the model's transformers folder",
    )


def _llama3(frequencies: np.ndarray[Any, Any], s: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    length = 2 * np.pi / frequencies
    original, low, high = (
        s["original_max_position_embeddings"],
        s["low_freq_factor"],
        s["high_freq_factor"],
    )
    smooth = np.clip((original / length - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / s["factor"] + smooth)
