"""The page of each adapter is what its package and the table of pairs say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from inarch.plugins import index

sys.path.insert(0, str(Path(__file__).parent))
from adapter_pages import FOLDER, ROOT, composition, pages


def test_every_adapter_has_a_page_with_its_row_of_the_table() -> None:
    own = {k for k, e in index().adapters.items() if ROOT in Path(e.manifest).parents}
    assert own
    for kind in own:
        text = (FOLDER / f"{kind}.md").read_text("utf-8")
        assert "## What it does to a tree" in text
        for model, row in composition(kind).items():
            assert model in text
            assert all(f"| {other} |" in text for other in row)


@pytest.mark.slow
@pytest.mark.skipif(
    len({e.distribution for e in index().adapters.values()})
    < sum("[[adapter]]" in m.read_text() for m in ROOT.glob("*/*/src/*/inarch.toml")),
    reason="not every package of the repository is installed here",
)
def test_the_pages_are_what_is_made_now() -> None:
    made = pages()
    assert {path.name for path in FOLDER.glob("*.md")} == set(made)
    for name, text in made.items():
        assert (FOLDER / name).read_text("utf-8") == text, "run: python tests/adapter_pages.py"
