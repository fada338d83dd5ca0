"""A mixed batch gives each row what it has alone, whoever else is in it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import inarch
from inarch.errors import InarchError
from inarch.nn.sampling import Sampling
from inarch.testing import tiny_models
from inarch.testing.compiling import counting_compiler
from inarch.testing.subject import inputs_of, trained

SPECS = {
    "a": inarch.adapter("lora", name="a", rank=2),
    "b": inarch.adapter("lora", name="b", rank=5, scale=0.4, targets=["attention.query"]),
    "c": inarch.adapter("lora", name="c", rank=3, scale=-1.0, targets=["mlp.*", "head"]),
    "dora": inarch.adapter("lora", name="dora", rank=2, use_dora=True),
    "ia3": inarch.adapter("ia3"),
    "houlsby": inarch.adapter("bottleneck", name="houlsby", kind="houlsby"),
    "parallel": inarch.adapter("bottleneck", name="parallel", kind="parallel"),
    "steering": inarch.adapter("steering"),
    "prefix": inarch.adapter("prefix", tokens=3),
}
ROWWISE = tuple(name for name in SPECS if name != "prefix")
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [4, 3, 2], [5], [1, 2, 3, 4, 5, 6, 7], [2, 2]]


def small() -> Any:
    tiny = next(iter(tiny_models(families=["llama"])))
    return tiny.build()


def stacked(base: Any, *names: str) -> Any:
    """A model with several adapters of other kinds, ranks, scales and targets, each trained."""
    members = [m for name in names for m in trained(base, SPECS[name]).adapters]
    return base._with(members)


@pytest.fixture(scope="module")
def model() -> Any:
    return stacked(small(), *SPECS)


def alone(model: Any, row: tuple[str, ...]) -> Any:
    return model.without(*(name for name in model.adapters.names if name not in row))


def padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def assert_rows_are_alone(
    model: Any, rows: list[tuple[str, ...]], prompts: list[list[int]], within: float = 1e-5
) -> None:
    ids, mask = padded(prompts)
    mixed = model.rows([row or None for row in rows])
    with torch.no_grad():
        got = mixed(ids, mask)
        for number, row in enumerate(rows):
            expected = alone(model, row)(ids[number : number + 1], mask[number : number + 1])
            real = mask[number].bool()
            close = {"rtol": within, "atol": within}
            torch.testing.assert_close(got[number][real], expected[0][real], **close)


assignments = st.lists(
    st.lists(st.sampled_from(ROWWISE), max_size=3, unique=True).map(tuple), min_size=1, max_size=6
)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=assignments)
def test_logits_of_any_assignment_are_those_of_rows_alone(model: Any, rows: Any) -> None:
    assert_rows_are_alone(model, rows, PROMPTS[: len(rows)])


@pytest.mark.parametrize("name", ROWWISE)
def test_every_kind_that_keeps_rows_apart_runs_beside_the_base(model: Any, name: str) -> None:
    assert_rows_are_alone(model, [(name,), (), (name,), ()], PROMPTS[:4])


def test_more_rows_than_adapters_share_their_matrices(model: Any) -> None:
    rows: list[tuple[str, ...]] = [("a",)] * 5 + [("b",)] + [("a", "b")] * 2 + [()]
    prompts = (PROMPTS * 2)[: len(rows)]
    assert_rows_are_alone(model, rows, prompts)
    mixed = model.rows([row or None for row in rows])
    with torch.no_grad():
        mixed(*padded(prompts))
    attention = mixed.tree.get_submodule("model.layers.0.self_attn")
    [joint] = [joint for joint in attention.form.joints if joint.name.startswith("q_proj")]
    slots = attention.__dict__[joint.name].bank.matrices[0].shape[0]
    assert slots <= 2 * len(set(rows))


def test_in_bfloat16_rows_are_no_further_off_than_alone() -> None:
    tiny = next(iter(tiny_models(families=["llama"])))
    model = stacked(tiny.build(dtype=torch.bfloat16), "a", "b", "ia3")
    assert_rows_are_alone(model, [("a", "b"), ("ia3",), (), ("b",)], PROMPTS[:4], within=0.05)


def test_rows_of_a_packed_model_are_those_of_one_that_isn_t() -> None:
    model = stacked(small(), "a", "b", "ia3")
    rows = [("a", "b"), ("ia3",), (), ("b",)]
    ids, mask = padded(PROMPTS[:4])
    with torch.no_grad():
        expected = model.rows([row or None for row in rows])(ids, mask)
        mixed = model.packed().rows([row or None for row in rows])
        torch.testing.assert_close(mixed(ids, mask), expected, rtol=1e-5, atol=1e-5)
    assert mixed.tree.model.layers[0].self_attn.packs


@pytest.mark.parametrize("name", ROWWISE)
def test_a_model_of_rows_compiles_as_one_graph(model: Any, name: str) -> None:
    mixed = model.rows([name, None, ("a", name) if name != "a" else "b"])
    ids = torch.tensor(PROMPTS[:1] * 3)
    given = {"positions": torch.arange(ids.shape[1])[None], "mask": None}
    with counting_compiler(), torch.no_grad():
        expected = mixed.tree(ids, **given)
        got = torch.compile(mixed.tree, fullgraph=True)(ids, **given)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_order_of_names_in_a_row_means_nothing(model: Any) -> None:
    ids, mask = padded(PROMPTS[:2])
    with torch.no_grad():
        one = model.rows([("a", "ia3", "c"), None])(ids, mask)
        other = model.rows([("c", "a", "ia3"), None])(ids, mask)
    assert torch.equal(one, other)


# Generation


@pytest.mark.parametrize(
    "adapters",
    [
        ["a", None, ("a", "b")],
        ["ia3", "c", "houlsby"],
        [None, None, None],
        ["dora", "a", "dora"],
        ["prefix", "a", None],
        [("prefix", "a"), "prefix", "steering"],
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [None, 11])
def test_generated_rows_have_the_tokens_they_have_alone(
    model: Any, adapters: list[Any], seed: int | None
) -> None:
    sampling = Sampling(0.8 if seed else 0.0, top_k=20 if seed else None, seed=seed)
    options = {"max_new_tokens": 7, "stop": frozenset({3}), "sampling": sampling}
    got = list(model.generate_ids(PROMPTS[:3], adapters=adapters, **options))
    for number, row in enumerate(adapters):
        own = (row,) if isinstance(row, str) else row or ()
        steps = alone(model, own).generate_ids([PROMPTS[number]], **options)
        expected = [token for [token] in steps]
        tokens = [step[number] for step in got]
        assert tokens == expected + [None] * (len(got) - len(expected))


def test_drawing_beside_a_row_that_is_no_number_is_drawing_alone() -> None:
    model = stacked(small(), "a", "b")
    for parameter in model.adapter_parameters("b").values():
        parameter.data.fill_(torch.nan)
    options = {"max_new_tokens": 6, "stop": frozenset(), "sampling": Sampling(0.8, seed=3)}
    got = list(model.generate_ids(PROMPTS[:3], adapters=["a", "b", None], **options))
    for number, row in ((0, ("a",)), (2, ())):
        steps = alone(model, row).generate_ids([PROMPTS[number]], **options)
        assert [step[number] for step in got] == [token for [token] in steps]


def test_a_model_of_rows_generates_too(model: Any) -> None:
    options = {"max_new_tokens": 5, "stop": frozenset()}
    expected = list(model.generate_ids(PROMPTS[:2], adapters=["a", None], **options))
    assert list(model.rows(["a", None]).generate_ids(PROMPTS[:2], **options)) == expected


def test_prompts_of_one_stack_run_as_the_model_with_it_alone(model: Any) -> None:
    options = {"max_new_tokens": 5, "stop": frozenset()}
    got = list(model.generate_ids(PROMPTS[:3], adapters=["a", "a", "a"], **options))
    assert got == list(alone(model, ("a",)).generate_ids(PROMPTS[:3], **options))


def test_a_batch_of_thirty_two_adapters_is_each_alone() -> None:
    base = small()
    specs = [
        inarch.adapter("lora", name=f"a{i:02}", rank=1 + i % 5, scale=(1.0, 0.5)[i % 2])
        for i in range(32)
    ]
    model: Any = base._with([m for spec in specs for m in trained(base, spec).adapters])
    rows = [(f"a{i:02}",) for i in range(32)]
    prompts = list(itertools.islice(itertools.cycle(PROMPTS), 32))
    assert_rows_are_alone(model, rows, prompts)


# Text


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return inarch.load("smollm2", dtype="float32")


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
def test_two_voices_and_the_base_answer_in_one_batch(smollm2: Any) -> None:
    voices = smollm2.adapt("pirate", "terse_json")
    ask = [{"role": "user", "content": "Describe the sea."}]
    rows: list[Any] = ["pirate", None, ("terse_json", "pirate"), "terse_json"]
    texts = voices.generate([ask] * 4, adapters=rows, max_new_tokens=12)
    for text, row in zip(texts, rows, strict=True):
        own = (row,) if isinstance(row, str) else row or ()
        assert text == alone(voices, own).generate(ask, max_new_tokens=12)
    assert len(set(texts)) == 4
    assert voices.generate(ask, adapters=["pirate"], max_new_tokens=12) == texts[0]
    pieces = voices.generate(ask, adapters=[None], max_new_tokens=12, stream=True)
    assert "".join(pieces) == texts[1]
    assert voices.generate([], adapters=[]) == []
    with pytest.raises(InarchError, match="0 prompts"):
        voices.generate([], adapters=["pirate"])


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
def test_a_word_is_known_to_the_rows_that_were_taught_it(smollm2: Any) -> None:
    word = inarch.adapter("textual-inversion", name="toy", token="<toy>", initial="sea")
    model = smollm2.adapt(word, "pirate")
    rows = ["toy", "pirate", None]
    texts = model.generate(["Tell me of <toy>."] * 3, adapters=rows, max_new_tokens=6)
    for text, row in zip(texts, rows, strict=True):
        own = (row,) if row else ()
        assert text == alone(model, own).generate("Tell me of <toy>.", max_new_tokens=6)
    texts = model.generate(["<toy>", "<toy>"], adapters=["pirate", None], max_new_tokens=6)
    assert texts[1] == smollm2.generate("<toy>", max_new_tokens=6)


# Refusals


@pytest.mark.parametrize(
    ("adapters", "code", "word"),
    [
        (["a"], "IA513", "2 prompts"),
        ("ab", "IA513", "one entry"),
        (["a", "nobody"], "IA403", "nobody"),
        ([("a", "a"), None], "IA513", "twice"),
        ([0, None], "IA513", "row 0"),
        (["a", ("a", None)], "IA513", "row 1"),
        ([{"a": 0.5}, None], "IA513", "row 0"),
        ({"a": 1, "b": 2}, "IA513", "one entry"),
        (["hulsby", None], "IA403", '"houlsby"'),
    ],
)
def test_what_can_t_be_is_refused(model: Any, adapters: Any, code: str, word: str) -> None:
    with pytest.raises(InarchError, match=word) as caught:
        model.generate_ids(PROMPTS[:2], adapters=adapters)
    assert caught.value.code == code


def test_a_merged_adapter_is_refused(model: Any) -> None:
    merged = alone(model, ("a", "b")).merge("a")
    for ask in (lambda: merged.rows(["b", None]), lambda: merged.rows(["a", None])):
        with pytest.raises(InarchError, match="`a`") as caught:
            ask()
        assert caught.value.code == "IA513"


def test_rows_refuses_what_can_t_run_on_some_rows_and_says_why(model: Any) -> None:
    with pytest.raises(InarchError, match="prefix") as caught:
        model.rows(["prefix", "a"])
    assert caught.value.code == "IA514"
    assert "generate" in caught.value.remedy
    assert caught.value.why


def test_a_batch_of_another_size_is_refused(model: Any) -> None:
    mixed = model.rows(["a", None])
    with pytest.raises(InarchError, match="2 rows") as caught:
        mixed(torch.ones(3, 4, dtype=torch.long))
    assert caught.value.code == "IA513"
    with pytest.raises(InarchError, match="2 rows"):
        mixed.generate_ids(PROMPTS[:3])


def test_a_model_of_rows_can_t_be_adapted_further(model: Any) -> None:
    mixed = model.rows(["a", None])
    for ask in (
        lambda: mixed.without("a"),
        lambda: mixed.merge("a"),
        lambda: mixed.adapt(inarch.adapter("lora", name="new")),
        lambda: mixed.rows(["a", None]),
        lambda: mixed.generate_ids(PROMPTS[:2], adapters=["a", None]),
    ):
        with pytest.raises(InarchError) as caught:
            ask()
        assert caught.value.code == "IA513"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_unet_s_rows_are_what_they_are_alone(layout: torch.memory_format) -> None:
    base = next(iter(tiny_models(families=["stable-diffusion"]))).build(dtype=torch.float64)
    everywhere = ["attention.*", "resnet.conv", "resnet.shortcut", "conv.in"]
    targets = {"a": everywhere, "b": ["resnet.conv", "conv.out"], "c": ["attention.query"]}
    members = [
        m
        for name, at in targets.items()
        for spec in [inarch.adapter("lora", name=name, rank=2 + len(at), targets=at)]
        for m in trained(base, spec).adapters
    ]
    model: Any = base._with(members)
    rows: list[Any] = ["a", None, ("a", "b"), "b", "a", "c"]
    generator = torch.Generator().manual_seed(1)
    found = dict(inputs_of(model))["unet"]
    inputs = {
        name: torch.randn((6, *value.shape[1:]), generator=generator, dtype=torch.float64)
        for name, value in found.items()
        if name != "timestep"
    }
    inputs["timestep"] = torch.tensor([3, 999, 500, 41, 7, 250])
    inputs["latents"] = inputs["latents"].contiguous(memory_format=layout)
    with torch.no_grad():
        got = model.rows(rows).trees["unet"](**inputs)
        for number, row in enumerate(rows):
            own = alone(model, (row,) if isinstance(row, str) else row or ())
            one = {name: value[number : number + 1] for name, value in inputs.items()}
            expected = own.trees["unet"](**one)[0]
            torch.testing.assert_close(got[number], expected, rtol=1e-9, atol=1e-9)
