"""A stack in Python and the same in a file; a typo is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

import inarch
from inarch.cli.main import main
from inarch.errors import InarchError
from inarch.stack import stack_text

TEXT = """\
model = "smollm2"

[[adapter]]
use = "lora"
weights = "pirate.safetensors"
scale = 0.8
name = "pirate"
options = { rank = 4 }

[[adapter]]
use = "terse_json"
"""


def test_a_file_reads_as_the_stack_it_describes(tmp_path: Path) -> None:
    (tmp_path / "stack.toml").write_text(TEXT)
    stack = inarch.load_stack(tmp_path / "stack.toml")
    weights = tmp_path / "pirate.safetensors"
    assert stack == inarch.Stack(
        [inarch.adapter("lora", weights=weights, scale=0.8, name="pirate", rank=4), "terse_json"],
        model="smollm2",
    )


def test_a_model_beside_the_file_is_meant_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "stack.toml").write_text('model = "base"')
    assert inarch.load_stack(tmp_path / "stack.toml").model == str(tmp_path / "base")


@pytest.mark.parametrize(
    ("old", "new", "line", "correction"),
    [
        ("weights =", "wieghts =", 5, "weights"),
        ('[[adapter]]\nuse = "lora"', '[[adaptor]]\nuse = "lora"', 3, "adapter"),
        ("model =", "modle =", 1, "model"),
        ("scale = 0.8", 'scale = "much"', 6, ""),
    ],
)
def test_a_typo_is_named_with_its_line_and_correction(
    tmp_path: Path, old: str, new: str, line: int, correction: str
) -> None:
    path = tmp_path / "stack.toml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(InarchError) as caught:
        inarch.load_stack(path)
    assert caught.value.code == "IA405"
    assert caught.value.where == f"{path}:{line}"
    assert correction in caught.value.remedy


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InarchError) as caught:
        inarch.load_stack(tmp_path / "none.toml")
    assert caught.value.code == "IA404"


def test_a_file_that_is_no_toml_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "stack.toml").write_text("model = [")
    with pytest.raises(InarchError) as caught:
        inarch.load_stack(tmp_path / "stack.toml")
    assert caught.value.code == "IA405"


@pytest.mark.parametrize(
    ("table", "code", "word"),
    [
        ('use = "lowrnk"', "IA406", "lowrank"),
        ('use = "lowrank"\noptions = { rnak = 4 }', "IA401", "rank"),
    ],
)
def test_what_a_stack_names_wrongly_is_said_with_its_place_in_the_file(
    base: inarch.Model, tmp_path: Path, table: str, code: str, word: str
) -> None:
    file = tmp_path / "stack.toml"
    file.write_text(f'[[adapter]]\nuse = "ia3"\nname = "first"\n\n[[adapter]]\n{table}\n')
    second = inarch.load_stack(file).specs[1]
    with pytest.raises(InarchError) as caught:
        base.adapt(second)
    assert caught.value.code == code
    assert "stack.toml: adapter[1]" in caught.value.where
    assert word in caught.value.remedy


def test_options_may_be_called_as_the_keys_of_a_stack_are(tmp_path: Path) -> None:
    file = tmp_path / "stack.toml"
    file.write_text('[[adapter]]\nuse = "any"\noptions = { scale = 2, name = "x" }\n')
    [spec] = inarch.load_stack(file).specs
    assert (spec.name, spec.scale) == ("any", 1.0)
    assert spec.options == {"scale": 2, "name": "x"}


INNER = """\
[[adapter]]
use = "controlnet"
name = "canny"
weights = "canny"

[[adapter.adapter]]
use = "lora"
weights = "lines.safetensors"
scale = 0.6
options = { rank = 4 }

[[adapter]]
use = "ia3"
"""


def test_a_table_inside_of_a_table_is_of_the_tree_that_one_brings(tmp_path: Path) -> None:
    (tmp_path / "stack.toml").write_text(INNER)
    stack = inarch.load_stack(tmp_path / "stack.toml")
    lines = inarch.adapter("lora", weights=tmp_path / "lines.safetensors", scale=0.6, rank=4)
    canny = inarch.adapter("controlnet", name="canny", weights=tmp_path / "canny", adapters=[lines])
    assert stack == inarch.Stack([canny, "ia3"])
    assert [
        spec.where.rpartition(": ")[2] for spec in (*stack.specs, *stack.specs[0].adapters)
    ] == [
        "adapter[0]",
        "adapter[1]",
        "adapter[0].adapter[0]",
    ]
    (tmp_path / "again.toml").write_text(stack_text(stack))
    assert inarch.load_stack(tmp_path / "again.toml") == stack


def test_a_typo_inside_is_named_with_its_line_and_correction(tmp_path: Path) -> None:
    path = tmp_path / "stack.toml"
    path.write_text(INNER.replace("scale = 0.6", "scael = 0.6"))
    with pytest.raises(InarchError) as caught:
        inarch.load_stack(path)
    assert caught.value.where == f"{path}:9"
    assert "scale" in caught.value.remedy


def test_an_order_is_written_into_the_table_it_is_of(tmp_path: Path) -> None:
    path = tmp_path / "stack.toml"
    path.write_text(INNER.replace("scale = 0.6", "scale = 0.6\nafter = []"))
    with pytest.raises(SystemExit):
        main(["order", str(path), "canny", "--after", "ia3"])
    canny, _ = inarch.load_stack(path).specs
    assert canny.after == ("ia3",)
    assert canny.adapters[0].after == ()
