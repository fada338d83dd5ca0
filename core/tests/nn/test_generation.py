"""Generation: the cache, batches, streams, what ends an answer, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from inarch.errors import InarchError
from inarch.nn import LanguageModel, Sampling
from inarch.nn.answer import Answer

PROMPT = [5, 6, 7, 8, 9, 10, 11]


def tokens(model: LanguageModel, prompt: list[int], count: int, **options: Any) -> list[int | None]:
    steps = model.generate_ids([prompt], max_new_tokens=count, stop=frozenset(), **options)
    return [token for [token] in steps]


def uncached(model: LanguageModel, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    for _ in range(count):
        ids = torch.cat((ids, model(ids)[:, -1:].argmax(-1)), dim=1)
    return ids[0, len(prompt) :].tolist()


def test_the_cache_changes_no_token(model: LanguageModel) -> None:
    assert tokens(model, PROMPT, 20) == uncached(model, PROMPT, 20)


def test_the_cache_changes_no_token_where_attention_is_windowed(windowed: LanguageModel) -> None:
    assert tokens(windowed, PROMPT, 20) == uncached(windowed, PROMPT, 20)
    assert tokens(windowed, [3], 12) == uncached(windowed, [3], 12)


@pytest.mark.parametrize("fixture", ["model", "windowed"])
def test_unequal_prompts_in_one_batch_equal_each_alone(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    one: LanguageModel = request.getfixturevalue(fixture)
    prompts = [PROMPT, [3], [9, 8, 7]]
    together = list(one.generate_ids(prompts, max_new_tokens=10, stop=frozenset()))
    for row, prompt in enumerate(prompts):
        assert [step[row] for step in together] == tokens(one, prompt, 10)


def test_generating_leaves_the_model_and_its_source_as_they_were(model: LanguageModel) -> None:
    before = copy.deepcopy(model.state_dict())
    source, modules = model.tree.source, list(model.tree.modules())
    tokens(model, PROMPT, 5)
    assert model.tree.source == source
    assert all(a is b for a, b in zip(modules, model.tree.modules(), strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_prompts_go_through_the_head_at_their_last_position_only(model: LanguageModel) -> None:
    shapes: list[tuple[int, ...]] = []
    handle = model.tree.lm_head.register_forward_hook(
        lambda _module, _inputs, output: shapes.append(tuple(output.shape))
    )
    tokens(model, PROMPT, 3)
    handle.remove()
    assert shapes == [(1, 1, 259)] * 3


def test_a_stream_leaves_gradients_on_between_its_pieces(model: LanguageModel) -> None:
    for _ in model.generate("the sea", max_new_tokens=3, stream=True):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_a_stream_that_is_dropped_leaves_no_mode_behind(model: LanguageModel) -> None:
    stream = iter(model.generate("the sea", max_new_tokens=9, stream=True))
    next(stream)
    del stream
    assert not torch.is_inference_mode_enabled()


def test_streamed_pieces_are_the_text(model: LanguageModel) -> None:
    whole = model.generate("the sea", max_new_tokens=40)
    pieces = list(model.generate("the sea", max_new_tokens=40, stream=True))
    assert "".join(pieces) == whole


def test_a_list_of_prompts_gives_a_list_of_texts(model: LanguageModel) -> None:
    prompts = ["the sea", "a", "messages of any length"]
    texts = model.generate(prompts, max_new_tokens=12)
    assert texts == [model.generate(prompt, max_new_tokens=12) for prompt in prompts]
    assert model.generate([], max_new_tokens=12) == []


def test_messages_are_laid_out_by_the_template(model: LanguageModel) -> None:
    messages = [{"role": "user", "content": "hi"}]
    expected = model.generate("<|user|>hi\n<|assistant|>", max_new_tokens=12)
    assert model.generate(messages, max_new_tokens=12) == expected
    assert model.generate([messages, "a"], max_new_tokens=12)[0] == expected


def test_a_stop_token_ends_a_row_and_not_the_others(model: LanguageModel) -> None:
    free = list(model.generate_ids([PROMPT, [3]], max_new_tokens=8, stop=frozenset()))
    stop = frozenset({free[2][0]}) - {row[1] for row in free}
    rows = list(model.generate_ids([PROMPT, [3]], max_new_tokens=8, stop=stop))
    first = next(i for i, row in enumerate(free) if row[0] in stop)
    assert [row[0] for row in rows] == [r[0] for r in free[: first + 1]] + [None] * (7 - first)
    assert [row[1] for row in rows] == [row[1] for row in free]


def test_generation_ends_once_every_row_has(model: LanguageModel) -> None:
    first = tokens(model, PROMPT, 1)[0]
    steps = model.generate_ids([PROMPT], max_new_tokens=50, stop=frozenset({first}))
    assert list(steps) == [[first]]


def test_text_ends_before_a_stop_text(model: LanguageModel) -> None:
    whole = model.generate("the sea", max_new_tokens=40)
    stop = whole[11:14]
    expected = whole[: whole.index(stop)]
    assert model.generate("the sea", max_new_tokens=40, stop=stop) == expected
    pieces = list(model.generate("the sea", max_new_tokens=40, stop=[stop, "absent"], stream=True))
    assert "".join(pieces) == expected
    assert model.generate(["the sea"], max_new_tokens=40, stop=stop) == [expected]


def test_no_step_is_made_after_every_answer_has_met_its_stop_text(model: LanguageModel) -> None:
    calls: list[int] = []
    handle = model.tree.lm_head.register_forward_hook(lambda *_: calls.append(1))
    whole = model.generate("the sea", max_new_tokens=40)
    assert len(calls) == 40
    calls.clear()
    model.generate(["the sea"], max_new_tokens=40, stop=whole[2:4])
    handle.remove()
    assert len(calls) < 10


def test_padding_counts_as_no_repetition(model: LanguageModel) -> None:
    sampling = Sampling(repetition_penalty=1.7)
    prompts = [PROMPT, [3]]
    together = list(
        model.generate_ids(prompts, max_new_tokens=10, sampling=sampling, stop=frozenset())
    )
    for row, prompt in enumerate(prompts):
        assert [step[row] for step in together] == tokens(model, prompt, 10, sampling=sampling)


def test_a_seed_draws_the_same_text_again(model: LanguageModel) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 20.0}
    first = model.generate("sea", seed=3, **options)
    assert model.generate("sea", seed=3, **options) == first
    assert model.generate("sea", seed=4, **options) != first


def test_an_answer_holds_back_what_may_be_a_stop_text(tokenizer: Any) -> None:
    answer = Answer(tokenizer, frozenset(), ("END",))
    pieces = [answer.push(token) for token in tokenizer.encode("xENENDy")]
    assert pieces == ["x", "", "", "EN", "", "", ""]
    assert answer.ended
    assert answer.text == "xEN"


def test_an_answer_gives_what_it_held_back_when_it_ends(tokenizer: Any) -> None:
    answer = Answer(tokenizer, frozenset({tokenizer.eos_id}), ("END",))
    for token in tokenizer.encode("xEN"):
        answer.push(token)
    assert answer.push(tokenizer.eos_id) == "EN"
    assert answer.text == "xEN"


@pytest.mark.parametrize(
    ("code", "prompt", "options"),
    [
        ("IA504", "", {}),
        ("IA504", "sea", {"max_new_tokens": 0}),
        ("IA504", "sea", {"temperature": -1.0}),
        ("IA504", "sea", {"max_new_tokens": 2.5}),
        ("IA504", "sea", {"stop": ""}),
        ("IA504", "sea", {"max_new_tokens": True}),
        ("IA504", "sea", {"stop": ["sky", 7]}),
        ("IA504", "sea", {"stop": 7}),
        ("IA505", 7, {}),
        ("IA505", ["sea", 7], {}),
        ("IA503", [{"content": "no role"}], {}),
        ("IA506", ["sea", "sky"], {"stream": True}),
    ],
    ids=str,
)
def test_what_can_not_be_generated_is_refused_at_the_call(
    model: LanguageModel, code: str, prompt: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(InarchError) as caught:
        model.generate(prompt, **options)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("code", "prompts"),
    [
        ("IA505", [1, 2]),
        ("IA505", ["sea"]),
        ("IA505", [[1, 2.5]]),
        ("IA504", [[1], []]),
        ("IA505", [[1], [2, -1]]),
        ("IA505", [[1], [259]]),
        ("IA505", [[2**70]]),
    ],
    ids=str,
)
def test_ids_that_are_none_are_refused_at_the_call(
    model: LanguageModel, code: str, prompts: Any
) -> None:
    with pytest.raises(InarchError) as caught:
        model.generate_ids(prompts)
    assert caught.value.code == code


@pytest.mark.parametrize("stop", [7, "sea", ["sea"]], ids=str)
def test_what_can_t_end_a_row_is_refused_at_the_call(model: LanguageModel, stop: Any) -> None:
    with pytest.raises(InarchError) as caught:
        model.generate_ids([[1]], stop=stop)
    assert caught.value.code == "IA504"


def test_ids_in_a_tensor_are_those_in_lists(model: LanguageModel) -> None:
    ids = [[1, 2, 3], [3, 2, 1]]
    told = list(model.generate_ids(torch.tensor(ids), max_new_tokens=3))
    assert told == list(model.generate_ids(ids, max_new_tokens=3))


def test_a_stream_is_refused_at_the_call_too(model: LanguageModel) -> None:
    with pytest.raises(InarchError):
        model.generate("", stream=True)


def test_a_model_without_a_tokenizer_says_so(model: LanguageModel) -> None:
    model.tokenizer = None
    with pytest.raises(InarchError, match="no tokenizer"):
        model.generate("sea")


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        (torch.tensor([1, 2, 3]), None),
        (torch.rand(1, 3), None),
        (torch.tensor([[1, 2, 3]]), torch.ones(1, 4)),
        ([[1, 2, 3]], None),
        (torch.ones(1, 3, dtype=torch.bool), None),
        (torch.tensor([[1, 2, 3]]), [[1, 1, 1]]),
    ],
    ids=["no batch", "no integers", "another mask", "a list", "truths", "a list as mask"],
)
def test_inputs_of_another_shape_are_refused(model: LanguageModel, ids: Any, mask: Any) -> None:
    with pytest.raises(InarchError) as caught:
        model(ids, mask)
    assert caught.value.code == "IA505"


def test_padding_on_the_right_changes_no_real_position(model: LanguageModel) -> None:
    ids = torch.tensor([PROMPT])
    longer = torch.cat((ids, torch.zeros(1, 3, dtype=torch.long)), dim=1)
    mask = torch.tensor([[1] * 7 + [0] * 3])
    torch.testing.assert_close(model(longer, mask)[:, :7], model(ids), rtol=1e-4, atol=1e-4)
