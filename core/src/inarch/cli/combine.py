"""`inarch combine`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from inarch.cli.output import Output, json_option

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("stack")
@click.option("--with", "extra", metavar="ADAPTER[=SCALE]", multiple=True, help="Sum this up too.")
@click.option("--out", required=True, type=_FOLDER, help="A folder.")
@click.option("--name", default="mix", show_default=True, help="What the sum is called.")
@click.option("--rank", type=click.IntRange(1), help="The most it may have; exact without.")
@click.option("--device", default="cpu", show_default=True)
@json_option
def combine(
    stack: str,
    extra: tuple[str, ...],
    out: Path,
    name: str,
    rank: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Save the weighted sum of a STACK's adapters as one adapter, in --out.

    \b
    inarch combine smollm2 --with pirate=0.7 --with terse_json=0.3 --out mix
    inarch combine stack.toml --out mix --rank 16

    The weights are the adapters' scales. A lower rank is the nearest there is to the sum; how much
    of it, in squared singular values, is left out is said.
    """
    from inarch.cli.target import opened

    _, adapted = opened(stack, extra, device=device)
    if not adapted.adapters.names:
        raise click.UsageError("There is nothing to sum up: name adapters, as --with pirate=0.7.")
    weights = dict.fromkeys(adapted.adapters.names, 1.0)
    model = adapted.combine(weights, name=name, rank=rank)
    model.save_adapter(name, out)
    member = model.adapters[name]
    parts = {m.name: m.scale for m in adapted.adapters}
    discarded: dict[str, float] = getattr(member.adapter, "discarded", {})
    worst = max(discarded, key=lambda address: discarded[address], default="")
    told: dict[str, Any] = {
        "folder": str(out),
        "parts": parts,
        "layers": len(member.modules),
        "parameters": sum(p.numel() for p in member.parameters().values()),
        "discarded": discarded.get(worst, 0.0),
        "at": worst if discarded.get(worst) else "",
    }
    if as_json:
        Output(True, "combine").envelope(told)
        return
    summed = " + ".join(f"{scale:g} {part}" for part, scale in parts.items())
    click.echo(f"{name} = {summed}: {told['parameters']:,} parameters at {told['layers']} layers")
    if rank is not None:
        most = f"{told['discarded']:.2%} at {worst}" if told["at"] else "nothing"
        click.echo(f"left out at rank {rank}, at most: {most}")
    click.echo(f"saved in {out}")
