"""Each adapter has its colour, wherever its name stands in a printed tree or source."""

from __future__ import annotations

import click
import pytest

from inarch.cli.colours import diff_coloured, tree_coloured


@pytest.mark.parametrize("word", ["q_proj__pirate", "q_proj__pirate_"])
def test_a_module_of_an_adapter_has_the_adapter_s_colour(word: str) -> None:
    text = f"+    q_proj = self.{word}(x, plus=q_proj)"
    shown = diff_coloured(text, ["terse", "pirate"])
    other = diff_coloured(text, ["pirate", "terse"])
    assert click.unstyle(shown) == click.unstyle(other) == text
    assert shown != other  # by the adapter's place
    assert diff_coloured(text, ["terse"]).endswith(f"self.{word}(x, plus=q_proj)")


def test_a_line_of_a_tree_has_the_colour_of_who_put_it_there() -> None:
    text = "├─ q_proj: Linear\n│  └─ + q_proj__pirate: LoRA [pirate]"
    first, second = tree_coloured(text, ["pirate"]).splitlines()
    assert first == "├─ q_proj: Linear"
    assert second.startswith("│  └─ \x1b[38;2;")
    assert click.unstyle(second) == text.splitlines()[1]
