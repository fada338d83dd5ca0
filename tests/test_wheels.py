"""The built wheels, installed: what an editable install hides, such as data files left out.

Run by the tox environment `wheels`; elsewhere the packages are editable, and these are skipped.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
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

ROOT = Path(__file__).parent.parent
FOLDERS = {
    re.search(r'^name = "(.+)"', file.read_text("utf-8"), re.M)[1]: file.parent  # type: ignore[index]
    for pattern in ("core", "foundation_models/*", "plugins/*")
    for file in ROOT.glob(f"{pattern}/pyproject.toml")
}

ONE_TEST = """
import pytest
passed, failed = [], []

def pytest_runtest_protocol(item, nextitem):
    return True if passed else None

def pytest_runtest_logreport(report):
    if report.failed:
        failed.append(report.nodeid)
    elif report.when == "call" and report.passed:
        passed.append(report.nodeid)

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    print("PASSED", passed)
    session.exitstatus = 0 if passed and not failed else 1
"""


def command(*args: str) -> Any:
    call = [sys.executable, "-m", "inarch", *args, "--json"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["data"]


def manifest(folder: Path) -> dict[str, Any]:
    [file] = folder.glob("src/*/inarch.toml")
    return tomllib.loads(file.read_text("utf-8"))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_has_its_licence_manifest_marker_and_every_file_of_its_source(name: str) -> None:
    files = {str(path) for path in distribution(name).files or ()}
    assert any(file.endswith("licenses/LICENSE") for file in files)
    source = FOLDERS[name] / "src"
    wanted = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    package = name.replace("-", "_")
    assert wanted - files == set()
    assert name == "inarch" or f"{package}/inarch.toml" in files
    assert f"{package}/py.typed" in files or not any(f.endswith(".py") for f in wanted)


@pytest.mark.parametrize("name", FOLDERS)
def test_one_test_of_each_package_passes_with_the_wheels(name: str, tmp_path: Path) -> None:
    (tmp_path / "one_test.py").write_text(ONE_TEST)
    tests = FOLDERS[name] / "tests"
    call = [sys.executable, "-m", "pytest", "-q", "-p", "one_test", str(tests)]
    call += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    call += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_command_line_lists_what_the_wheels_brought() -> None:
    manifests = [manifest(folder) for name, folder in FOLDERS.items() if name != "inarch"]

    def ids(kind: str) -> list[str]:
        return sorted(entry["id"] for one in manifests for entry in one.get(kind, []))

    assert sorted(m["id"] for m in command("models")["models"]) == ids("model")
    listed = command("adapters")
    assert sorted(a["id"] for a in listed["adapters"]) == ids("adapter")
    assert sorted(w["id"] for w in listed["weights"]) == ids("weights")
    fitting = command("adapters", "--for", "smollm2")
    assert {"lora"} <= {a["id"] for a in fitting["adapters"]}
    assert [w["id"] for w in fitting["weights"]] == ["pirate", "terse_json"]
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
