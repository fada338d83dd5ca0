"""Attention, its masks, and the layers beside it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from inarch.nn import (
    RMSNorm,
    TransposedLinear,
    attend,
    causal_mask,
    merge_heads,
    positions_of,
    split_heads,
)


def looks(time: int, keys: int, window: int | None, padding: list[int] | None) -> torch.Tensor:
    """Who may look where, one pair at a time, [time, keys]."""
    allowed = torch.zeros(time, keys, dtype=torch.bool)
    for row in range(time):
        at = keys - time + row
        for key in range(at + 1):
            near = window is None or at - key < window
            real = padding is None or bool(padding[key])
            allowed[row, key] = (near and real) or key == at
    return allowed


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("time", [2, 5, 9])
@pytest.mark.parametrize("padded", [0, 4])
def test_masks_equal_their_definition(window: int | None, time: int, padded: int) -> None:
    row = [0] * padded + [1] * (9 - padded)
    padding = torch.tensor([row, [1] * 9]).bool()
    mask = causal_mask(time, 9, padding=padding, window=window)
    assert mask is not None
    assert mask.shape == (2, 1, time, 9)
    assert torch.equal(mask[0, 0], looks(time, 9, window, row))
    assert torch.equal(mask[1, 0], looks(time, 9, window, None))


@pytest.mark.parametrize(("time", "keys", "window"), [(6, 6, None), (1, 6, None), (6, 6, 6)])
def test_no_mask_is_made_where_plain_causal_attention_says_the_same(
    time: int, keys: int, window: int | None
) -> None:
    assert causal_mask(time, keys, window=window) is None


@pytest.mark.parametrize("time", [1, 6])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_equals_its_formula(time: int, groups: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 4, time, 8)
    key, value = torch.randn(2, groups, 6, 8), torch.randn(2, groups, 6, 8)
    actual = attend(query, key, value, causal_mask(time, 6))
    wide_key = key.repeat_interleave(4 // groups, dim=1)
    wide_value = value.repeat_interleave(4 // groups, dim=1)
    scores = query @ wide_key.mT / 8**0.5
    scores = scores.masked_fill(~looks(time, 6, None, None), float("-inf"))
    torch.testing.assert_close(actual, scores.softmax(-1) @ wide_value, rtol=1e-5, atol=1e-6)


def test_merging_heads_undoes_splitting_them() -> None:
    x = torch.randn(2, 5, 24)
    heads = split_heads(x, head_dim=6)
    assert heads.shape == (2, 4, 5, 6)
    assert torch.equal(merge_heads(heads), x)


def test_positions_begin_at_the_first_real_token() -> None:
    padding = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])
    assert positions_of(padding).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3], [0, 1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_equals_transformers_bit_by_bit(dtype: torch.dtype) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    torch.manual_seed(0)
    ours, theirs = RMSNorm(32, 1e-6), llama.LlamaRMSNorm(32, 1e-6)
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7, 32).to(dtype) * 5
    assert torch.equal(ours.to(dtype)(x), theirs.to(dtype)(x))


def test_transposed_linear_equals_transformers_conv1d() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    theirs = pytorch_utils.Conv1D(12, 8)
    ours = TransposedLinear(8, 12)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 8)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("window", [None, 2, 5])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (2, 2), (2, 4)])
def test_keys_and_queries_a_mask_does_not_tell_of_stand_before_the_others(
    queries: int, keys: int, padded: bool, window: int | None
) -> None:
    """As if the whole had been masked at once, for a text of 4 with virtual ones before it."""
    torch.manual_seed(0)
    pads = [0, 2] if padded else [0, 0]
    padding = torch.tensor([[i >= pad for i in range(4)] for pad in pads])
    mask = causal_mask(4, 4, padding=padding if padded else None, window=window)
    whole = torch.zeros(2, 1, 4 + queries, 4 + keys, dtype=torch.bool)
    for row, pad in enumerate(pads):  # positions count what is there: virtual ones and the text
        places = [*range(keys), *(keys + i - pad for i in range(4))]
        for i, at in enumerate(places[keys - queries :]):
            for j, other in enumerate(places):
                there = j < keys or j >= keys + pad
                whole[row, 0, i, j] = there and 0 <= at - other < (window or 99)
    q, k, v = (torch.randn(2, 2, 4 + n, 8) for n in (queries, keys, keys))
    if whole is None:
        whole = torch.ones(4 + queries, 4 + keys).tril(keys - queries).bool()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=whole)
    actual = attend(q, k, v, mask, window=window)
    for row, pad in enumerate(pads):
        kept = [i for i in range(4 + queries) if not queries <= i < queries + pad]
        torch.testing.assert_close(actual[row, :, kept], expected[row, :, kept])


@pytest.mark.parametrize("window", [None, 2])
def test_a_single_query_sees_all_keys_of_its_window(window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    seen = slice(0 if window is None else 5 - window, None)
    expected = F.scaled_dot_product_attention(q, k[:, :, seen], v[:, :, seen])
    torch.testing.assert_close(attend(q, k, v, None, window=window), expected)
