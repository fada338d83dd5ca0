"""`inarch source`"""

from __future__ import annotations

import click

from inarch.cli.output import Output, json_option
from inarch.errors import InarchError


@click.command()
@click.argument("model")
@click.argument("address", default="")
@click.option("--with", "extra", metavar="ADAPTER", multiple=True, help="Adapt with this too.")
@click.option("--diff", is_flag=True, help="Print what the adapters changed instead.")
@json_option
def source(model: str, address: str, extra: tuple[str, ...], diff: bool, as_json: bool) -> None:
    """Print the generated source of the Chain at ADDRESS in a MODEL or a stack file.

    Without an address it prints the source of the whole model's first level.
    """
    from inarch.cli.target import opened
    from inarch.tree import Chain

    base, adapted = opened(model, extra)
    if diff:
        text = adapted.diff(base)
    else:
        root = adapted.trees.get("") or adapted.trees.get(address.partition(".")[0])
        inner = address if "" in adapted.trees else address.partition(".")[2]
        try:
            chain = root.get_submodule(inner) if root is not None else None
        except AttributeError:
            chain = None
        if not isinstance(chain, Chain):
            known = {f.address.rpartition(".")[0] for f in adapted.select()}
            raise InarchError(
                "IA702",
                f"there is no Chain at `{address}`",
                where=model,
                why="source belongs to Chains; leaf modules are torch's own",
                remedy=f"inarch source {model} {_nearest(address, known)}".rstrip(),
            )
        text = chain.source
    if as_json:
        Output(True, "source").envelope({"address": address, "source": text})
    else:
        click.echo(text, nl=not text.endswith("\n"))


def _nearest(address: str, known: set[str]) -> str:
    import difflib

    return next(iter(difflib.get_close_matches(address, known, 1, 0.3)), "")
