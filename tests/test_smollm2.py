"""The real model, the whole way: SmolLM2-135M-Instruct as its package ships it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import inarch
from inarch.plugins import locate_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smollm2")]

QUESTIONS = [
    "What is the capital of Italy?",
    "Write a haiku about rain.",
    "Explain what a prime number is.",
    "How do I make tea?",
    "Translate 'good morning' into French.",
    "List three fruits.",
    "Who was Isaac Newton?",
    "What is 15 + 27?",
    "Write a Python function that reverses a string.",
    "Why do cats purr?",
]
TOKENS = 24


@pytest.fixture(scope="module")
def base() -> Any:
    return inarch.load("smollm2", dtype="float32")


def test_greedy_answers_equal_transformers_token_for_token(base: Any) -> None:
    transformers = pytest.importorskip("transformers")
    path = locate_checkpoint("smollm2")
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        expected = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        ids = base.tokenizer.encode_chat(messages)
        assert ids == expected[0].tolist()
        answer = theirs.generate(expected, max_new_tokens=TOKENS, do_sample=False)
        tokens = [t for [t] in base.generate_ids([ids], max_new_tokens=TOKENS)]
        assert tokens == answer[0, len(ids) :].tolist(), question


PEAK = """
import json, inarch, inarch.loading, inarch_gguf.checkpoint, inarch_llama.model
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
model = inarch.load("smollm2", dtype="float32")
bytes = sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values())
print(json.dumps([status("VmHWM") - before, bytes]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_loading_peaks_below_one_and_a_fifth_of_the_weights_bytes() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    peak, weights = json.loads(done.stdout)
    assert peak < 1.2 * weights


def test_the_command_line_answers_with_both_voices() -> None:
    command = [sys.executable, "-m", "inarch", "run", "smollm2", "--with", "pirate"]
    command += ["--with", "terse_json", "--message", "What is a telescope used for?"]
    command += ["--greedy", "--max-new-tokens", "48", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    body = json.loads(done.stdout)
    assert body["ok"]
    assert list(json.loads(body["data"]["text"])) == ["answer"]
    assert body["data"]["adapters"] == {"pirate": 1.0, "terse_json": 1.0}


def test_streamed_text_is_the_text(base: Any) -> None:
    pieces = list(base.generate("Once upon a time", max_new_tokens=20, stream=True))
    assert len(pieces) > 5
    assert "".join(pieces) == base.generate("Once upon a time", max_new_tokens=20)


def test_the_same_seed_draws_the_same_text(base: Any) -> None:
    options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9}
    first = base.generate("The sea", seed=3, **options)
    assert base.generate("The sea", seed=3, **options) == first
    assert base.generate("The sea", seed=4, **options) != first


def test_adapting_and_dropping_leaves_every_bit_of_the_real_model(base: Any) -> None:
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapted = base.adapt("pirate", "terse_json")
    adapted.generate("Hello", max_new_tokens=4)
    assert list(adapted.without("pirate", "terse_json").state_dict()) == list(before)
    assert all(torch.equal(base.state_dict()[name], before[name]) for name in before)
    shared = adapted.state_dict()
    assert all(shared[name].data_ptr() == base.state_dict()[name].data_ptr() for name in before)


def test_the_recipe_for_training_runs_as_it_stands(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    line = '{"prompt": "Once upon", "completion": " a time"}\n'
    (tmp_path / "data.jsonl").write_text(line * 4)
    command = [sys.executable, root / "examples" / "train_lora.py", "data.jsonl", "2"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "loss.csv"} <= names
