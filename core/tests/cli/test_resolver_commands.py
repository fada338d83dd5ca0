"""check, order and lock --check: no plugin runs and torch is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import BROKEN, install, run

from inarch.plugins.index import _cached_index
from inarch.resolve.lock import Lock, LockedFile, LockedModel, changed, read_lock
from inarch.stack import load_stack

MODEL = """\
schema = 1
[[model]]
id = "llama"
model_types = ["llama"]
[model.roles]
"attention.query" = "layers.*.q"
"""
ADAPTERS = """\
schema = 1
[[adapter]]
id = "lora"
roles = ["attention.*"]
kinds = ["add"]
[[adapter]]
id = "ia3"
roles = ["attention.*"]
kinds = ["scale"]
[[adapter]]
id = "gains"
kinds = ["scale"]
after = ["lroa", "lora"]
[[adapter]]
id = "control"
roles = ["skip.*"]
kinds = ["provide"]
requires = ["lora"]
conflicts = ["ia3"]
models = { llama = ">=2" }
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, "inarch-llama", MODEL, "[inarch.models]\nllama = inarch_llama:Llama\n", BROKEN)
    points = "".join(f"{i} = inarch_adapters:A\n" for i in ("lora", "ia3", "gains", "control"))
    install(folder, "inarch-adapters", ADAPTERS, f"[inarch.adapters]\n{points}", BROKEN)
    real = [p for p in sys.path if p and "site-packages" not in p and "inarch" not in p]
    import packaging.specifiers
    import tomli_w  # while the path still leads to them

    assert packaging.specifiers
    assert tomli_w
    monkeypatch.setattr(sys, "path", [str(folder), *real])
    monkeypatch.setenv("INARCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    _cached_index.cache_clear()
    yield folder
    _cached_index.cache_clear()


def stack(folder: Path, *tables: str) -> str:
    base = folder / "base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text('{"model_type": "llama"}')
    path = folder / "stack.toml"
    path.write_text('model = "base"\n' + "".join(f"\n[[adapter]]\n{table}\n" for table in tables))
    return str(path)


def test_a_stack_that_is_fine_says_what_it_leaves_to_the_plan(
    site: Path, tmp_path: Path, capsys: Any
) -> None:
    path = stack(tmp_path, 'use = "lora"', 'use = "ia3"', 'use = "gains"')
    assert run("check", path) == 0
    out = capsys.readouterr()
    assert "fine, by manifests and file headers, for llama" in out.out
    left = " ".join(out.out.split())
    assert "whether the order of `ia3` and `lora` matters: the one scales, the other adds" in left
    assert "`gains`" not in left.partition("fine")[2]
    assert f"inarch plan {path}" in left
    assert "`gains` declares after `lroa`, which no installed package has" in out.err
    assert "did you mean lora?" in out.err
    assert max(map(len, out.out.splitlines())) <= 80 + len(path)


def test_everything_that_is_wrong_is_told_at_once(site: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x80\x04")
    path = stack(
        tmp_path,
        'use = "lorra"',
        'use = "control"\nafter = ["nobody"]',
        'use = "ia3"\nname = "my-gains"',
        'use = "ia3"',
        'use = "ia3"',
        'use = "gains"\nweights = "a.bin"',
        'use = "gains"\nname = "g"\nweights = "none.safetensors"',
    )
    assert run("check", "--json", path) == 1
    body = json.loads(capsys.readouterr().out)
    codes = [problem["code"] for problem in body["data"]["problems"]]
    assert codes == [
        "IA406",
        "IA116",
        "IA403",
        "IA203",
        "IA201",
        "IA418",
        "IA417",
        "IA416",
        "IA419",
        "IA801",
    ]
    assert body["error"]["code"] == "IA414"
    assert not body["ok"]


def test_declarations_in_a_circle_are_found_without_edits(
    site: Path, tmp_path: Path, capsys: Any
) -> None:
    path = stack(tmp_path, 'use = "lora"\nafter = ["ia3"]', 'use = "ia3"\nafter = ["lora"]')
    assert run("check", path) == 1
    assert "IA415" in capsys.readouterr().err


def test_checking_imports_neither_torch_nor_a_plugin(tmp_path: Path) -> None:
    path = stack(tmp_path, 'use = "lora"')
    code = (
        "import sys; from inarch.cli.main import main\n"
        "try: main(['check', sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "try: main(['lock', '--check', sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "wrong = {m for m in sys.modules if m == 'torch' or m.startswith('inarch_')}\n"
        "sys.exit(str(wrong) if wrong else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_order_is_written_into_the_file_and_read_from_it(
    site: Path, tmp_path: Path, capsys: Any
) -> None:
    path = stack(tmp_path, 'use = "lora"  # mine', 'use = "ia3"\nscale = 1.0', 'use = "gains"')
    assert run("order", path, "ia3", "--after", "lora") == 0
    assert run("order", path, "ia3", "--after", "gains", "--before", "lora") == 0
    specs = {spec.name: spec for spec in load_stack(path).specs}
    assert specs["ia3"].after == ("lora", "gains")
    assert specs["ia3"].before == ("lora",)
    assert specs["lora"].after == specs["gains"].after == ()
    assert "# mine" in Path(path).read_text()
    assert run("order", path, "ia3", "--after", "nobody") == 1
    assert run("order", path, "ia3") == 2


def held(folder: Path) -> Lock:
    return Lock(
        digest="d",
        order=["lora"],
        model=LockedModel(family="llama", source="base", fingerprint="f"),
        adapter=[],
        distribution=[],
    )


def test_a_lock_says_each_thing_that_changed(site: Path, tmp_path: Path) -> None:
    path = stack(tmp_path, 'use = "lora"')
    lock = held(tmp_path)
    lock.model.file.append(LockedFile(path="base/config.json", bytes=3, sample="s"))
    lock.model.file.append(LockedFile(path="base/gone", bytes=3, sample="s"))
    facts = changed(lock, load_stack(path), tmp_path)
    assert facts == [
        "the stack has an adapter `lora` that the lock doesn't know",
        "the file base/config.json was 3 bytes, and is 23",
        "the file base/gone is gone",
    ]


def test_a_stale_lock_exits_4_and_one_that_is_none_exits_1(
    site: Path, tmp_path: Path, capsys: Any
) -> None:
    path = stack(tmp_path, 'use = "lora"')
    target = Path(path).with_suffix(".lock")
    assert run("lock", "--check", path) == 1
    assert "IA810" in capsys.readouterr().err
    target.write_text(held(tmp_path).text())
    assert read_lock(target) == held(tmp_path)
    assert run("lock", "--check", path) == 4
    err = capsys.readouterr().err
    assert "IA804" in err
    assert "that the lock doesn't know" in err
    target.write_text("digest = 3")
    assert run("lock", "--check", path) == 1


def test_a_base_of_another_fingerprint_is_found_in_headers(
    site: Path, tmp_path: Path, capsys: Any
) -> None:
    def safetensors(file: Path, **metadata: str) -> None:
        header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
        text = json.dumps({**header, "__metadata__": metadata}).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0\0\0")

    path = stack(tmp_path, 'use = "lora"\nweights = "a.safetensors"')
    safetensors(tmp_path / "base" / "model.safetensors")
    safetensors(tmp_path / "a.safetensors", **{"inarch.base_fingerprint": "inarch1:other"})
    assert run("check", path) == 1
    assert "IA410" in capsys.readouterr().err
