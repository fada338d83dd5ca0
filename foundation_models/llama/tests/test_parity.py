"""The same logits and the same greedy tokens as transformers, over what checkpoints differ in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import inarch

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
SETTINGS = {
    "plain": ("llama", {}),
    "grouped queries": ("llama", {"num_key_value_heads": 2}),
    "one key head": ("llama", {"num_key_value_heads": 1}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "own head size": ("llama", {"head_dim": 12}),
    "gelu": ("llama", {"hidden_act": "gelu"}),
    "linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}},
    ),
    "dynamic rope": (
        "llama",
        {
            "max_position_embeddings": 8,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        },
    ),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "yarn, untruncated": ("llama", {"rope_parameters": {**YARN, "truncate": False}}),
    "yarn, mscale": (
        "llama",
        {"rope_parameters": {**YARN, "mscale": 0.8, "mscale_all_dim": 0.5}},
    ),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {"num_key_value_heads": 2, "sliding_window": None}),
    "narrow window": ("mistral", {"num_key_value_heads": 2, "sliding_window": 5}),
    "wide window": ("mistral", {"num_key_value_heads": 2, "sliding_window": 40, "head_dim": 8}),
}


@pytest.fixture(params=SETTINGS, ids=lambda name: name.replace(" ", "_"))
def models(request: pytest.FixtureRequest, pair: Any) -> tuple[Any, Any]:
    kind, settings = SETTINGS[request.param]
    return pair(kind, seed=len(request.param), **settings)


@pytest.fixture(
    params=[n for n in SETTINGS if n != "dynamic rope"], ids=lambda n: n.replace(" ", "_")
)
def static(request: pytest.FixtureRequest, pair: Any) -> tuple[Any, Any]:
    """All but dynamic NTK, which as published turns a key by the length it was first seen at.

    In transformers that is the length of the longest row; here each row has its own.
    """
    kind, settings = SETTINGS[request.param]
    return pair(kind, seed=len(request.param), **settings)


def test_logits_equal_transformers(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    ids = torch.randint(0, 97, (2, 19), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        actual = ours(ids)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_logits_of_left_padded_batches_equal_transformers(static: tuple[Any, Any]) -> None:
    theirs, ours = static
    ids = torch.randint(0, 97, (3, 11), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2, :9] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
        actual = ours(ids, mask)
    real = mask.bool()
    assert torch.isfinite(actual).all()
    torch.testing.assert_close(actual[real], expected[real], rtol=1e-5, atol=1e-5)


def test_greedy_generation_with_the_cache_equals_transformers(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    ids = torch.randint(0, 97, (1, 7), generator=torch.Generator().manual_seed(3))
    expected = theirs.generate(ids, max_new_tokens=14, do_sample=False, eos_token_id=None)
    steps = ours.generate_ids(ids.tolist(), max_new_tokens=14, stop=frozenset())
    assert [token for [token] in steps] == expected[0, 7:].tolist()


def test_the_cache_changes_no_token(static: tuple[Any, Any]) -> None:
    _, ours = static
    ids = torch.randint(0, 97, (1, 7), generator=torch.Generator().manual_seed(4))
    steps = ours.generate_ids(ids.tolist(), max_new_tokens=10, stop=frozenset())
    cached = [token for [token] in steps]
    with torch.no_grad():
        for _ in range(10):
            ids = torch.cat((ids, ours(ids)[:, -1:].argmax(-1)), dim=1)
    assert cached == ids[0, 7:].tolist()


def test_logits_of_a_padded_batch_are_those_of_transformers_for_each_row_alone(
    models: tuple[Any, Any],
) -> None:
    theirs, ours = models
    ids = torch.randint(0, 97, (3, 19), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :14] = 0  # ascending: transformers' dynamic NTK remembers a longer text
    mask[1, :4] = 0
    with torch.no_grad():
        actual = ours(ids, mask)
        for row, real in enumerate(mask.bool()):
            expected = theirs(ids[row, real][None]).logits[0]
            torch.testing.assert_close(actual[row, real], expected, rtol=1e-5, atol=1e-5)


def test_a_batch_of_unequal_prompts_equals_each_alone(models: tuple[Any, Any]) -> None:
    _, ours = models
    prompts = [[5, 6, 7, 8, 9, 10, 11], [3], [9, 8, 7]]
    together = list(ours.generate_ids(prompts, max_new_tokens=8, stop=frozenset()))
    for row, prompt in enumerate(prompts):
        alone = ours.generate_ids([prompt], max_new_tokens=8, stop=frozenset())
        assert [tokens[row] for tokens in together] == [token for [token] in alone]


def test_greedy_generation_of_left_padded_batches_equals_transformers(
    static: tuple[Any, Any],
) -> None:
    theirs, ours = static
    prompts = [[5, 6, 7, 8, 9, 10, 11], [3, 4], [9, 8, 7, 6]]
    ids = torch.tensor([[0] * (7 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (7 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    expected = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=10, do_sample=False, eos_token_id=None
    )
    steps = list(ours.generate_ids(prompts, max_new_tokens=10, stop=frozenset()))
    assert [list(row) for row in zip(*steps, strict=True)] == expected[:, 7:].tolist()


def test_gradients_of_the_input_embeddings_equal_transformers(pair: Any) -> None:
    theirs, ours = pair(num_key_value_heads=2)
    ids = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(5))
    theirs(ids).logits.square().mean().backward()
    weight = ours.tree.model.embed_tokens.weight.requires_grad_(True)
    ours(ids).square().mean().backward()
    expected = theirs.get_input_embeddings().weight.grad
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_transformers_to_its_rounding(
    pair: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    theirs, _ = pair(num_key_value_heads=2)
    ours = inarch.load(tmp_path, dtype=dtype)
    ids = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        expected, actual = theirs.to(dtype)(ids).logits, ours(ids)
    assert actual.dtype == expected.dtype == dtype
    scale = expected.float().abs().max()
    assert (actual.float() - expected.float()).abs().max() <= 4 * torch.finfo(dtype).eps * scale


def test_the_tree_has_the_checkpoints_names(pair: Any) -> None:
    theirs, ours = pair(tie_word_embeddings=True)
    assert set(ours.state_dict()) == set(theirs.state_dict())
