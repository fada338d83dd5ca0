"""`inarch models`"""

from __future__ import annotations

import click

from inarch.cli.output import Output, as_data, json_option
from inarch.plugins import index


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the foundation models and checkpoints that are installed."""
    output = Output(as_json, "models")
    listed = index()
    if as_json:
        entries = [as_data(e) for e in listed.models.values()]
        output.envelope(
            {"models": entries, "checkpoints": [as_data(e) for e in listed.checkpoints.values()]}
        )
        return
    rows = [(e.id, "model", e.distribution, e.summary) for e in listed.models.values()]
    rows += [(e.id, "checkpoint", e.package, e.summary) for e in listed.checkpoints.values()]
    if not rows:
        output.note("No foundation model is installed. Begin with: pip install inarch-llama")
        return
    output.table(("id", "kind", "package", "summary"), rows)
