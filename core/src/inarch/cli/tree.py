"""`inarch tree`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inarch.cli.output import Output, json_option
from inarch.errors import InarchError

if TYPE_CHECKING:
    from inarch.adapters.model import Model


@click.command()
@click.argument("model")
@click.option("--with", "extra", metavar="ADAPTER", multiple=True, help="Adapt with this too.")
@click.option("--why", "address", metavar="ADDRESS", help="Say who put what at this site, and why.")
@click.option("--diff", is_flag=True, help="Print what the adapters changed, as source.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page.")
@click.option("--graph", type=click.Choice(["dot", "mermaid"]), help="Print a graph.")
@json_option
def tree(
    model: str,
    extra: tuple[str, ...],
    address: str | None,
    diff: bool,
    html: Path | None,
    graph: str | None,
    as_json: bool,
) -> None:
    """Print the tree of a MODEL, or of a stack file with its adapters marked.

    Equal layers fold into one. `+` marks what an adapter adds, `x` what it scales by, `<` and `>`
    what it puts before and after.

    \b
    inarch tree smollm2 --with pirate --html pirate.html
    inarch tree stack.toml --why model.layers.0.self_attn.q_proj
    inarch tree stack.toml --graph dot | dot -Tsvg > stack.svg
    """
    from inarch.cli.target import opened

    base, adapted = opened(model, extra)
    if address is not None:
        from inarch.cli.why import why

        why(adapted, address, as_json)
        return
    if html is not None:
        html.write_text(drawn(adapted, "page"), "utf-8")
        Output(as_json, "tree").note(f"wrote {html}")
    if graph is not None:
        click.echo(drawn(adapted, graph))
    if as_json:
        Output(True, "tree").envelope(_data(adapted))
    elif html is None and graph is None:
        _print(base, adapted, diff)


def drawn(subject: Any, form: str) -> str:
    """A picture, made by the package that is installed for it.

    Raises:
        InarchError: IA706 where there is none.
    """
    from inarch.plugins.hooks import picture

    text = picture(subject, form)
    if text is None:
        raise InarchError(
            "IA706", "pictures come with another package", remedy="pip install inarch-view"
        )
    return text


def _print(base: Model, adapted: Model, diff: bool) -> None:
    text = adapted.diff(base) if diff else repr(adapted)
    if sys.stdout.isatty():
        from inarch.cli.colours import diff_coloured, tree_coloured

        text = (diff_coloured if diff else tree_coloured)(text, adapted.adapters.names)
    click.echo(text)


def _data(adapted: Model) -> dict[str, Any]:
    sites = [
        {"address": f.address, "module": None if f.module is None else type(f.module).__name__}
        for f in adapted.select()
    ]
    return {
        "adapters": [
            {"name": m.name, "kind": m.kind, "scale": m.scale, "trainable": m.trainable}
            for m in adapted.adapters
        ],
        "inputs": adapted.inputs,
        "sites": sites,
        "drawing": repr(adapted),
    }
