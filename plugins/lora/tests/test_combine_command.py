"""`inarch combine`: the sum of a stack's LoRAs, saved as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_combining import trained
from torch import Tensor

import inarch
from inarch.adapters import Model
from inarch.cli.main import main


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["combine", *map(str, args)])
    return int(stop.value.code or 0)


@pytest.fixture
def stack(llamas: tuple[Any, Model], tmp_path: Path) -> Path:
    """Two LoRAs with scales of their own, in a file beside the model."""
    text = 'model = "base"\n'
    for name, scale, rank in (("a", 0.7, 2), ("b", -0.4, 3)):
        trained(llamas[1], tmp_path, name, rank=rank)
        adapter = f'use = "lora"\nweights = "{name}"\nname = "{name}"\nscale = {scale}'
        text += f"[[adapter]]\n{adapter}\n"
    path = tmp_path / "stack.toml"
    path.write_text(text)
    return path


def test_what_is_saved_does_what_the_stack_does(
    stack: Path, llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path, capsys: Any
) -> None:
    assert run(stack, "--out", tmp_path / "mix", "--name", "both") == 0
    assert "both = 0.7 a + -0.4 b: " in capsys.readouterr().out
    base = llamas[1]
    mix = base.adapt(inarch.adapter("lora", weights=tmp_path / "mix"))
    expected = base.adapt(inarch.load_stack(stack))(ids)
    torch.testing.assert_close(mix(ids), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(mix(ids), base(ids))


def test_a_lower_rank_says_what_it_leaves_out(stack: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(stack, "--out", tmp_path / "mix", "--rank", "2", "--json") == 0
    told = json.loads(capsys.readouterr().out)["data"]
    assert told["parts"] == {"a": 0.7, "b": -0.4}
    assert 0 < told["discarded"] < 1
    assert told["at"].startswith("model.layers.")


@pytest.mark.parametrize(
    ("out", "status", "code"),
    [("stack.toml", 2, "IA701"), ("stack.toml/inside", 1, "IA707")],
)
def test_a_place_that_is_no_folder_is_refused(
    stack: Path, tmp_path: Path, capsys: Any, out: str, status: int, code: str
) -> None:
    assert run(stack, "--out", tmp_path / out) == status
    shown = capsys.readouterr().err
    assert (code in shown, "Traceback" in shown) == (True, False)


def test_a_model_without_adapters_has_no_sum(stack: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path / "base", "--out", tmp_path / "mix") == 2
    assert "--with" in capsys.readouterr().err
    assert not (tmp_path / "mix").exists()
