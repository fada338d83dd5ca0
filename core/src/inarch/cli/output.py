"""What commands print: text for people, one JSON envelope for programs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

import inarch
from inarch.errors import InarchError

_BROKEN = {"IA301", "IA304", "IA308", "IA309", "IA310", "IA311", "IA208", "IA706"}
_STALE = {"IA802", "IA804"}


def exit_code(error: InarchError) -> int:
    """4 for what is stale, 3 where something installed is missing or broken, else 1."""
    if error.code in _STALE:
        return 4
    return 3 if error.code in _BROKEN else 1


class Output:
    """One command's output.

    Args:
        as_json: whether stdout gets the envelope and nothing else.
        command: the command's name, which the envelope repeats.
    """

    def __init__(self, as_json: bool, command: str) -> None:
        self.as_json = as_json
        self.command = command

    def envelope(self, data: Any, *, error: dict[str, Any] | None = None) -> None:
        """Print the one JSON object a command prints; entries of manifests may stand in it."""
        body = {
            "inarch": inarch.__version__,
            "command": self.command,
            "ok": error is None,
            "data": data,
            "error": error,
        }
        import msgspec  # many times faster than json, where much is listed

        text = msgspec.json.encode(body, enc_hook=str)  # versions, say, which are kinds of text
        # Without click, which would look for colours in what has none.
        sys.stdout.write(msgspec.json.format(text, indent=2).decode() + "\n")
        sys.stdout.flush()

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Rows under headings: in columns, the last one wrapped to the terminal."""
        width = _columns()
        cells = [tuple(headings), *(tuple(row) for row in rows)]
        if sys.stdout.isatty():
            self._rich_table(cells)
            return
        widths = [max(len(row[i]) for row in cells) for i in range(len(headings) - 1)]
        indent = " " * (sum(widths) + 2 * len(widths))
        lines: list[str] = []
        for row in cells:
            start = "".join([cell.ljust(wide) + "  " for cell, wide in zip(row, widths)])  # noqa: B905
            first, *rest = _wrapped(row[-1], max(24, width - len(indent)))
            lines += [(start + first).rstrip(), *(indent + line for line in rest)]
        click.echo("\n".join(lines))

    def items(self, lines: Iterable[str]) -> None:
        """A list, each item wrapped to the terminal."""
        import textwrap

        width = _columns()
        for line in lines:
            click.echo(
                textwrap.fill(
                    line,
                    width,
                    initial_indent="  - ",
                    subsequent_indent="    ",
                    break_on_hyphens=False,
                )
            )

    def _rich_table(self, cells: list[tuple[str, ...]]) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in cells[0]:
            table.add_column(heading, overflow="fold")
        for row in cells[1:]:
            table.add_row(*row)
        Console().print(table)

    def note(self, text: str) -> None:
        """A message for people, on stderr."""
        click.echo(text, err=True)

    def refuse(self, error: InarchError) -> None:
        """An error as people or programs read it."""
        if self.as_json:
            self.envelope(None, error=error.as_dict())
            return
        text = str(error)
        if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            head = r"(?m)^error\[\w+\]"
            text = re.sub(head, lambda m: click.style(m[0], fg="red", bold=True), text)
        click.echo(text, err=True)

    def refuse_usage(self, error: click.ClickException) -> None:
        if self.as_json:
            what = {"code": "IA701", "what": error.format_message(), "where": "", "why": ""}
            self.envelope(None, error={**what, "remedy": f"inarch {self.command} --help".strip()})
            return
        path = getattr(getattr(error, "ctx", None), "command_path", "inarch")
        click.echo(f"error[IA701]: {error.format_message()}", err=True)
        click.echo(f"  = help: {path} --help", err=True)


def _columns() -> int:
    """The terminal's width."""
    import shutil

    return shutil.get_terminal_size((80, 24)).columns


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a text; most are one, which needs no wrapping."""
    if len(text) <= width and text.isprintable():
        return [text]
    import textwrap

    return textwrap.wrap(text, width) or [""]


def as_data(entry: Any) -> dict[str, Any]:
    """A manifest's entry for the envelope."""
    import msgspec

    return msgspec.to_builtins(entry)


def json_option(command: Any) -> Any:
    """The `--json` that every command has."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)
