"""`inarch tree`"""

from __future__ import annotations

import click

from inarch.cli.output import Output, json_option


@click.command()
@click.argument("model")
@click.option("--with", "extra", metavar="ADAPTER", multiple=True, help="Adapt with this too.")
@json_option
def tree(model: str, extra: tuple[str, ...], as_json: bool) -> None:
    """Print the tree of a MODEL, or of a stack file with its adapters marked.

    Equal layers fold into one. `+` marks what an adapter adds, `x` what it scales by, `<` and `>`
    what it puts before and after.
    """
    from inarch.cli.target import opened

    _, adapted = opened(model, extra)
    if not as_json:
        click.echo(repr(adapted))
        return
    sites = [
        {"address": f.address, "module": None if f.module is None else type(f.module).__name__}
        for f in adapted.select()
    ]
    data = {
        "adapters": [
            {"name": m.name, "kind": m.kind, "scale": m.scale, "trainable": m.trainable}
            for m in adapted.adapters
        ],
        "inputs": adapted.inputs,
        "sites": sites,
        "drawing": repr(adapted),
    }
    Output(True, "tree").envelope(data)
