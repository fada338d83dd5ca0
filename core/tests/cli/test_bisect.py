"""`inarch bisect` runs a command with smaller and smaller stacks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import run

SCRIPT = """\
import sys, tomllib
stack = tomllib.load(open(sys.argv[1], "rb"))
names = {a["name"] for a in stack.get("adapter", [])}
assert all(set(a.get("after", ())) <= names for a in stack.get("adapter", []))
sys.exit(CODE)
"""


def bisect(folder: Path, code: str, *flags: str) -> int:
    script = folder / "probe.py"
    script.write_text(SCRIPT.replace("CODE", code))
    path = folder / "stack.toml"
    tables = [f'[[adapter]]\nuse = "lora"\nname = "{name}"\n' for name in "abcdef"]
    tables[5] += 'after = ["a", "b"]\n'
    path.write_text('model = "m"\n' + "".join(tables))
    return run("bisect", *flags, str(path), "--", sys.executable, str(script), "{stack}")


def test_the_adapter_that_breaks_a_command_is_found(tmp_path: Path, capsys: Any) -> None:
    assert bisect(tmp_path, "'e' in names") == 1
    streams = capsys.readouterr()
    assert streams.out.startswith("e breaks it, after ")
    assert "good  the base alone" in streams.err


def test_a_pair_that_breaks_it_together_is_found(tmp_path: Path, capsys: Any) -> None:
    assert bisect(tmp_path, "{'b', 'f'} <= names", "--json") == 1
    body = json.loads(capsys.readouterr().out)
    assert body["data"]["culprits"] == ["b", "f"]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("0", "is fine with the whole stack"),
        ("1", "fails without any adapter too"),
        ("125", "can't tell of the whole stack"),
        ("200", "stopped with 200"),
    ],
)
def test_a_command_that_teaches_nothing_is_refused(
    tmp_path: Path, capsys: Any, code: str, told: str
) -> None:
    assert bisect(tmp_path, code) == 1
    err = capsys.readouterr().err
    assert "IA808" in err
    assert told in err


def test_a_command_without_a_place_for_the_stack_is_refused(tmp_path: Path) -> None:
    assert run("bisect", "stack.toml", "--", "true") == 2
