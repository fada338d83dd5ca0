"""`inarch train` and `inarch run` by two processes: what one does, told once."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from starting import said_of
from tokenizers import Tokenizer, models, pre_tokenizers

from inarch.cli.main import main
from inarch_llama.model import Llama

CONFIG = {
    "model_type": "llama",
    "vocab_size": 12,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WORDS = ["<unk>", "the", "sea", "is", "wide", "deep", "blue", "and", "a", "ship", "sails", "on"]
LINES = ["the sea is wide and blue", "a ship sails on the sea", "the sea is deep", "a deep sea"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]

pytestmark = pytest.mark.xdist_group("two processes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer of twelve words, and examples beside it."""
    path = tmp_path_factory.mktemp("commands")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (path / "model").mkdir()
    tokenizer.save(str(path / "model" / "tokenizer.json"))
    torch.manual_seed(5)
    tree = Llama.build(Llama.parse_config(CONFIG))[""]
    save_file(tree.state_dict(), path / "model" / "model.safetensors")
    (path / "model" / "config.json").write_text(json.dumps(CONFIG))
    text = "".join(json.dumps({"text": line}) + "\n" for line in LINES)
    (path / "data.jsonl").write_text(text)
    (path / "data0.jsonl").write_text(text)
    return path


def training(folder: Path, out: str, steps: int, *more: str) -> list[str]:
    command = ["train", str(folder / "model"), "--data", str(folder / "data.jsonl"), "--json"]
    command += ["--out", str(folder / out), "--steps", str(steps), "--schedule", "constant"]
    return [*command, "--rank", "2", "--batch-size", "3", "--learning-rate", "0.01", *more]


def generating(folder: Path) -> list[str]:
    stack = folder / "stack.toml"
    stack.write_text('model = "model"\n[[adapter]]\nuse = "lora"\nweights = "whole"\n')
    command = ["run", str(stack), "--prompt", "the sea", "--max-new-tokens", "8"]
    return [*command, "--seed", "3", "--temperature", "1.3"]


def alone(command: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(command)
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def said(folder: Path) -> list[list[Any]]:
    """What each of two processes said of every command."""
    assert alone(training(folder, "whole", 8)) == 0
    assert alone(training(folder, "turns", 2)) == 0
    commands = [
        training(folder, "turns", 4, "--resume", "--parallel", "fsdp"),
        training(folder, "turns", 6, "--resume", "--parallel", "tensor"),
        training(folder, "shares", 8),
        generating(folder),
        training(folder, "nothing", 1, "--with", "nowhere"),
        training(folder, "nothing", 1, "--device", "nowhere"),
        training(folder, "occupied", 1),
        training(folder, "whole", 9, "--resume", "--rank", "3"),
    ]
    (folder / "occupied" / "adapter_model.safetensors").mkdir(parents=True)
    found = said_of(commands, folder)
    assert alone(training(folder, "turns", 8, "--resume")) == 0
    return found


def losses(folder: Path) -> list[float]:
    with (folder / "loss.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("out", ["shares", "turns"])
def test_two_processes_train_as_one_does_and_in_turns_with_one(
    out: str, folder: Path, said: list[Any]
) -> None:
    assert [[code for code, *_ in one[:3]] for one in said] == [[0, 0, 0]] * 2, said
    assert losses(folder / out) == pytest.approx(losses(folder / "whole"), abs=2e-5)
    one, other = (load_file(folder / o / "adapter_model.safetensors") for o in ("whole", out))
    assert list(one) == list(other)
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, atol=2e-5, rtol=1e-4)


def test_one_of_two_processes_tells_what_was_done(folder: Path, said: list[Any]) -> None:
    first, second = said
    for number in range(3):
        assert json.loads(first[number][1])["ok"]
        assert second[number][1:] == ["", ""]


def test_two_processes_generate_the_text_of_one(
    folder: Path, said: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert alone(generating(folder)) == 0
    text = capsys.readouterr().out
    assert len(text.split()) > 4
    assert [one[3][:2] for one in said] == [[0, text], [0, ""]]


@pytest.mark.parametrize(
    ("number", "code"), [(4, "IA406"), (5, "IA209"), (6, "IA707"), (7, "IA603")]
)
def test_what_is_wrong_in_both_is_told_once(number: int, code: str, said: list[Any]) -> None:
    ends = [one[number] for one in said]
    assert [end != 0 for end, *_ in ends] == [True, True]
    [told] = [out for _, out, _ in ends if out]
    assert json.loads(told)["error"]["code"] == code


@pytest.mark.parametrize(
    ("right", "wrong", "code"),
    [("data.jsonl", "data$RANK.jsonl", "IA601"), ("--data", "--date", "IA701")],
)
def test_what_is_wrong_in_one_or_in_both_ends_both_with_one_message(
    right: str, wrong: str, code: str, folder: Path
) -> None:
    command = " ".join(training(folder, "broken", 4)).replace(right, wrong)
    python = f"{sys.executable} -m inarch {command}"
    done = subprocess.run(
        [*TORCHRUN, "--no-python", "bash", "-c", python],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    [body] = [json.loads(done.stdout)]
    assert body["error"]["code"] == code
    assert "inarch/cli" not in done.stderr  # of Python's tracebacks there is torchrun's alone


def running(command: list[str], saved: Path) -> subprocess.Popen[str]:
    """A run of two processes that has saved its state once."""
    started = subprocess.Popen(
        [*TORCHRUN, "-m", "inarch", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    wait_for(saved.exists)
    return started


def test_ctrl_c_saves_once_and_ends_both(folder: Path) -> None:
    state = folder / "cut" / "state" / "state.json"
    run = running(training(folder, "cut", 100_000, "--save-every", "5"), state)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    out, _ = run.communicate(timeout=60)
    assert run.returncode != 0
    body = json.loads(out)
    assert body["data"]["interrupted"]
    assert json.loads(state.read_text())["step"] == body["data"]["steps"] >= 5


@pytest.mark.parametrize("plan", ["replicate", "fsdp"])
def test_a_process_that_is_killed_ends_the_other_with_one_message(plan: str, folder: Path) -> None:
    more = ("--save-every", "5", "--parallel", plan)
    state = folder / f"killed {plan}" / "state" / "state.json"
    run = running(training(folder, f"killed {plan}", 100_000, *more), state)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    out, _ = run.communicate(timeout=60)
    assert run.returncode != 0
    assert json.loads(out)["error"]["code"] == "IA883"
    assert json.loads(state.read_text())["step"] >= 5


def test_the_script_of_the_page_runs_as_it_stands(folder: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "many-processes.md").read_text("utf-8")
    [script] = [s for s in re.findall(r"```python\n(.*?)```", page, re.S) if "inarch.load" in s]
    file = tmp_path / "script.py"
    file.write_text(script.replace('"smollm2"', repr(str(folder / "model"))))
    done = subprocess.run(
        [*TORCHRUN, str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert set(done.stdout.split()) <= set(WORDS)
    assert {f.name for f in (tmp_path / "mine").iterdir()} >= {"adapter_config.json"}


def wait_for(there: Callable[[], bool]) -> None:
    ends = time.monotonic() + 120
    while not there() and time.monotonic() < ends:
        time.sleep(0.05)


@pytest.mark.parametrize("plan", ["replicate", "fsdp", "tensor"])
def test_one_process_is_not_asked_to_share(
    plan: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert alone(training(folder, "nothing", 1, "--parallel", plan)) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "IA882"
    assert not (folder / "nothing").exists()


ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, ON_GPU])])
def test_a_group_of_one_trains_and_goes_on_under_another_plan(device: str, folder: Path) -> None:
    assert grouped_in_turn(folder, device) == [4, 8]


def grouped_in_turn(folder: Path, device: str) -> list[int]:
    """The steps done after each of two runs by a group of one, the second of another plan."""
    steps: list[int] = []
    for more in (["--parallel", "fsdp"], ["--parallel", "tensor", "--resume"]):
        command = training(folder, f"on {device}", 4 + 4 * len(steps), "--device", device, *more)
        done = subprocess.run(
            [*TORCHRUN[:-1], "1", "-m", "inarch", *command],
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        steps.append(json.loads(done.stdout)["data"]["steps"])
    return steps
