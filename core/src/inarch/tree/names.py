"""What may stand as a name in a generated forward: only text checked here ever enters it."""

from __future__ import annotations

import keyword
import unicodedata

HANDLER = ("_error", "_explain", "Exception")
"""What the text that isn't shown around each forward uses; nothing else may be called so."""


def is_name(text: str) -> bool:
    """Whether Python reads the text as a name, and as this very name.

    Python folds a name to its NFKC form when it compiles; attributes and arguments given by text
    are not folded, so a name that isn't in that form would be two names.
    """
    return (
        text.isidentifier()
        and not keyword.iskeyword(text)
        and unicodedata.normalize("NFKC", text) == text
    )


def is_index(text: str) -> bool:
    """Whether the text is a number as `[0]` needs it: ASCII, and no zero in front."""
    return text.isascii() and text.isdigit() and str(int(text)) == text


def can_name_a_value(text: str) -> bool:
    """Whether a value of a forward may be called so."""
    return is_name(text) and "__" not in text and text not in ("self", "plus", *HANDLER)


def module_name(site: str, adapter: str) -> str:
    """What a module is called that an adapter puts beside a site: `q_proj__pirate`."""
    flat = site
    if "." in site:
        parts = (part.strip("_") for part in site.split("."))
        flat = "_".join(part for part in parts if part) or "_"
    return f"{'at_' if flat[0].isdigit() else ''}{flat}__{adapter}"


def adapter_of(name: str) -> str | None:
    """The adapter that brought a module, by the module's name; None where the author put it.

    Labels and adapters hold no `__`, so the name says exactly whose it is.
    """
    _, mark, rest = name.partition(".")[0].partition("__")
    return rest.lstrip("_").partition("__")[0] if mark else None
