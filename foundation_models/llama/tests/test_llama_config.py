"""Configurations as checkpoints have them, old and new, and those that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inarch.errors import InarchError
from inarch_llama.config import LlamaConfig
from inarch_llama.model import Llama

PLAIN = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def parsed(**settings: Any) -> LlamaConfig:
    return Llama.parse_config({**PLAIN, **settings})


def test_what_a_file_leaves_out_is_what_transformers_takes() -> None:
    transformers = pytest.importorskip("transformers")
    for kind, expected in (
        ("llama", transformers.LlamaConfig(**PLAIN)),
        ("mistral", transformers.MistralConfig(**{**PLAIN, "num_attention_heads": 8})),
    ):
        settings = {"model_type": kind} | ({"num_attention_heads": 8} if kind == "mistral" else {})
        ours = parsed(**settings)
        for name in (
            "num_key_value_heads",
            "rms_norm_eps",
            "max_position_embeddings",
            "hidden_act",
            "tie_word_embeddings",
        ):
            assert getattr(ours, name) == getattr(expected, name), (kind, name)
        assert ours.sliding_window == getattr(expected, "sliding_window", None)
        assert ours.rope_theta == expected.rope_parameters["rope_theta"]


def test_rotary_settings_of_old_and_new_files_are_the_same() -> None:
    original = {"original_max_position_embeddings": 8192}
    old = parsed(rope_theta=500000.0, rope_scaling={"type": "llama3", **SCALING, **original})
    new = parsed(
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000, **SCALING, **original}
    )
    assert old == new
    assert new.rope_theta == 500000.0


def test_the_length_a_checkpoint_was_stretched_from_falls_back_to_its_own() -> None:
    settings = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    beside = parsed(**settings, max_position_embeddings=64, original_max_position_embeddings=16)
    assert beside.rope_scaling is not None
    assert beside.rope_scaling["original_max_position_embeddings"] == 16
    alone = parsed(**settings, max_position_embeddings=64)
    assert alone.rope_scaling is not None
    assert alone.rope_scaling["original_max_position_embeddings"] == 64


def test_a_window_counts_for_mistral_only_as_in_transformers() -> None:
    assert parsed(sliding_window=8).sliding_window is None
    wide = {"num_attention_heads": 8, "num_key_value_heads": 2}
    assert parsed(model_type="mistral", sliding_window=8, **wide).sliding_window == 8
    assert parsed(model_type="mistral", sliding_window=None, **wide).sliding_window is None


def test_settings_without_meaning_for_the_maths_are_passed_over() -> None:
    harmless = {
        "pretraining_tp": 4,
        "use_cache": False,
        "attention_dropout": 0.1,
        "initializer_range": 0.5,
        "torch_dtype": "bfloat16",
        "residual_multiplier": 1.0,
        "num_experts": None,
    }
    assert parsed(**harmless) == parsed()


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ({"hidden_act": "xielu"}, "xielu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"intermediate_size": -4}, "intermediate_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"attention_multiplier": 0.5}, "attention_multiplier"),
        ({"no_rope_layers": [1, 1, 1, 0]}, "no_rope_layers"),
    ],
    ids=str,
)
def test_settings_that_make_another_model_are_refused_by_name(
    setting: dict[str, Any], names: str
) -> None:
    with pytest.raises(InarchError) as caught:
        parsed(**setting)
    assert caught.value.code == "IA210"
    assert names in str(caught.value)


def test_unknown_rotary_positions_are_refused_when_the_tree_is_built() -> None:
    with pytest.raises(InarchError) as caught:
        Llama.build(parsed(rope_scaling={"rope_type": "longrope", "factor": 2.0}))
    assert caught.value.code == "IA511"


def test_the_source_of_attention_reads_as_the_paper() -> None:
    with torch.device("meta"):
        tree = Llama.build(parsed())[""]
    assert tree.model.layers[0].self_attn.source == (
        "def forward(self, x, *, cos, sin, mask):\n"
        "    q_proj = self.q_proj(x)\n"
        "    heads = split_heads(q_proj)\n"
        "    query = rotate(heads, cos=cos, sin=sin)\n"
        "    k_proj = self.k_proj(x)\n"
        "    heads = split_heads(k_proj)\n"
        "    key = rotate(heads, cos=cos, sin=sin)\n"
        "    v_proj = self.v_proj(x)\n"
        "    value = split_heads(v_proj)\n"
        "    attend_ = attend(query, key, value, mask)\n"
        "    merge = merge_heads(attend_)\n"
        "    return self.o_proj(merge)\n"
    )


def test_every_layer_has_one_and_the_same_forward() -> None:
    with torch.device("meta"):
        tree = Llama.build(parsed(num_hidden_layers=5))[""]
    assert len({layer.forward.__code__ for layer in tree.model.layers}) == 1


def test_the_tree_asks_its_caller_for_positions_and_a_mask_alone() -> None:
    with torch.device("meta"):
        tree = Llama.build(parsed())[""]
    assert set(tree.inputs) == {"input_ids", "positions", "mask"}


def test_each_role_of_the_manifest_names_sites_of_the_tree() -> None:
    from inarch.adapters import SiteView
    from inarch.plugins import index

    roles = index().models["llama"].roles
    with torch.device("meta"):
        trees = Llama.build(parsed())
    sites = SiteView(trees, roles)
    for role in roles:
        assert sites.find([role]), role
