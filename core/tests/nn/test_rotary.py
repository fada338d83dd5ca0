"""Rotary positions, against transformers' own functions bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inarch.errors import InarchError
from inarch.nn import Rotary, rotate

rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
from transformers import LlamaConfig  # noqa: E402
from transformers.models.llama.modeling_llama import (  # noqa: E402
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

FACTORS = st.floats(1.0, 64.0)
KINDS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "default": st.just({}),
    "linear": st.fixed_dictionaries({"factor": FACTORS}),
    "llama3": st.fixed_dictionaries(
        {
            "factor": FACTORS,
            "low_freq_factor": st.floats(0.5, 2.0),
            "high_freq_factor": st.floats(2.5, 8.0),
            "original_max_position_embeddings": st.sampled_from([64, 4096, 8192]),
        }
    ),
    "yarn": st.fixed_dictionaries(
        {
            "factor": FACTORS,
            "original_max_position_embeddings": st.sampled_from([64, 4096, 8192]),
        },
        optional={
            "attention_factor": st.floats(0.5, 2.0),
            "beta_fast": st.floats(16.0, 64.0),
            "beta_slow": st.floats(0.5, 4.0),
            "mscale": st.floats(0.1, 2.0),
            "mscale_all_dim": st.floats(0.1, 2.0),
            "truncate": st.booleans(),
        },
    ),
}


def theirs(scaling: dict[str, Any], head_dim: int, theta: float, length: int) -> Any:
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=length,
        rope_parameters={**scaling, "rope_theta": theta},
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_cosine_and_sine_equal_transformers(kind: str, data: st.DataObject) -> None:
    scaling = {"rope_type": kind, **data.draw(KINDS[kind])}
    head_dim = data.draw(st.sampled_from([8, 12, 64, 128]))
    theta = data.draw(st.sampled_from([10000.0, 100000.0, 500000.0]))
    expected = LlamaRotaryEmbedding(theirs(scaling, head_dim, theta, 16384))
    actual = Rotary(head_dim, theta, 16384, scaling)
    assert torch.equal(actual.inverse_frequencies, expected.inv_freq)
    assert actual.factor == expected.attention_scaling
    x, positions = torch.zeros(1, 1), torch.tensor([[0, 1, 7, 100, 9000]])
    for ours, other in zip(actual(x, positions=positions), expected(x, positions), strict=True):
        torch.testing.assert_close(ours[:, 0], other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [5, 16, 17, 40, 100])
def test_dynamic_positions_stretch_as_transformers_do(length: int) -> None:
    scaling = {"rope_type": "dynamic", "factor": 3.0}
    expected = LlamaRotaryEmbedding(theirs(scaling, 16, 10000.0, 16))
    x, positions = torch.zeros(1, 1), torch.arange(length)[None]
    cos, sin = Rotary(16, 10000.0, 16, scaling)(x, positions=positions)
    expected_cos, expected_sin = expected(x, positions)
    torch.testing.assert_close(cos[:, 0], expected_cos, rtol=0, atol=2e-6)
    torch.testing.assert_close(sin[:, 0], expected_sin, rtol=0, atol=2e-6)


def test_dynamic_positions_remember_no_earlier_call() -> None:
    rotary = Rotary(16, 10000.0, 16, {"rope_type": "dynamic", "factor": 3.0})
    x, short = torch.zeros(1, 1), torch.arange(8)[None]
    before = rotary(x, positions=short)[0]
    rotary(x, positions=torch.arange(64)[None])
    assert torch.equal(rotary(x, positions=short)[0], before)


def test_rotating_equals_transformers_bit_by_bit() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    cos, sin = Rotary(8, 10000.0, 64)(query, positions=torch.arange(5)[None])
    expected = apply_rotary_pos_emb(query, key, cos[:, 0], sin[:, 0])
    assert torch.equal(rotate(query, cos=cos, sin=sin), expected[0])
    assert torch.equal(rotate(key, cos=cos, sin=sin), expected[1])


def test_frequencies_are_made_on_the_cpu_under_the_meta_device() -> None:
    with torch.device("meta"):
        rotary = Rotary(8, 10000.0, 64)
    assert torch.equal(rotary.inverse_frequencies, Rotary(8, 10000.0, 64).inverse_frequencies)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_frequencies_stay_float32_when_the_tree_is_cast(dtype: torch.dtype) -> None:
    rotary = Rotary(8, 10000.0, 64)
    before = rotary.inverse_frequencies.clone()
    rotary.to(dtype)
    assert torch.equal(rotary.inverse_frequencies, before)
    cos, _ = rotary(torch.zeros(1, dtype=dtype), positions=torch.arange(3)[None])
    assert cos.dtype == dtype


def test_frequencies_are_in_no_checkpoint() -> None:
    assert Rotary(8, 10000.0, 64).state_dict() == {}


@pytest.mark.parametrize(
    ("scaling", "names"),
    [
        ({"rope_type": "longrope"}, "longrope"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "dynamic"}, "factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "original_max_position_embeddings"),
    ],
)
def test_scaling_that_is_unknown_or_lacks_a_setting_is_refused(
    scaling: dict[str, Any], names: str
) -> None:
    with pytest.raises(InarchError) as caught:
        Rotary(8, 10000.0, 64, scaling)
    assert caught.value.code == "IA511"
    assert names in str(caught.value)
