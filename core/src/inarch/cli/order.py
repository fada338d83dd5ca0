"""`inarch order`"""

from __future__ import annotations

import re
from pathlib import Path

import click

from inarch.cli.output import Output, json_option
from inarch.errors import InarchError
from inarch.stack import load_stack


@click.command()
@click.argument("stack", type=click.Path(dir_okay=False))
@click.argument("name")
@click.option("--after", metavar="NAME", multiple=True, help="It comes after this one.")
@click.option("--before", metavar="NAME", multiple=True, help="It comes before this one.")
@json_option
def order(
    stack: str, name: str, after: tuple[str, ...], before: tuple[str, ...], as_json: bool
) -> None:
    """Write into a STACK file that the adapter NAME comes after or before others.

    \b
    inarch order stack.toml terse --after pirate
    """
    if not after and not before:
        raise click.UsageError("Give --after or --before.")
    path = Path(stack)
    specs = load_stack(path).specs
    names = [spec.name for spec in specs]
    for one in (name, *after, *before):
        if one not in names:
            raise InarchError(
                "IA418",
                f"the stack has no adapter `{one}`",
                where=stack,
                why=f"its adapters are: {', '.join(names) or 'none'}",
                remedy=f"inarch check {stack}",
            )
    text = path.read_text("utf-8")
    spec = specs[names.index(name)]
    for word, told, now in (("after", after, spec.after), ("before", before, spec.before)):
        if told:
            text = _written(text, names.index(name), word, [*dict.fromkeys((*now, *told))])
    path.write_text(text, "utf-8")
    told = load_stack(path).specs[names.index(name)]
    if as_json:
        data = {"name": name, "after": list(told.after), "before": list(told.before)}
        Output(True, "order").envelope(data)
        return
    for word, those in (("after", told.after), ("before", told.before)):
        if those:
            click.echo(f"{stack}: {name} comes {word} {', '.join(those)}")


def _written(text: str, table: int, key: str, names: list[str]) -> str:
    """The text with `key = [names]` in the given [[adapter]] table, in place of what it has."""
    quoted = ", ".join(f'"{name}"' for name in names)
    line = f"{key} = [{quoted}]\n"
    heads = list(re.finditer(r"^[ \t]*\[\[\s*adapter\s*\]\].*\n?", text, re.MULTILINE))
    start = heads[table].end()
    below = re.search(r"^[ \t]*\[", text[start:], re.MULTILINE)  # the next table, or one inside
    end = start + below.start() if below is not None else len(text)
    body = text[start:end]
    old = re.search(rf"^[ \t]*{key}\s*=\s*\[[^\]]*\][^\n]*\n?", body, re.MULTILINE)
    if old is not None:
        body = body[: old.start()] + line + body[old.end() :]
    else:
        use = re.search(r"^[ \t]*use\s*=[^\n]*\n?", body, re.MULTILINE)
        at = use.end() if use else 0
        gap = "" if at == 0 or body[:at].endswith("\n") else "\n"
        body = body[:at] + gap + line + body[at:]
    return text[:start] + body + text[end:]
