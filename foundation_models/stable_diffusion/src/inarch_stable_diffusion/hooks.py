"""What this package answers when core asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inarch.plugins.hooks import hook

if TYPE_CHECKING:
    import click


@hook
def inarch_run(family: str) -> click.Command | None:
    """`inarch run` for images."""
    if family != "stable-diffusion":
        return None
    from inarch_stable_diffusion.command import run

    return run
