"""`inarch lock`"""

from __future__ import annotations

from pathlib import Path

import click

from inarch.cli.output import Output, json_option
from inarch.stack import load_stack


@click.command()
@click.argument("stack", type=click.Path(dir_okay=False))
@click.option("--check", "checking", is_flag=True, help="Say what changed; 4 where something did.")
@click.option(
    "-o", "--output", "out", type=click.Path(dir_okay=False), help="By default STACK.lock."
)
@json_option
def lock(stack: str, checking: bool, out: str | None, as_json: bool) -> None:
    """Write down all that a STACK file is made of: packages, files, base, order and digest.

    With --check nothing is imported or written: packages and files are held against the lock.
    """
    from inarch.resolve.lock import changed, read_lock, stale
    from inarch.resolve.lock import lock as locked

    path = Path(out) if out is not None else Path(stack).with_suffix(".lock")
    folder = Path(stack).parent
    output = Output(as_json, "lock")
    given = load_stack(stack)
    if checking:
        facts = changed(read_lock(path), given, folder)
        if facts:
            raise stale(path, facts, Path(stack))
        if as_json:
            output.envelope({"lock": str(path), "changed": []})
        else:
            click.echo(f"{path} holds")
        return
    from inarch.cli.target import wanted
    from inarch.loading import load
    from inarch.resolve.plan import resolve

    source, specs = wanted(stack)
    made = locked(resolve(load(source, device="meta"), *specs, proof=False), given, folder)
    path.write_text(made.text(), "utf-8")
    if as_json:
        output.envelope({"lock": str(path), "digest": made.digest, "order": made.order})
    else:
        click.echo(f"{path}: {', '.join(made.order) or 'no adapters'}\n{made.digest}")
