"""The built wheels, installed: what an editable install hides, such as data files left out.

Run by the tox environment `wheels`; elsewhere the packages are editable, and these are skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import inarch

pytestmark = pytest.mark.skipif(
    "site-packages" not in (inarch.__file__ or ""), reason="the packages are not wheels here"
)

PACKAGES = [
    "inarch",
    "inarch-llama",
    "inarch-lora",
    "inarch-gguf",
    "inarch-smollm2-voices",
    "inarch-training",
]


def command(*args: str) -> Any:
    call = [sys.executable, "-m", "inarch", *args, "--json"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["data"]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_has_its_licence_manifest_and_marker(name: str) -> None:
    files = {str(path) for path in distribution(name).files or ()}
    package = name.replace("-", "_")
    assert any(file.endswith("licenses/LICENSE") for file in files)
    if name != "inarch":
        assert f"{package}/inarch.toml" in files
    if name != "inarch-smollm2-voices":
        assert f"{package}/py.typed" in files


def test_the_command_line_lists_what_the_wheels_brought() -> None:
    assert [m["id"] for m in command("models")["models"]] == ["llama"]
    listed = command("adapters", "--for", "smollm2")
    assert [a["id"] for a in listed["adapters"]] == ["lora"]
    assert [w["id"] for w in listed["weights"]] == ["pirate", "terse_json"]
    assert command("show", "gguf")[0]["kind"] == "format"
    assert command("doctor")["findings"] == []


def test_the_installed_command_is_on_the_path() -> None:
    script = Path(sys.executable).with_name("inarch")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert inarch.__version__ in done.stdout


def test_the_scaffolds_come_with_the_wheel(tmp_path: Path) -> None:
    for kind in ("adapter", "model"):
        data = command("new", kind, f"my-{kind}", "--in", str(tmp_path))
        assert (Path(data["folder"]) / "pyproject.toml").is_file()
        assert (Path(data["folder"]) / "src" / f"inarch_my_{kind}" / "inarch.toml").is_file()


def test_llama_and_lora_load_train_and_save(tmp_path: Path) -> None:
    from inarch_llama.model import Llama

    config = {
        "model_type": "llama",
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    tree = Llama.build(Llama.parse_config(config))[""]
    save_file(tree.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = inarch.load(tmp_path)
    adapted = base.adapt(inarch.adapter("lora", rank=2))
    ids = torch.tensor([[1, 2, 3]])
    adapted(ids).sum().backward()
    folder = adapted.save_adapter("lora", tmp_path / "lora")
    again = base.adapt(inarch.adapter("lora", weights=folder))
    assert torch.equal(again(ids), adapted(ids))


def test_the_voices_and_the_gguf_file_answer() -> None:
    answer = command(
        "run", "smollm2", "--with", "terse_json", "--message", "What is the capital of Japan?",
        "--greedy", "--max-new-tokens", "24",
    )  # fmt: skip
    assert list(json.loads(answer["text"])) == ["answer"]
