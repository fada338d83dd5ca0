"""What an adapter may be called: its name is a part of the names of the modules it brings."""

from __future__ import annotations

import unicodedata

from inarch.errors import InarchError


def check_adapter_name(name: str) -> None:
    """Refuse a name that can't be a part of an attribute's name, as the modules' names need.

    Raises:
        InarchError: IA116.
    """
    normal = unicodedata.normalize("NFKC", name)
    if name.isidentifier() and "__" not in name and name.strip("_") == name == normal:
        return
    wanted = "".join(c if c.isalnum() else "_" for c in normal)
    wanted = "_".join(part for part in wanted.split("_") if part) or "adapter"
    raise InarchError(
        "IA116",
        f"an adapter can't be called {name!r}",
        why="its modules are named SITE__NAME, so the name must be an identifier without `__`, "
        "and without `_` at either end",
        remedy=f'name="{wanted if wanted.isidentifier() else "a" + wanted}"',
    )
