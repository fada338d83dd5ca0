"""What the page of compositions says of every pair and triple of adapters is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inarch.plugins import index
from inarch.testing.composition import page

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "composition.md").read_text("utf-8")


def own() -> set[str]:
    """The adapters of this repository that are installed."""
    entries = index().adapters.items()
    return {kind for kind, entry in entries if ROOT in Path(entry.manifest).parents}


@pytest.mark.slow
@pytest.mark.skipif(
    len({e.distribution for e in index().adapters.values()})
    < sum("[[adapter]]" in m.read_text() for m in ROOT.glob("*/*/src/*/inarch.toml")),
    reason="not every package of the repository is installed here",
)
def test_the_page_is_what_trying_every_pair_and_triple_gives() -> None:
    assert page(below=ROOT) == PAGE, (
        "run: python -m inarch.testing.composition --from . -o docs/composition.md"
    )


def test_every_adapter_of_the_repository_stands_in_the_page() -> None:
    titles = set(re.findall(r"^\| \*\*(\w+)\*\* \|", PAGE, re.M))
    named = titles | set(re.findall(r"^\| ([\w-]+) \| IA\d+:", PAGE, re.M))
    absent = {kind for kind in own() if kind not in named and kind.replace("-", "_") not in named}
    assert not absent
