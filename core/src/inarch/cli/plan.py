"""`inarch plan`"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from inarch.cli.output import Output, json_option

if TYPE_CHECKING:
    from inarch.resolve.meeting import Verdict
    from inarch.resolve.plan import Plan
    from inarch.resolve.planned import PlannedMember
    from inarch.resolve.proof import Proof, Run


@click.command()
@click.argument("stack")
@click.option("--with", "extra", metavar="ADAPTER[=SCALE]", multiple=True, help="Adapt with this.")
@click.option("-o", "--output", "out", type=click.Path(dir_okay=False), help="Write the plan here.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page.")
@click.option("--device", default="cpu", show_default=True, help="Where it is to run.")
@click.option("--dtype", help="Such as bfloat16; the file's own by default.")
@click.option("--no-proof", is_flag=True, help="Don't run the model's examples.")
@json_option
def plan(
    stack: str,
    extra: tuple[str, ...],
    out: str | None,
    html: Path | None,
    device: str,
    dtype: str | None,
    no_proof: bool,
    as_json: bool,
) -> None:
    """Decide the order of a STACK file (or MODEL) and prove that it runs; no weight is read.

    Says for each pair of adapters whether their order matters and why, and what the stack adds:
    operations, bytes, and the memory a device needs.
    """
    from inarch.cli.target import wanted
    from inarch.loading import load
    from inarch.resolve.plan import resolve

    source, specs = wanted(stack, extra)
    base = load(source, device="meta", dtype=dtype)
    made = resolve(base, *specs, proof=not no_proof, device=device)
    if out is not None:
        Path(out).write_text(made.to_json(), "utf-8")
    output = Output(as_json, "plan")
    if html is not None:
        from inarch.cli.tree import drawn

        html.write_text(drawn(made, "page"), "utf-8")
        output.note(f"wrote {html}")
    if as_json:
        output.envelope(made.as_dict())
        return
    _print(made, output)
    if out is not None:
        output.note(f"\nwritten: {out}")


def _print(plan: Plan, output: Output) -> None:
    if not plan.members:
        click.echo("the stack is empty: the base as it is")
    numbers = {name: str(i) for i, layer in enumerate(plan.layers, 1) for name in layer}
    rows = [row for member in plan.members for row in _rows(member, numbers[member.name])]
    if rows:
        output.table(("turn", "name", "adapter", "scale", "parameters", "edits"), rows)
    for member in plan.members:
        for name, value in member.asks.items():
            click.echo(f"{member.name} asks for {name} = {value}")
    verdicts = [v for v in plan.verdicts if v.at]
    if verdicts:
        click.echo()
        words = {"commute": "either order", "ordered": "ordered", "user": "your order"}
        pairs = [(f"{v.a}, {v.b}", words[v.word], f"{v.reason} ({_at(v)})") for v in verdicts]
        output.table(("pair", "verdict", "why"), pairs)
    if plan.proof is not None:
        _print_proof(plan.proof, output)
    for finding in plan.findings:
        output.note(f"\nnote[{finding.code}]: {finding.what}\n  = help: {finding.remedy}")
    click.echo(f"\ndigest {plan.digest}")


def _rows(member: PlannedMember, turn: str, above: str = "") -> Iterator[tuple[str, ...]]:
    """A member's row, and those of the adapters in the tree that it brings."""
    name = f"{above}{member.name}"
    size, edits = f"{member.parameters:,}", _made(member.edits)
    yield turn, name, member.kind, f"{member.scale:g}", size, edits
    for one in member.adapters:
        yield from _rows(one, "", f"{name} / ")


def _print_proof(proof: Proof, output: Output) -> None:
    click.echo()
    for line in proof.unproved:
        click.echo(f"not proved: {line}")
    for line in dict.fromkeys(_proved(run) for run in proof.runs):
        click.echo(f"proved: {line}")
    for promise in proof.changes:
        click.echo(f"promised: {promise}")
    added = sum(proof.adapter_bytes.values())
    free = "" if proof.free is None else f" of {_mib(proof.free)} free"
    click.echo(f"weights: {_mib(proof.base_bytes)}, adapters {_mib(added)}")
    click.echo(f"memory: {_mib(proof.needed)}{free} on {proof.device}")


def _proved(run: Run) -> str:
    """What a run showed; two runs of other values and equal shapes show the same."""
    kept = "as before" if run.outputs == run.before else f"was {', '.join(run.before)}"
    where = f"{run.tree}: " if run.tree else ""
    more = run.operations - run.operations_before
    return f"{where}{', '.join(run.outputs)} out, {kept}; {more} operations more"


def _made(edits: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in edits.items())


def _at(verdict: Verdict) -> str:
    """Where two meet, or where that decides."""
    count = (verdict.deciding or len(verdict.at)) - 1
    return f"at {verdict.at[0] or 'the root'}" + (f" and {count} more" if count else "")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
