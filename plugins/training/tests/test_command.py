"""`inarch train`, as its user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import inarch
from inarch.cli.main import main

CONFIG = {
    "model_type": "llama",
    "vocab_size": 12,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
WORDS = ["<unk>", "the", "sea", "is", "wide", "deep", "blue", "and", "a", "ship", "sails", "on"]


@pytest.fixture
def folder(base: Any, tmp_path: Path) -> Path:
    """A checkpoint with a tokenizer of twelve words, and two files of examples beside it."""
    path = tmp_path / "model"
    path.mkdir()
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    save_file(_tree().state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG))
    lines = ["the sea is wide and blue", "a ship sails on the sea", "the sea is deep"]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return tmp_path


def _tree() -> Any:
    from inarch_llama.model import Llama

    torch.manual_seed(5)
    return Llama.build(Llama.parse_config(CONFIG))[""]


def run(folder: Path, *args: str) -> int:
    model, data = str(folder / "model"), str(folder / "data.jsonl")
    with pytest.raises(SystemExit) as stop:
        main(["train", model, "--data", data, "--steps", "4", *args])
    return int(stop.value.code or 0)


def test_a_run_leaves_an_adapter_and_says_what_it_did(folder: Path, capsys: Any) -> None:
    out = str(folder / "out")
    assert run(folder, "--out", out, "--rank", "3", "--name", "mine", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert body["ok"]
    assert body["data"]["steps"] == 4
    base = inarch.load(folder / "model")
    adapted = base.adapt(inarch.adapter("lora", weights=out, name="mine"))
    size = sum(p.numel() for p in adapted.adapters["mine"].parameters().values())
    assert body["data"]["parameters"] == size
    assert json.loads((folder / "out" / "adapter_config.json").read_text())["r"] == 3


def test_weights_go_on_from_where_another_run_ended(folder: Path, capsys: Any) -> None:
    first, second = str(folder / "first"), str(folder / "second")
    assert run(folder, "--out", first, "--learning-rate", "0.01") == 0
    assert run(folder, "--weights", first, "--out", second, "--learning-rate", "0", "--json") == 0
    capsys.readouterr()
    one = load_file(folder / "first" / "adapter_model.safetensors")
    other = load_file(folder / "second" / "adapter_model.safetensors")
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_an_adapter_beside_acts_and_stays_as_it_is(folder: Path, capsys: Any) -> None:
    voice, out = folder / "voice", folder / "out"
    assert run(folder, "--out", str(voice), "--learning-rate", "0.3", "--name", "voice") == 0
    before = (voice / "adapter_model.safetensors").read_bytes()
    stack = folder / "stack.toml"
    stack.write_text(
        'model = "model"\n[[adapter]]\nuse = "lora"\nweights = "voice"\nname = "voice"\n'
    )
    losses: list[float] = []
    for model in (str(folder / "model"), str(stack)):
        args = ["train", model, "--data", str(folder / "data.jsonl"), "--steps", "1"]
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*args, "--out", str(out), "--name", "mine", "--json"])
        assert not stop.value.code
        losses.append(json.loads(capsys.readouterr().out)["data"]["first_loss"])
    assert losses[0] != losses[1]
    assert (voice / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "code"), [("--with", "IA406"), ("--weights", "IA201"), ("--adapter", "IA406")]
)
def test_what_is_not_there_is_refused_before_anything_is_written(
    folder: Path, capsys: Any, option: str, code: str
) -> None:
    out = folder / "out"
    assert run(folder, "--out", str(out), option, "nowhere", "--json") != 0
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert not out.exists()


def test_ctrl_c_saves_and_resume_ends_as_if_nothing_had_happened(folder: Path) -> None:
    model, data = str(folder / "model"), str(folder / "data.jsonl")
    command = [sys.executable, "-m", "inarch", "train", model, "--data", data, "--steps", "3000"]
    command += ["--save-every", "10", "--rank", "2"]
    out = folder / "out"
    running = subprocess.Popen([*command, "--out", out], stderr=subprocess.PIPE, text=True)
    ends = time.monotonic() + 120
    while not (out / "state" / "state.json").exists() and time.monotonic() < ends:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "--resume" in said
    step = json.loads((out / "state" / "state.json").read_text())["step"]
    assert 10 <= step < 3000
    assert len((out / "loss.csv").read_text().splitlines()) == step + 1
    command[command.index("3000")] = str(step + 2)
    subprocess.run([*command, "--out", out, "--resume"], check=True, capture_output=True)
    assert json.loads((out / "state" / "state.json").read_text())["step"] == step + 2
