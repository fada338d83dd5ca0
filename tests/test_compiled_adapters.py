"""Compiled generation under every kind of adapter of a language model, and several at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import inarch
from inarch.testing import tiny_models
from inarch.testing.compiling import counting_compiler
from inarch.testing.subject import trained

SPECS = {
    "lora": inarch.adapter("lora", rank=2),
    "dora": inarch.adapter("lora", name="dora", rank=2, use_dora=True),
    "ia3": inarch.adapter("ia3"),
    "prefix": inarch.adapter("prefix", tokens=3),
    "prompt": inarch.adapter("prompt-tuning", name="prompt", tokens=3),
    "houlsby": inarch.adapter("bottleneck", name="houlsby", kind="houlsby"),
    "steering": inarch.adapter("steering"),
}
LLAMAS = list(tiny_models(families=["llama"]))
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [4, 3, 2]]


@pytest.fixture
def counter() -> Iterator[CompileCounter]:
    with counting_compiler() as counter:
        yield counter


def rows(model: Any, **options: Any) -> list[list[int | None]]:
    steps = model.generate_ids(PROMPTS, max_new_tokens=8, stop=frozenset(), **options)
    return list(steps)


@pytest.mark.parametrize("tiny", LLAMAS, ids=str)
@pytest.mark.parametrize("kind", SPECS)
def test_an_adapter_s_tokens_are_the_same_compiled(
    tiny: Any, kind: str, counter: CompileCounter
) -> None:
    model = trained(tiny.build(), SPECS[kind])
    expected = rows(model)
    assert rows(model, compile=True) == expected
    assert rows(model, compile=True) == expected
    assert (counter.frame_count, sum(counters["graph_break"].values())) == (1, 0)


def test_terms_that_run_together_are_the_same_compiled(counter: CompileCounter) -> None:
    base = LLAMAS[0].build()
    specs = (inarch.adapter("lora", name=name, rank=2) for name in "abc")
    model = base._with([m for spec in specs for m in trained(base, spec).adapters])
    expected = rows(model)
    assert rows(model, compile=True) == expected
    assert (counter.frame_count, sum(counters["graph_break"].values())) == (1, 0)
    model.adapters["b"].scale = -3.0
    assert rows(model, compile=True) == rows(model) != expected
    assert counter.frame_count == 1


def test_several_at_once_are_the_same_compiled(counter: CompileCounter) -> None:
    base = LLAMAS[0].build()
    kinds = ("lora", "prefix", "prompt", "steering")
    model = base._with([m for kind in kinds for m in trained(base, SPECS[kind]).adapters])
    assert rows(model, compile=True) == rows(model)
    assert (counter.frame_count, sum(counters["graph_break"].values())) == (1, 0)


def test_another_scale_and_other_weights_compile_nothing(counter: CompileCounter) -> None:
    base = LLAMAS[0].build()
    model = trained(base, SPECS["lora"])
    rows(model, compile=True)
    model.adapters["lora"].scale = -2.0
    assert rows(model, compile=True) == rows(model)
    other = trained(base, SPECS["lora"], seed="other")
    assert rows(other, compile=True) == rows(other)
    assert counter.frame_count == 1


def test_a_packed_model_s_tokens_are_the_same_compiled(counter: CompileCounter) -> None:
    base = LLAMAS[0].build()
    model = trained(base.packed(), SPECS["lora"])
    assert rows(model, compile=True) == rows(trained(base, SPECS["lora"]))
    assert (counter.frame_count, sum(counters["graph_break"].values())) == (1, 0)
