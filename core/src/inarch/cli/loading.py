"""Options that say how a command's model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., object])


def loading_options(command: Command) -> Command:
    """Add `--device`, `--dtype` and `--packed`, which every kind of model has."""
    for option in reversed(
        [
            click.option("--device", default="cpu", show_default=True),
            click.option("--dtype", help="Such as bfloat16; the file's own by default."),
            click.option("--packed", is_flag=True, help="Queries, keys and values in one product."),
        ]
    ):
        command = option(command)
    return command
