"""Each published layout, against diffusers, and the files that are refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import inarch
from inarch.errors import InarchError

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TEXTS = ["a <toy> on a shelf", "photo", "<toy> dog <toy>"]


def vectors(count: int, width: int = 16) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count)) * 0.3


def spec(folder: Path, tensors: dict[str, Tensor], name: str = "toy", **options: Any) -> Any:
    save_file(tensors, folder / f"{name}.safetensors")
    weights = folder / f"{name}.safetensors"
    return inarch.adapter("textual-inversion", weights=weights, name=name, **options)


def pipeline(tokenizer: Any, encoder: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    parts = dict.fromkeys(("vae", "unet", "scheduler", "safety_checker", "feature_extractor"))
    return diffusers.StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, text_encoder=encoder, requires_safety_checker=False
    )


def encoded(model: Any, tree: str, texts: list[str]) -> Any:
    """The states and pooled states of texts, 77 tokens each."""
    tokenizer = model.tokenizers[tree]
    rows = tokenizer.rows([tokenizer.encode(text) for text in texts], 77)
    with torch.no_grad():
        return model.trees[tree](rows, mask=None)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("key", ["<toy>", "emb_params"])
def test_one_encoder_s_files_equal_diffusers(
    encoders: Any, tmp_path: Path, key: str, count: int
) -> None:
    tokenizer, theirs, base = encoders()
    learned = vectors(max(count, 1))
    learned = learned if count else learned[0]  # [width], as some files have it
    pipe = pipeline(tokenizer, copy.deepcopy(theirs))
    pipe.load_textual_inversion({"<toy>": learned})
    with torch.no_grad():
        expected, _ = pipe.encode_prompt(TEXTS, "cpu", 1, False)
    model = base.adapt(spec(tmp_path, {key: learned}))
    torch.testing.assert_close(encoded(model, "", TEXTS)[0], expected, **CLOSE)


def test_two_words_equal_diffusers(encoders: Any, tmp_path: Path) -> None:
    tokenizer, theirs, base = encoders()
    pipe = pipeline(tokenizer, copy.deepcopy(theirs))
    pipe.load_textual_inversion({"<art>": vectors(2)})
    pipe.load_textual_inversion({"<toy>": vectors(3)})
    texts = ["a <toy> in the style of <art>", "<art> <art>"]
    with torch.no_grad():
        expected, _ = pipe.encode_prompt(texts, "cpu", 1, False)
    toy, art = spec(tmp_path, {"<toy>": vectors(3)}), spec(tmp_path, {"<art>": vectors(2)}, "art")
    torch.testing.assert_close(encoded(base.adapt(toy, art), "", texts)[0], expected, **CLOSE)


def test_a_token_of_the_user_s_choice_equals_diffusers(encoders: Any, tmp_path: Path) -> None:
    tokenizer, theirs, base = encoders()
    pipe = pipeline(tokenizer, copy.deepcopy(theirs))
    pipe.load_textual_inversion({"<old>": vectors(2)}, token="<toy>")
    with torch.no_grad():
        expected, _ = pipe.encode_prompt(TEXTS, "cpu", 1, False)
    model = base.adapt(spec(tmp_path, {"<old>": vectors(2)}, token="<toy>"))
    torch.testing.assert_close(encoded(model, "", TEXTS)[0], expected, **CLOSE)


@pytest.mark.parametrize("keys", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
@pytest.mark.parametrize("count", [1, 2])
def test_two_encoders_files_equal_diffusers(
    pair: Any, tmp_path: Path, keys: tuple[str, str], count: int
) -> None:
    diffusers = pytest.importorskip("diffusers")
    tokenizers, theirs, base = pair
    first, second = vectors(count), vectors(count, 20)
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=None,
        text_encoder=theirs[0],
        text_encoder_2=theirs[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=None,
        scheduler=None,
        add_watermarker=False,
    )
    for learned, tokenizer, encoder in zip((first, second), tokenizers, theirs, strict=True):
        pipe.load_textual_inversion({"<toy>": learned}, text_encoder=encoder, tokenizer=tokenizer)
    model = base.adapt(spec(tmp_path, dict(zip(keys, (first, second), strict=True))))
    for tree, tokenizer, encoder in zip(base.trees, tokenizers, theirs, strict=True):
        prompts = pipe.maybe_convert_prompt(TEXTS, tokenizer)
        rows = tokenizer(
            prompts, padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            expected = encoder(rows)
        states, pooled = encoded(model, tree, TEXTS)
        torch.testing.assert_close(states, expected.last_hidden_state, **CLOSE)
        projected = "text_embeds" if tree == "text_encoder_2" else "pooler_output"
        torch.testing.assert_close(pooled, getattr(expected, projected), **CLOSE)
    embeds = pipe.encode_prompt(TEXTS, device="cpu", do_classifier_free_guidance=False)
    assert embeds[0].shape == (3, 77, 36)


def test_one_encoder_of_two_is_found_by_width_or_by_name(pair: Any, tmp_path: Path) -> None:
    _, _, base = pair
    model = base.adapt(spec(tmp_path, {"<toy>": vectors(1, 20)}))
    assert set(model.tokenizers["text_encoder"].encode("<toy>")) <= {
        *range(base.tokenizers["text_encoder"].size)
    }
    assert base.tokenizers["text_encoder_2"].size in model.tokenizers["text_encoder_2"].encode(
        "<toy>"
    )
    named = base.adapt(spec(tmp_path, {"clip_g": vectors(1, 20)}, encoder="text_encoder_2"))
    assert [edit.address for edit in named.adapters["toy"].edits] == ["text_encoder_2"]
    with pytest.raises(InarchError) as caught:
        base.adapt(spec(tmp_path, {"clip_g": vectors(1, 20)}, encoder="text_encoder"))
    assert caught.value.code == "IA472"


def test_what_was_learned_for_two_encoders_is_saved_and_read_again(
    pair: Any, tmp_path: Path
) -> None:
    _, _, base = pair
    fresh = inarch.adapter("textual-inversion", name="toy", token="<cat-toy>", vectors=2)
    model = base.adapt(fresh)
    with torch.no_grad():
        for parameter in model.adapters["toy"].parameters().values():
            parameter.normal_()
    folder = model.save_adapter("toy", tmp_path / "saved")
    again = base.adapt(inarch.adapter("textual-inversion", weights=folder, name="other"))
    for tree in base.trees:
        expected = encoded(model, tree, ["a <cat-toy>"])
        assert all(map(torch.equal, encoded(again, tree, ["a <cat-toy>"]), expected))


# Refusals


@pytest.mark.parametrize(
    "tensors",
    [
        {"<a>": vectors(1), "<b>": vectors(1)},
        {"clip_l": vectors(1), "clip_g": vectors(2)},
        {"clip_l": vectors(1), "other": vectors(1)},
        {"<toy>": torch.zeros(2, 2, 16)},
        {"<toy>": torch.zeros(2, 16, dtype=torch.int64)},
        {"<toy>": torch.zeros(0, 16)},
    ],
    ids=["two words", "counts", "stranger", "3d", "integers", "empty"],
)
def test_a_file_that_is_no_layout_is_refused(
    encoders: Any, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    with pytest.raises(InarchError) as caught:
        encoders()[2].adapt(spec(tmp_path, tensors))
    assert caught.value.code == "IA471"
    assert "toy.safetensors" in str(caught.value)


def test_vectors_of_another_width_are_refused(encoders: Any, pair: Any, tmp_path: Path) -> None:
    _, _, base = encoders()
    cases = [
        (base, {"<toy>": vectors(1, 17)}, "17 wide"),
        (base, {"clip_l": vectors(1), "clip_g": vectors(1, 20)}, "the file is for 2"),
        (pair[2], {"clip_l": vectors(1, 20), "clip_g": vectors(1)}, "`clip_l` is 20 wide"),
    ]
    for model, tensors, why in cases:
        with pytest.raises(InarchError) as caught:
            model.adapt(spec(tmp_path, tensors))
        assert caught.value.code == "IA472"
        assert why in str(caught.value)


@pytest.mark.parametrize("token", ["cat</w>", "<|endoftext|>", "<art>"])
def test_a_token_that_is_taken_is_refused(encoders: Any, tmp_path: Path, token: str) -> None:
    base = encoders()[2].adapt(spec(tmp_path, {"<art>": vectors(1)}, "art"))
    with pytest.raises(InarchError) as caught:
        base.adapt(spec(tmp_path, {token: vectors(1)}))
    assert caught.value.code == "IA400"
    assert token in str(caught.value)
    assert base.adapters.names == ("art",)


def test_a_pickle_is_refused_with_the_line_that_converts_it(encoders: Any, tmp_path: Path) -> None:
    _, _, base = encoders()
    learned = vectors(2)
    torch.save({"string_to_param": {"*": learned}, "name": "toy"}, tmp_path / "toy.pt")
    adapter = inarch.adapter("textual-inversion", weights=tmp_path / "toy.pt", name="toy")
    with pytest.raises(InarchError) as caught:
        base.adapt(adapter)
    assert caught.value.code == "IA203"
    line = caught.value.remedy.partition(" for a file of the web")[0]
    line = line.replace("PATH", repr(str(tmp_path / "toy.pt")))
    line = line.replace('"word.safetensors"', repr(str(tmp_path / "word.safetensors")))
    import safetensors.torch

    exec(line, {"safetensors": safetensors, "torch": torch})
    path = tmp_path / "word.safetensors"
    model = base.adapt(inarch.adapter("textual-inversion", weights=path, name="toy"))
    [parameter] = model.adapters["toy"].parameters().values()
    assert torch.equal(parameter, learned)


@pytest.mark.parametrize(
    "options",
    [{"vectors": 0}, {"token": " x"}, {"token": "<a>", "tokens": ("<b>",)}, {"colour": "red"}],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(encoders: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InarchError) as caught:
        encoders()[2].adapt(inarch.adapter("textual-inversion", name="toy", **options))
    assert caught.value.code == "IA401"


@pytest.mark.parametrize("initial", ["", "   "])
def test_a_beginning_without_tokens_is_refused(encoders: Any, initial: str) -> None:
    with pytest.raises(InarchError) as caught:
        encoders()[2].adapt(inarch.adapter("textual-inversion", name="toy", initial=initial))
    assert caught.value.code == "IA473"
