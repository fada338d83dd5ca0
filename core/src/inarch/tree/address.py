"""Address patterns: names with `*` for one level or a part of it, and `{a,b}` for either."""

from __future__ import annotations

import functools
import re

from inarch.errors import InarchError

_TOKENS = re.compile(r"[*{},]|[^*{},]+")


def is_pattern(address: str) -> bool:
    return "*" in address or "{" in address


@functools.lru_cache(maxsize=4096)
def compiled(pattern: str) -> re.Pattern[str]:
    """The regular expression of an address pattern.

    Raises:
        InarchError: IA113 where braces don't close or a level is empty.
    """
    if not pattern or pattern != pattern.strip(".") or ".." in pattern:
        raise _malformed(pattern, "a level of the address is empty")
    if strange := re.search(r"[^\w.*{},]", pattern):
        raise _malformed(pattern, f"`{strange[0]}` stands in no name")
    if "**" in pattern or "{}" in pattern:
        raise _malformed(pattern, "`*` is one level, and braces hold names")
    depth, text = 0, ""
    for token in _TOKENS.findall(pattern):
        depth += (token == "{") - (token == "}")
        if depth not in (0, 1):
            raise _malformed(pattern, "braces don't nest")
        known = {"*": "[^.]+", "{": "(?:", "}": ")"}
        text += "|" if token == "," and depth else known.get(token) or re.escape(token)
    if depth:
        raise _malformed(pattern, "a brace is not closed")
    return re.compile(text)


def _malformed(pattern: str, why: str) -> InarchError:
    return InarchError(
        "IA113",
        f"`{pattern}` is no address pattern",
        why=why,
        remedy="write names joined by dots, `*` for one level, `{a,b}` for either",
    )
