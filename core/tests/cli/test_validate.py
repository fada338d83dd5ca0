"""`inarch validate` finds what in a package's folder doesn't hold, and imports nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import run

PROJECT = """\
[project]
name = "inarch-mine"
[project.entry-points."inarch.manifest"]
mine = "inarch_mine:inarch.toml"
[project.entry-points."inarch.adapters"]
mine = "inarch_mine.adapter:Mine"
"""
MANIFEST = """\
schema = 1
[[adapter]]
id = "mine"
kinds = ["add"]
roles = ["attention.*"]
models = { llama = ">=0.1" }
after = ["lora"]
[[code]]
id = "IA999"
summary = "something"
explain = "why, and what to do"
"""


def package(folder: Path, manifest: str = MANIFEST, project: str = PROJECT) -> str:
    inner = folder / "src" / "inarch_mine"
    inner.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(project)
    (inner / "inarch.toml").write_text(manifest)
    (inner / "adapter.py").write_text("raise RuntimeError('imported')")
    return str(folder)


def test_a_package_that_holds_has_no_findings(tmp_path: Path, capsys: Any) -> None:
    assert run("validate", package(tmp_path)) == 0
    assert capsys.readouterr().out == "inarch-mine: nothing is wrong\n"


@pytest.mark.parametrize(
    ("old", "new", "code", "told"),
    [
        ('id = "mine"', 'id = "other"', "IA307", "`mine` has no [[adapter]]"),
        ('kinds = ["add"]', "", "IA809", "which kinds of edit"),
        ('kinds = ["add"]', 'kinds = ["sum"]', "IA302", "sum"),
        ('"attention.*"', '"Attention!"', "IA809", "is no role"),
        ('">=0.1"', '"new"', "IA809", "no version specifier"),
        ('after = ["lora"]', 'after = ["lora"]\nbefore = ["lora"]', "IA809", "two opposites"),
        ('after = ["lora"]', 'after = ["mine"]', "IA809", "declares after itself"),
        ('id = "IA999"', 'id = "E1"', "IA809", "is no error code"),
        ('explain = "why, and what to do"', "", "IA809", "is not explained"),
        ("schema = 1", "schema = 2", "IA303", "schema 2"),
        ("schema = 1", "schema = [", "IA302", "TOML"),
    ],
)
def test_what_does_not_hold_in_a_manifest_is_found(
    tmp_path: Path, capsys: Any, old: str, new: str, code: str, told: str
) -> None:
    assert run("validate", "--json", package(tmp_path, MANIFEST.replace(old, new))) == 1
    findings = json.loads(capsys.readouterr().out)["data"]["findings"]
    assert code in [finding["code"] for finding in findings]
    assert told in " ".join(finding["what"] for finding in findings)
    assert all(finding["remedy"] for finding in findings)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("inarch_mine:inarch.toml", "inarch_mine:absent.toml", "is not where its entry point says"),
        ("inarch_mine.adapter:Mine", "inarch_mine.absent:Mine", "names the module"),
        (
            '[project.entry-points."inarch.manifest"]\nmine = "inarch_mine:inarch.toml"\n',
            "",
            "no `inarch.manifest` entry point",
        ),
    ],
)
def test_what_does_not_hold_in_the_entry_points_is_found(
    tmp_path: Path, capsys: Any, old: str, new: str, told: str
) -> None:
    assert run("validate", package(tmp_path, project=PROJECT.replace(old, new))) == 1
    assert told in capsys.readouterr().out


def test_what_is_no_package_is_said_so(tmp_path: Path, capsys: Any) -> None:
    assert run("validate", str(tmp_path)) == 1
    assert "IA809" in capsys.readouterr().err
    assert run("validate", "no-such-package") == 1
    assert "IA702" in capsys.readouterr().err
