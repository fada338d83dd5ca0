"""Prompts: the web interface's syntax, hand-computed weights, and diffusers' plain prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from inarch.errors import InarchError
from inarch.weights import blank
from inarch_clip.config import parse_text
from inarch_clip.text import text
from inarch_clip.tokens import ClipTokenizer
from inarch_stable_diffusion.beside_diffusers import randomised
from inarch_stable_diffusion.weighting import (
    TextEncoder,
    chunks,
    count_chunks,
    encode_prompts,
    parse,
    weighted,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PLAIN = ["a photo of a cat", "", "Two dogs, on (no: hill) [at all]!", "word " * 75]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP tokenizer that knows bytes and no merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder = tmp_path_factory.mktemp("tokenizer")
    letters = sorted(ByteLevel.alphabet())
    words = [("c", "a"), ("ca", "t</w>"), ("w", "o"), ("wo", "r"), ("wor", "d</w>")]
    tokens = [*letters, *(f"{x}</w>" for x in letters), *("".join(pair) for pair in words)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in words), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def encoders(vocabulary: Path) -> Any:
    """A function that makes transformers' tokenizer and encoder, and ours of equal weights."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(vocabulary)
    ours = ClipTokenizer.from_folder(vocabulary)

    def build(seed: int, *, projected: bool, width: int = 16) -> tuple[Any, Any, TextEncoder]:
        config = transformers.CLIPTextConfig(
            vocab_size=len(theirs),
            hidden_size=width,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=10,
            eos_token_id=theirs.eos_token_id,
            bos_token_id=theirs.bos_token_id,
        )
        kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
        model = randomised(getattr(transformers, kind)(config), seed)
        with blank():
            tree = text(parse_text(config.to_dict(), projection=projected))
        state = model.state_dict()
        if not projected:
            state = {f"text_model.{name}": value for name, value in state.items()}
        tree.load_state_dict(state, assign=True)
        return theirs, model, TextEncoder(ours, tree.eval().requires_grad_(False))

    return build


# The syntax


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.3 * 1.1 * 1.1),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.1**4),
                (".", 1.1),
            ],
        ),
        ("[less] ((more))", [("less", 1 / 1.1), (" ", 1.0), ("more", 1.21)]),
        ("a smile :) and ]", [("a smile :) and ]", 1.0)]),
        ("time 12:30 (12:30)", [("time 12:30 ", 1.0), ("12", 30.0)]),
        (r"C:\temp \\ done", [(r"C:\temp \ done", 1.0)]),
        ("(none:0) (back:-1)", [("none", 0.0), (" ", 1.0), ("back", -1.0)]),
        ("", []),
    ],
)
def test_words_have_the_weights_the_web_interface_gives_them(
    prompt: str, words: list[tuple[str, float]]
) -> None:
    [found] = parse(prompt)
    assert [text for text, _ in found] == [text for text, _ in words]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in words])


def test_a_break_ends_a_chunk_and_a_word_that_holds_it_does_not(vocabulary: Path) -> None:
    assert parse("a BREAK b BREAK (c BREAK d)") == [
        [("a", 1.0)],
        [("b", 1.0)],
        [("c", 1.1)],
        [("d", 1.1)],
    ]
    assert parse("BREAKFAST break") == [[("BREAKFAST break", 1.0)]]
    tokenizer = ClipTokenizer.from_folder(vocabulary)
    assert len(chunks("cat BREAK cat", tokenizer, 75)) == 2
    assert len(chunks("cat BREAK cat", tokenizer, 75, plain=True)) == 1


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (75, [75]), (76, [75, 1]), (160, [75, 75, 10])]
)
def test_a_long_prompt_comes_in_chunks_of_75(
    vocabulary: Path, count: int, sizes: list[int]
) -> None:
    tokenizer = ClipTokenizer.from_folder(vocabulary)
    found = chunks("word " * count, tokenizer, 75)
    assert [len(ids) for ids, _ in found] == sizes
    whole = [token for ids, _ in found for token in ids]
    assert whole == tokenizer.encode("word " * count, special=False)


def test_a_weight_that_is_no_number_is_refused() -> None:
    with pytest.raises(InarchError) as caught:
        parse("a (cat:1.2.3)")
    assert caught.value.code == "IA558"
    assert "1.2.3" in str(caught.value)


# The rule of weights


def test_states_are_multiplied_and_each_chunk_keeps_its_mean() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[4.0, 4.0], [1.0, 1.0]]])
    weights = torch.tensor([[1.0, 2.0], [1.0, 1.0]])
    # the first chunk: means 12 / 4 before and (1 + 2 + 6 + 12) / 4 after, so times 12 / 21
    expected = torch.tensor([[[12.0, 24.0], [72.0, 144.0]], [[84.0, 84.0], [21.0, 21.0]]]) / 21
    torch.testing.assert_close(weighted(states, weights), expected)
    assert torch.equal(weighted(states, weights)[1], states[1])


def test_a_weighted_word_is_heavier_at_its_tokens_alone(encoders: Any) -> None:
    _, _, encoder = encoders(1, projected=False)
    plain, pooled = encode_prompts(["a cat word"], [encoder])
    heavy, same = encode_prompts(["a (cat:1.5) word"], [encoder])
    multiplied = plain.clone()
    multiplied[:, 2] *= 1.5  # the beginning, `a`, `cat`
    torch.testing.assert_close(heavy, multiplied * (plain.mean() / multiplied.mean()), **CLOSE)
    assert torch.equal(pooled, same)


def test_weights_of_one_are_no_weights_bit_for_bit(encoders: Any) -> None:
    _, _, encoder = encoders(2, projected=False)
    expected = encode_prompts(["a cat word"], [encoder])[0]
    assert torch.equal(encode_prompts(["a (cat:1.0) word"], [encoder])[0], expected)


# States


@pytest.mark.parametrize("clip_skip", [None, 1, 2])
def test_plain_prompts_equal_diffusers(encoders: Any, clip_skip: int | None) -> None:
    diffusers = pytest.importorskip("diffusers")
    tokenizer, model, encoder = encoders(3, projected=False)
    model.__dict__["text_model"] = model  # diffusers asks for the name that transformers 5 dropped
    parts = dict.fromkeys(("vae", "unet", "scheduler", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, text_encoder=model, requires_safety_checker=False
    )
    with torch.no_grad():
        expected, empty = pipe.encode_prompt(
            PLAIN, "cpu", 1, True, negative_prompt=[""] * 4, clip_skip=clip_skip
        )
    early = clip_skip or 0
    actual, _ = encode_prompts(PLAIN, [encoder], plain=True, early=early)
    torch.testing.assert_close(actual, expected, **CLOSE)
    if clip_skip is None:
        actual, _ = encode_prompts(["", *PLAIN], [encoder], plain=True)
        torch.testing.assert_close(actual[:1], empty[:1], **CLOSE)
    written = [r"Two dogs, on \(no: hill\) \[at all\]!"]
    actual, _ = encode_prompts(written, [encoder], early=early)
    torch.testing.assert_close(actual, expected[2:3], **CLOSE)


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_plain_prompts_of_two_encoders_equal_diffusers(
    encoders: Any, clip_skip: int | None
) -> None:
    diffusers = pytest.importorskip("diffusers")
    tokenizer, first, one = encoders(4, projected=False)
    _, second, two = encoders(5, projected=True, width=20)
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=None,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=None,
        scheduler=None,
        add_watermarker=False,
    )
    others = [*PLAIN[1:], PLAIN[0]]
    with torch.no_grad():
        expected, _, pooled, _ = pipe.encode_prompt(
            PLAIN, others, "cpu", 1, False, clip_skip=clip_skip
        )
    states, ends = encode_prompts(
        [PLAIN, others], [one, two], early=1 + (clip_skip or 0), normed=False, plain=True
    )
    assert states.shape == (4, 77, 36)
    torch.testing.assert_close(states, expected, **CLOSE)
    torch.testing.assert_close(ends, pooled, **CLOSE)


def test_chunks_are_encoded_each_by_itself_and_follow_one_another(encoders: Any) -> None:
    _, _, encoder = encoders(6, projected=True)
    long, short = "word " * 75 + "cat cat", "cat"
    states, pooled = encode_prompts([long, short], [encoder])
    assert states.shape == (2, 154, 16)
    parts, ends = encode_prompts(["word " * 75, "cat cat", "cat", ""], [encoder])
    torch.testing.assert_close(states[0], parts[:2].flatten(0, 1), **CLOSE)
    torch.testing.assert_close(states[1], parts[2:].flatten(0, 1), **CLOSE)
    torch.testing.assert_close(pooled, ends[[0, 2]], **CLOSE)
    assert count_chunks([long, short], [encoder]) == 2
    filled, _ = encode_prompts([short], [encoder], least=2)
    torch.testing.assert_close(filled[0], states[1], **CLOSE)


@pytest.mark.parametrize("prompts", [[], [3], [["a"], ["b"], ["c"]], [["a"], ["b", "c"]]], ids=str)
def test_what_is_no_prompt_is_refused(encoders: Any, prompts: Any) -> None:
    _, _, encoder = encoders(7, projected=True)
    with pytest.raises(InarchError) as caught:
        encode_prompts(prompts, [encoder, encoder])
    assert caught.value.code == "IA505"
