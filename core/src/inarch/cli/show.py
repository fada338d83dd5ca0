"""`inarch show`"""

from __future__ import annotations

import difflib
from typing import Any

import click

from inarch.cli.output import Output, as_data, json_option
from inarch.errors import InarchError
from inarch.plugins import index


@click.command()
@click.argument("id")
@json_option
def show(id: str, as_json: bool) -> None:
    """Show all that is known of a model, adapter, checkpoint, format or weights."""
    output = Output(as_json, "show")
    listed = index()
    tables: dict[str, dict[str, Any]] = {
        "model": listed.models,
        "checkpoint": listed.checkpoints,
        "adapter": listed.adapters,
        "weights": listed.weights,
        "format": listed.formats,
    }
    found = [(kind, as_data(table[id])) for kind, table in tables.items() if id in table]
    if not found:
        known = [name for table in tables.values() for name in table]
        near = difflib.get_close_matches(id, known, 3, 0.5)
        raise InarchError(
            "IA702",
            f"nothing installed is called `{id}`",
            why=f"installed are: {', '.join(known) or 'nothing'}",
            remedy=f"inarch show {near[0]}" if near else "inarch models",
        )
    if as_json:
        output.envelope([{"kind": kind, **data} for kind, data in found])
        return
    for kind, data in found:
        click.echo(f"{kind} {data.pop('id')}: {data.pop('summary')}")
        told = {key: value for key, value in data.items() if value not in ("", [], {}, None)}
        for key, value in told.items():
            _print_field(key, value, max(map(len, told)))


def _print_field(key: str, value: Any, width: int) -> None:
    """One field under the widest of all keys, or a table of its own."""
    if isinstance(value, dict):
        click.echo(f"  {key}")
        widest = max(len(str(name)) for name in value)
        for name, one in value.items():
            click.echo(f"    {name!s:<{widest}}  {one}")
        return
    text = ", ".join(str(v) for v in value) if isinstance(value, list) else value
    if isinstance(value, bool):
        text = "yes" if value else "no"
    click.echo(f"  {key:<{width}}  {text}")
