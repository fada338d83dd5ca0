"""What this package answers when core asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from inarch.plugins.hooks import hook
from inarch.plugins.index import Finding

if TYPE_CHECKING:
    from inarch.adapters import Model


@hook
def inarch_check(model: Model) -> Iterator[Finding]:
    """Masks are for places of the whole picture, and a window does not know where it is."""
    if not any(member.kind == "multidiffusion" for member in model.adapters):
        return
    for member in model.adapters:
        if getattr(member.adapter.options, "masked", False):
            yield Finding(
                "IA494",
                "inarch-multidiffusion",
                f"the masks of `{member.name}` are for places of the whole picture",
                f"adapter `{member.name}`: masked",
                "leave `masked` out, or MultiDiffusion",
            )
