"""A compiled step: the tokens of an eager one, one compilation a structure, no graph break."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from inarch.errors import InarchError
from inarch.nn import LanguageModel, Sampling
from inarch.testing.compiling import counting_compiler
from inarch.tree import Chain, Edit

PROMPT = [5, 6, 7, 8, 9, 10, 11]


@pytest.fixture(autouse=True)
def counter() -> Iterator[CompileCounter]:
    """The compiler of these tests, which counts and runs the graphs as they are."""
    with counting_compiler() as counter:
        yield counter


def rows(
    model: LanguageModel, prompts: list[list[int]], count: int = 12, **options: Any
) -> list[list[int | None]]:
    return list(model.generate_ids(prompts, max_new_tokens=count, stop=frozenset(), **options))


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 16)), nn.Parameter(torch.randn(16, 2))

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        term = x @ self.a.t() @ self.b.t()
        return term if plus is None else plus + term


def edited(model: LanguageModel, *edits: Edit) -> LanguageModel:
    other = LanguageModel({"": model.tree.edit(edits)}, model.config, roles=model.roles)
    other.tokenizer = model.tokenizer
    return other


def low_rank(model: LanguageModel) -> LanguageModel:
    return edited(model, *(Edit.add(a, LowRank(), "a") for a in QUERIES))


QUERIES = ("model.first.self_attn.q_proj", "model.second.self_attn.q_proj")


@pytest.mark.parametrize("fixture", ["model", "windowed"])
@pytest.mark.parametrize("prompts", [[PROMPT], [[3]], [PROMPT, [3], [9, 8, 7]]], ids=len)
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(repetition_penalty=1.7), Sampling(temperature=9.0, top_p=0.9, seed=3)],
    ids=["likeliest", "penalised", "drawn"],
)
def test_compiled_steps_give_the_tokens_of_eager_ones(
    fixture: str, prompts: list[list[int]], sampling: Sampling, request: pytest.FixtureRequest
) -> None:
    model: LanguageModel = request.getfixturevalue(fixture)
    expected = rows(model, prompts, sampling=sampling)
    assert rows(model, prompts, sampling=sampling, compile=True) == expected


def test_a_text_and_its_stream_are_the_same_compiled(model: LanguageModel) -> None:
    whole = model.generate("the sea", max_new_tokens=20)
    assert model.generate("the sea", max_new_tokens=20, compile=True) == whole
    pieces = model.generate("the sea", max_new_tokens=20, compile=True, stream=True)
    assert "".join(pieces) == whole


def test_all_tokens_lengths_and_calls_within_a_capacity_are_one_compilation(
    model: LanguageModel, counter: CompileCounter
) -> None:
    for prompt in ([1, 2, 3], PROMPT, [4] * 40):
        rows(model, [prompt], compile=True)
    assert counter.frame_count == 1
    assert sum(counters["graph_break"].values()) == 0


def test_blocks_of_one_structure_are_gone_through_once(
    model: LanguageModel, counter: CompileCounter
) -> None:
    rows(model, [PROMPT], compile=True)
    once = counter.op_count
    alone = edited(model, Edit.add(QUERIES[0], LowRank(), "a"))
    rows(alone, [PROMPT], compile=True)
    assert counter.frame_count == 2
    assert counter.op_count - once > 1.3 * once  # the blocks differ, so both are in the graph


def test_another_batch_or_capacity_compiles_again_and_nothing_compiles_a_third_time(
    model: LanguageModel, counter: CompileCounter
) -> None:
    for _ in range(2):
        rows(model, [PROMPT], compile=True)
        rows(model, [PROMPT, PROMPT], compile=True)
        rows(model, [PROMPT, [3]], compile=True)
        rows(model, [PROMPT], 150, compile=True)
    assert counter.frame_count == 3


def test_adapting_and_dropping_twenty_times_compiles_each_structure_once(
    model: LanguageModel, counter: CompileCounter
) -> None:
    for _ in range(20):
        rows(model, [PROMPT], 3, compile=True)
        adapted = low_rank(model)
        assert rows(adapted, [PROMPT], 3, compile=True) == rows(adapted, [PROMPT], 3)
        del adapted
        gc.collect()
    assert counter.frame_count == 2
    assert sum(counters["graph_break"].values()) == 0


@pytest.mark.parametrize("compile", [False, True])
def test_two_generations_at_once_keep_apart(model: LanguageModel, compile: bool) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "stop": frozenset(), "compile": compile}
    first, second = rows(model, [PROMPT]), rows(model, [[3, 1]])
    steps = zip(
        model.generate_ids([PROMPT], **options),
        model.generate_ids([[3, 1]], **options),
        strict=True,
    )
    assert list(steps) == list(zip(first, second, strict=True))


def test_threads_that_begin_at_once_compile_once(
    model: LanguageModel, counter: CompileCounter
) -> None:
    prompts = [[[1, 2, 3]], [[4, 5, 6, 7]], [[8]], [[9, 1]]]
    expected = [rows(model, prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as threads:
        made = list(threads.map(lambda prompt: rows(model, prompt, compile=True), prompts))
    assert made == expected
    assert counter.frame_count == 1


@pytest.mark.parametrize("compile", [False, True])
def test_a_second_call_edits_no_tree(
    model: LanguageModel, compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(model, [PROMPT], compile=compile)
    edits: list[Any] = []
    monkeypatch.setattr(Chain, "edit", lambda self, edits_: edits.append(edits_))
    rows(model, [[3]], compile=compile)
    assert edits == []


def test_what_is_put_into_the_tree_between_two_calls_counts(model: LanguageModel) -> None:
    before = rows(model, [PROMPT])
    torch.manual_seed(8)
    model.tree.model.second.self_attn.q_proj = nn.Linear(16, 16)
    after = rows(model, [PROMPT])
    assert after != before
    fresh = LanguageModel({"": model.tree.edit([])}, model.config, roles=model.roles)
    assert rows(fresh, [PROMPT]) == after


def test_a_dropped_model_leaves_no_decoder(model: LanguageModel) -> None:
    adapted = low_rank(model)
    rows(adapted, [PROMPT], compile=True)
    gone = weakref.ref(adapted.tree)
    brought = weakref.ref(adapted.tree.model.first.self_attn.q_proj__a)
    del adapted
    gc.collect()
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None
    assert brought() is None


def test_an_adapter_that_breaks_the_graph_is_refused_by_name_and_runs_eagerly(
    model: LanguageModel,
) -> None:
    def broken(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x

    other = edited(model, Edit.after(QUERIES[0], broken, "a"))
    with pytest.raises(InarchError) as caught:
        rows(other, [PROMPT], compile=True)
    assert caught.value.code == "IA512"
    assert "graph_break" in caught.value.why
    assert rows(other, [PROMPT]) == rows(model, [PROMPT])


def test_a_block_that_can_be_no_region_is_compiled_all_the_same(
    model: LanguageModel, counter: CompileCounter
) -> None:
    class Turned(LowRank):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.a.T @ self.b.T  # which torch 2.13 can't take up in a region

    other = edited(model, *(Edit.add(a, Turned(), "a") for a in QUERIES))
    expected = rows(other, [PROMPT])
    for _ in range(2):
        assert rows(other, [PROMPT], compile=True) == expected
    assert counter.frame_count == 1


def test_a_model_that_was_compiled_in_place_is_refused_at_the_call(model: LanguageModel) -> None:
    rows(model, [PROMPT])
    model.tree.model.compile()
    with pytest.raises(InarchError) as caught:
        model.generate_ids([PROMPT])
    assert caught.value.code == "IA108"


@pytest.mark.slow
def test_inductor_gives_the_tokens_of_eager_steps(model: LanguageModel) -> None:
    torch.compiler.set_default_backend("inductor")
    prompts = [PROMPT, [3], [9, 8, 7]]
    assert rows(model, prompts, compile=True) == rows(model, prompts)
