"""`inarch explain`"""

from __future__ import annotations

from typing import Any

import click

from inarch.cli.output import Output, json_option
from inarch.codes import CODES
from inarch.explain import explain as explained
from inarch.plugins import index


@click.command()
@click.argument("code", required=False)
@json_option
def explain(code: str | None, as_json: bool) -> None:
    """Explain an error CODE: what happened, an example, and the cure. Without one, list all.

    \b
    inarch explain IA407
    """
    output = Output(as_json, "explain")
    listed = index()
    if code is None:
        rows: list[tuple[str, str, str]] = [(c, "inarch", text) for c, text in CODES.items()]
        rows += [(e.id, e.distribution, e.summary) for e in listed.codes.values()]
        if as_json:
            names = ("code", "package", "summary")
            output.envelope([dict(zip(names, row, strict=True)) for row in sorted(rows)])
        else:
            output.table(("code", "package", "summary"), sorted(rows))
        return
    found = explained(code, listed)
    if as_json:
        data: dict[str, Any] = {
            "code": found.code,
            "summary": found.summary,
            "text": found.text,
            "package": found.distribution,
        }
        output.envelope(data)
        return
    click.echo(f"{found.code}: {found.summary} ({found.distribution})\n")
    click.echo(found.text or f"The package {found.distribution} says no more.")
