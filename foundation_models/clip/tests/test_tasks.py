"""Texts and images as users pass them, against transformers' tokenizer and processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import inarch
from inarch.errors import InarchError
from inarch_clip.images import ImageProcessor
from inarch_clip.tokens import ClipTokenizer

TEXTS = [
    "a photo of a cat",
    "A  Photo\tof\n a CAT!!",
    "",
    "don't we'll they've I'm he'd it's",
    "naïve café Ångström ﬁ ½ \u0301e e\u0301",
    "数字123と文字, emoji 🐈\u200d⬛ <|endoftext|> inside",
    "<|startoftext|>twice, 3.14159; under_score-hyphen/slash",
    "the   end   ",
    "\x00\x1f control \u00a0 nbsp \u2003 em",
    "a_cat's 12 dogs'",
]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vocab.json and merges.txt: bytes, and merges of some words."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder = tmp_path_factory.mktemp("vocabulary")
    letters = sorted(ByteLevel.alphabet())
    words = ["photo", "cat", "the", "dog", "of", "numbers", "and"]
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges[parts[0], parts[1]] = None
            parts = ["".join(parts[:2]), *parts[2:]]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(ids), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    return folder


@pytest.fixture
def folder(theirs: Any, saved: Any, vocabulary: Path) -> Path:
    """A whole CLIP with a tokenizer of its own size."""
    size = len(json.loads((vocabulary / "vocab.json").read_text()))
    ends = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1}
    path = saved(theirs("CLIPModel", seed=11, text_config={**ends, "max_position_embeddings": 40}))
    for name in ("vocab.json", "merges.txt"):
        (path / name).write_bytes((vocabulary / name).read_bytes())
    return path


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    shape = (height, width, 3)
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(values).resize((width, height)).convert(mode)


# Texts


@pytest.mark.parametrize("written", [False, True], ids=["vocab_and_merges", "tokenizer_json"])
def test_token_ids_equal_transformers(vocabulary: Path, tmp_path: Path, written: bool) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(vocabulary)
    source = vocabulary
    if written:
        theirs.save_pretrained(tmp_path)
        source = tmp_path
    ours = ClipTokenizer.from_folder(source)
    for text in TEXTS:
        expected = theirs(text).input_ids
        assert ours.encode(text) == expected, text
        assert ours.encode(text, special=False) == expected[1:-1]
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )


def test_a_padding_token_of_its_own_fills_rows(vocabulary: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((vocabulary / name).read_bytes())
    settings = {"pad_token": {"content": "!", "special": True}, "bos_token": "<|startoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.CLIPTokenizer.from_pretrained(vocabulary, pad_token="!")
    ours = ClipTokenizer.from_folder(tmp_path)
    texts = ["a cat", "the dog and the cat"]
    expected = theirs(texts, padding="max_length", max_length=20, return_tensors="pt").input_ids
    assert torch.equal(ours.rows([ours.encode(text) for text in texts], 20), expected)


@pytest.mark.parametrize("wrong", ["vocab.json", "tokenizer.json"])
def test_a_broken_tokenizer_is_refused(vocabulary: Path, tmp_path: Path, wrong: str) -> None:
    (tmp_path / "merges.txt").write_bytes((vocabulary / "merges.txt").read_bytes())
    (tmp_path / wrong).write_text("{")
    with pytest.raises(InarchError) as caught:
        ClipTokenizer.from_folder(tmp_path)
    assert caught.value.code == "IA501"


def test_texts_embed_as_transformers_embeds_them(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    ours = inarch.load(folder)
    texts = ["a cat", "the dog and the cat", "", "numbers 12"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs.get_text_features(**batch).pooler_output
    actual = ours.embed_text(texts)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.embed_text("a cat"), actual[:1], rtol=1e-5, atol=1e-5)
    norms = ours.embed_text(texts, normalise=True).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(4))


def test_a_text_that_is_too_long_is_refused_or_cut_when_asked(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours, long = inarch.load(folder), "the cat " * 40
    with pytest.raises(InarchError) as caught:
        ours.embed_text(["a dog", long])
    assert caught.value.code == "IA543"
    assert "40 have a position" in str(caught.value)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    expected = tokenizer(long, truncation=True, max_length=40).input_ids
    assert ours.token_ids(long, truncate=True).tolist() == [expected]


@pytest.mark.parametrize("texts", [[], ["a", 3], 7])
def test_what_is_no_text_is_refused(folder: Path, texts: Any) -> None:
    with pytest.raises(InarchError) as caught:
        inarch.load(folder).embed_text(texts)
    assert caught.value.code == "IA543"


def test_a_model_without_a_tokenizer_says_what_is_missing(theirs: Any, saved: Any) -> None:
    with pytest.raises(InarchError) as caught:
        inarch.load(saved(theirs("CLIPModel"))).embed_text("a cat")
    assert caught.value.code == "IA506"
    assert "merges.txt" in str(caught.value)


# Images

SIZES = [(30, 30), (64, 41), (41, 64), (17, 90), (31, 30), (200, 33)]
PROCESSORS: dict[str, dict[str, Any]] = {
    "published": {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}},
    "numbers": {"size": 36, "crop_size": 30},
    "bilinear": {"size": {"shortest_edge": 30}, "crop_size": 30, "resample": 2},
    "stretched": {"size": {"height": 30, "width": 30}, "crop_size": 30},
    "padded": {"size": {"shortest_edge": 21}, "crop_size": 30},
    "uncropped": {"size": {"height": 30, "width": 30}, "do_center_crop": False},
    "plain": {"size": 30, "crop_size": 30, "do_normalize": False, "do_rescale": False},
    "half": {"size": 30, "crop_size": 30, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}


@pytest.mark.parametrize("settings", PROCESSORS)
@pytest.mark.parametrize("nested", [False, True], ids=["preprocessor", "processor"])
def test_pixels_equal_the_published_processor(tmp_path: Path, settings: str, nested: bool) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPImageProcessorPil(**PROCESSORS[settings])
    theirs.save_pretrained(tmp_path)
    if nested:
        old = tmp_path / "preprocessor_config.json"
        text = json.dumps({"image_processor": json.loads(old.read_text())})
        (tmp_path / "processor_config.json").write_text(text)
        old.unlink()
    ours = ImageProcessor.from_folder(tmp_path, 30)
    level = 1.0 if settings == "plain" else 1 / 255 / 0.25
    for seed, size in enumerate(SIZES):
        image = picture(*size, seed=seed)
        expected = theirs(image, return_tensors="pt").pixel_values.float()
        actual = ours([image])
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= level * 1e-3


def test_images_of_every_mode_equal_the_processor_s() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPImageProcessorPil(size=30, crop_size=30)
    ours = ImageProcessor.from_folder(None, 30)
    for mode in ("L", "RGBA", "P", "CMYK", "1", "LA"):
        image = picture(40, 50, mode)
        expected = theirs(image, return_tensors="pt").pixel_values
        torch.testing.assert_close(ours([image]), expected.float(), rtol=0, atol=1e-5)


def test_a_path_an_image_an_array_and_a_tensor_are_one_image(folder: Path) -> None:
    ours, image = inarch.load(folder), picture(45, 33)
    image.save(folder / "image.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = ours.embed_image(image)
    forms = [folder / "image.png", str(folder / "image.png"), array, tensor, tensor / 255]
    for form in [*forms, array.astype(np.float32) / 255]:
        assert torch.equal(ours.embed_image(form), expected)
    together = ours.embed_image([image, *forms])
    torch.testing.assert_close(together, expected.expand(6, -1), rtol=1e-5, atol=1e-5)


def test_grey_arrays_are_images_too() -> None:
    ours, grey = ImageProcessor.from_folder(None, 30), picture(40, 40, "L")
    array = np.asarray(grey)
    for form in (array, array[None], array[..., None]):
        assert torch.equal(ours([form]), ours([grey]))


@pytest.mark.parametrize(
    "image",
    [
        3,
        "nowhere.png",
        np.zeros((5, 5), dtype=np.int64),
        np.full((5, 5, 3), 200.0),
        np.full((5, 5, 3), np.nan),
        np.zeros((5, 5, 2), dtype=np.uint8),
        np.zeros((0, 5, 3), dtype=np.uint8),
        torch.zeros(2, 3, 5, 5),
        [],
    ],
    ids=["number", "path", "integers", "large", "nan", "channels", "empty", "batch", "none"],
)
def test_what_is_no_image_is_refused(folder: Path, image: Any) -> None:
    with pytest.raises(InarchError) as caught:
        inarch.load(folder).embed_image(image)
    assert caught.value.code == "IA542"


def test_a_file_that_is_no_image_is_refused(folder: Path) -> None:
    with pytest.raises(InarchError) as caught:
        inarch.load(folder).embed_image(folder / "config.json")
    assert caught.value.code == "IA542"
    assert "config.json" in str(caught.value)


# Both


def test_classes_are_as_likely_as_transformers_finds_them(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil(size=30, crop_size=30)
    labels, images = ["cat", "dog", "photo of numbers"], [picture(40, 33), picture(31, 60, seed=2)]
    texts = tokenizer([f"a {label}!" for label in labels], padding=True, return_tensors="pt")
    pixels = processor(images, return_tensors="pt").pixel_values.float()
    with torch.no_grad():
        expected = theirs(**texts, pixel_values=pixels).logits_per_image.softmax(-1).tolist()
    ours = inarch.load(folder)
    found = ours.classify(images, labels, template="a {}!")
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(dict(zip(labels, wanted, strict=True)), abs=1e-5)
        assert list(row.values()) == sorted(row.values(), reverse=True)
    assert ours.classify(images[0], labels, template="a {}!") == pytest.approx(found[0], abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "template", "why"),
    [
        ([], "{}", "at least one"),
        ("cat", "{}", "a list"),
        (["cat", "cat"], "{}", "twice"),
        (["cat"], "a photo", "no {}"),
    ],
)
def test_labels_that_leave_no_choice_are_refused(
    folder: Path, labels: Any, template: str, why: str
) -> None:
    with pytest.raises(InarchError) as caught:
        inarch.load(folder).classify(picture(30, 30), labels, template=template)
    assert caught.value.code == "IA543"
    assert why in str(caught.value)
