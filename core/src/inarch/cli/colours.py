"""The colours of adapters, by their place in a model: equal in terminals and on pages."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

LIGHT = ("b4500a", "1667b7", "117a55", "9b2f86", "8a6d00", "5a4fcf", "b3261e", "33707a")
"""On a light ground, as hexadecimal red, green and blue."""
DARK = ("f2a265", "7db8f5", "6cd3a4", "e79bd6", "e3c65b", "b0a8ff", "f59a93", "83c5cf")
"""The same on a dark ground, as terminals mostly have."""

_SIGNS = {"+": "green", "-": "red"}


def tree_coloured(text: str, adapters: Sequence[str]) -> str:
    """A printed tree whose lines have the colour of the adapter that put them there."""
    return "\n".join(_line(line, adapters) for line in text.splitlines())


def diff_coloured(text: str, adapters: Sequence[str]) -> str:
    """A difference of sources: signs in green and red, adapters' modules in their colours."""
    lines: list[str] = []
    for line in text.splitlines():
        sign = line[:1] if not line.startswith(("+++", "---")) else ""
        words = re.split(r"(\w+__\w+)", line.removeprefix(sign) if sign else line)
        body = "".join(_word(word, adapters) for word in words)
        lines.append((click.style(sign, fg=_SIGNS.get(sign)) if sign else "") + body)
    return "\n".join(lines)


def _line(line: str, adapters: Sequence[str]) -> str:
    for name in adapters:
        if line.endswith(f"[{name}]"):
            indent = re.match(r"[│├└─ ]*", line)
            at = indent.end() if indent else 0
            return line[:at] + _in_colour(line[at:], adapters.index(name))
    return line


def _word(word: str, adapters: Sequence[str]) -> str:
    name = word.partition("__")[2].removesuffix("_")  # which marks what is written in place
    return _in_colour(word, adapters.index(name)) if name in adapters else word


def _in_colour(text: str, place: int) -> str:
    code = DARK[place % len(DARK)]
    red, green, blue = (int(code[i : i + 2], 16) for i in (0, 2, 4))
    return click.style(text, fg=(red, green, blue))
