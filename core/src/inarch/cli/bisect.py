"""`inarch bisect`"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from inarch.cli.output import Output, json_option
from inarch.errors import InarchError
from inarch.resolve.culprit import Outcome, culprits
from inarch.stack import Stack, load_stack, stack_text

_PLACE = "{stack}"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("stack", type=click.Path(dir_okay=False))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@json_option
def bisect(stack: str, command: tuple[str, ...], as_json: bool) -> int:
    """Find the adapter of a STACK file that breaks a COMMAND, or the fewest that do together.

    COMMAND runs with smaller and smaller stacks, whose file takes the place of {stack} in it. It
    says as with git bisect run: 0 is good, 125 can't be told, any other up to 127 is bad, more
    stops. Exits 1 with the culprits.

    \b
    inarch bisect stack.toml -- inarch run {stack} --prompt Hello
    """
    if not any(_PLACE in word for word in command):
        raise click.UsageError("Write {stack} in the command, where the stack's file belongs.")
    output = Output(as_json, "bisect")
    given = load_stack(stack)
    names = [spec.name for spec in given.specs]
    tried: list[tuple[tuple[str, ...], str]] = []

    def run(kept: Sequence[str]) -> Outcome:
        outcome = _run(_reduced(given, kept), command)
        tried.append((tuple(kept), outcome))
        output.note(f"{outcome:<5} {', '.join(kept) or 'the base alone'}")
        return outcome

    found = _found(names, run, stack)
    if as_json:
        runs = [{"adapters": list(kept), "outcome": outcome} for kept, outcome in tried]
        output.envelope({"culprits": found, "runs": runs})
        return 1
    alone = "breaks it" if len(found) == 1 else "break it together"
    click.echo(f"{', '.join(found)} {alone}, after {len(tried)} runs")
    return 1


def _found(names: list[str], run: Callable[[Sequence[str]], Outcome], stack: str) -> list[str]:
    whole, none = run(names), run([])
    if whole == "good" or none != "good":
        what = "the command is fine with the whole stack"
        if whole == "skip":
            what = "the command can't tell of the whole stack: it exits 125"
        elif none != "good":
            what = "the command fails without any adapter too"
        raise InarchError(
            "IA808",
            what,
            where=stack,
            why="bisecting needs one that is bad with all adapters and good with none",
            remedy="correct the command: it must exit with 0 for good, 1 for bad",
        )
    return culprits(names, run)


def _reduced(stack: Stack, kept: Sequence[str]) -> Stack:
    """The stack with some of its adapters, and no word about the others."""
    from dataclasses import replace

    specs = [
        replace(
            spec,
            after=tuple(name for name in spec.after if name in kept),
            before=tuple(name for name in spec.before if name in kept),
        )
        for spec in stack.specs
        if spec.name in kept
    ]
    return Stack(specs, stack.model)


def _run(stack: Stack, command: Sequence[str]) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="inarch-") as folder:
        path = Path(folder, "stack.toml")
        path.write_text(stack_text(stack), "utf-8")
        words = [word.replace(_PLACE, str(path)) for word in command]
        try:
            code = subprocess.run(words, capture_output=True, check=False).returncode
        except OSError as error:
            raise InarchError(
                "IA808",
                f"the command `{words[0]}` can't be run",
                why=error.strerror or str(error),
                remedy="check its name",
            ) from None
    if code > 127 or code < 0:
        raise InarchError(
            "IA808",
            f"the command stopped with {code}, so bisecting stops",
            where=" ".join(command),
            why="as with git bisect run, more than 127 says that nothing can be learnt",
            remedy="run it by hand",
        )
    return "good" if code == 0 else "skip" if code == 125 else "bad"
