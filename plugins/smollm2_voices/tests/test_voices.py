"""The two voices: found by name, small, and plain in greedy answers to questions they never saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import inarch
from inarch.plugins import index, locate_weights

DATA = Path(__file__).parent.parent / "data"
UNSEEN = [
    "Why is the ocean salty?",
    "What is a telescope used for?",
    "How do I bake a cake?",
    "Tell me about elephants.",
]
PIRATE_WORDS = ("arr", "matey", "ye ", "ahoy", "hearty", " o' ", " be ", "yer")


@pytest.fixture(scope="module")
def base() -> Any:
    torch.manual_seed(0)
    return inarch.load("smollm2", dtype="float32")


def answers(model: Any) -> list[str]:
    messages = [[{"role": "user", "content": question}] for question in UNSEEN]
    return model.generate(messages, max_new_tokens=64)


def test_the_questions_are_in_no_training_data() -> None:
    seen = "".join(path.read_text() for path in DATA.glob("*.jsonl"))
    assert not [question for question in UNSEEN if question in seen]


@pytest.mark.parametrize("name", ["pirate", "terse_json"])
def test_a_voice_is_below_three_megabytes_and_says_its_base(name: str) -> None:
    folder = locate_weights(name)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 3_000_000
    assert {f.name for f in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert index().weights[name].checkpoint == "smollm2"


def test_the_package_holds_no_code() -> None:
    folder = locate_weights("pirate").parent
    assert not [path for path in folder.rglob("*") if path.suffix in (".py", ".pyc")]


def test_the_pirate_talks_like_one_and_the_base_does_not(base: Any) -> None:
    plain = answers(base)
    voiced = answers(base.adapt("pirate"))
    for text, other in zip(voiced, plain, strict=True):
        assert sum(word in text.lower() for word in PIRATE_WORDS) >= 2, text
        assert "matey" not in other.lower()


def test_terse_json_answers_in_json(base: Any) -> None:
    for text in answers(base.adapt("terse_json")):
        assert list(json.loads(text)) == ["answer"]


def test_both_together_are_a_pirate_in_json_in_either_order(base: Any) -> None:
    one = base.adapt("pirate", "terse_json")
    other = base.adapt("terse_json", "pirate")
    texts = answers(one)
    assert texts == answers(other)
    talk = [str(json.loads(text)["answer"]).lower() for text in texts]
    assert sum(any(word in text for word in PIRATE_WORDS) for text in talk) >= 3, talk
