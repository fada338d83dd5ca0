"""Choosing tokens, against transformers' logits processors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inarch.errors import InarchError
from inarch.nn import Sampling
from inarch.nn.sampling import penalised

processors = pytest.importorskip("transformers.generation.logits_process")


def scores(seed: int, batch: int = 3, vocabulary: int = 50) -> torch.Tensor:
    return torch.randn(batch, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 3.0),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.none() | st.floats(0.01, 1.0),
    min_p=st.none() | st.floats(0.0, 1.0),
)
def test_kept_tokens_equal_transformers(
    seed: int, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    chain: list[Any] = [processors.TemperatureLogitsWarper(temperature)]
    if top_k is not None:
        chain.append(processors.TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        chain.append(processors.TopPLogitsWarper(top_p))
    if min_p is not None:
        chain.append(processors.MinPLogitsWarper(min_p))
    expected = scores(seed)
    for processor in chain:
        expected = processor(None, expected)
    actual = Sampling(temperature, top_k, top_p, min_p).filtered(scores(seed))
    assert torch.equal(actual, expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    penalty=st.floats(0.5, 3.0),
    ids=st.lists(st.integers(0, 49), min_size=1, max_size=8),
)
def test_the_repetition_penalty_equals_transformers(
    seed: int, penalty: float, ids: list[int]
) -> None:
    tokens = torch.tensor([ids, ids[::-1]])
    logits = scores(seed, batch=2)
    expected = processors.RepetitionPenaltyLogitsProcessor(penalty)(tokens, logits.clone())
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, tokens, True)
    assert torch.equal(penalised(logits, seen, penalty), expected)


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits = scores(1)
    assert torch.equal(Sampling().next(logits, None, None), logits.argmax(-1))


def test_a_seed_draws_the_same_tokens_again_and_another_seed_others() -> None:
    def draw(seed: int) -> list[int]:
        sampling = Sampling(temperature=1.0, seed=seed)
        generator = sampling.generator(torch.device("cpu"))
        return [int(sampling.next(scores(i), None, generator)[0]) for i in range(30)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_a_seed_leaves_torchs_own_generator_alone() -> None:
    state = torch.get_rng_state()
    sampling = Sampling(temperature=1.0, seed=3)
    sampling.next(scores(0), None, sampling.generator(torch.device("cpu")))
    assert torch.equal(torch.get_rng_state(), state)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(20_000, 3)
    sampling = Sampling(temperature=0.8, seed=0)
    tokens = sampling.next(logits, None, sampling.generator(torch.device("cpu")))
    shares = torch.bincount(tokens, minlength=3) / 20_000
    torch.testing.assert_close(shares, (logits[0] / 0.8).softmax(-1), rtol=0, atol=0.015)


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e-30])
def test_a_temperature_near_zero_takes_the_likeliest_token(temperature: float) -> None:
    logits = scores(2)
    assert torch.equal(Sampling(temperature).next(logits, None, None), logits.argmax(-1))


@pytest.mark.parametrize("several", [False, True])
def test_a_row_that_is_no_number_leaves_the_draws_of_the_others(several: bool) -> None:
    sampling, device = Sampling(1.0, top_k=40, top_p=0.9, min_p=0.01, seed=5), torch.device("cpu")

    def draw(logits: torch.Tensor) -> torch.Tensor:
        own = [sampling.generator(device) for _ in logits] if several else None
        return sampling.next(logits, None, own or sampling.generator(device))

    expected, broken = draw(scores(3)), scores(3)
    broken[1] = math.nan
    assert torch.equal(draw(broken)[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -0.1},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"temperature": "hot"},
        {"temperature": math.nan},
        {"top_k": 2.5},
        {"top_p": "1"},
        {"seed": "a"},
        {"seed": 2**70},
    ],
    ids=str,
)
def test_a_setting_outside_of_its_range_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(InarchError) as caught:
        Sampling(**setting)
    assert caught.value.code == "IA504"
    assert next(iter(setting)) in str(caught.value)
