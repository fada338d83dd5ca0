"""What each error code means, at length: core's from files, a package's from its manifest.

Needs neither torch nor a plugin.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path

import msgspec

from inarch.codes import CODES
from inarch.errors import InarchError
from inarch.plugins.index import Index

_FOLDER = Path(__file__).parent / "explanations"


class Explanation(msgspec.Struct, frozen=True):
    """An error code, explained.

    Attributes:
        code: such as IA407.
        summary: its line in the registry.
        text: what happened, an example, and the cure.
        distribution: the package whose code it is.
    """

    code: str
    summary: str
    text: str
    distribution: str


def explanations() -> dict[str, str]:
    """Core's explanations, by code."""
    found: dict[str, str] = {}
    for path in sorted(_FOLDER.glob("*.toml")):
        found |= tomllib.loads(path.read_text("utf-8"))
    return {code: text.strip() for code, text in sorted(found.items())}


def explain(code: str, listed: Index) -> Explanation:
    """What a code means.

    Args:
        code: in capitals or not.
        listed: what is installed.

    Raises:
        InarchError: IA702 for a code that neither core nor an installed package has.
    """
    code = code.upper()
    if code in CODES:
        return Explanation(code, CODES[code], explanations().get(code, ""), "inarch")
    entry = listed.codes.get(code)
    if entry is not None:
        return Explanation(code, entry.summary, entry.explain.strip(), entry.distribution)
    known = [*CODES, *listed.codes]
    near = difflib.get_close_matches(code, known, 3, 0.6)
    raise InarchError(
        "IA702",
        f"there is no error code `{code}`",
        why=f"near it are: {', '.join(near)}"
        if near
        else "codes are letters and three digits, such as IA407",
        remedy="inarch explain",
    )
