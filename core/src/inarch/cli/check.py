"""`inarch check`"""

from __future__ import annotations

from typing import Any

import click

from inarch.cli.output import Output, as_data, json_option
from inarch.plugins import index
from inarch.resolve.check import Listed, Report
from inarch.resolve.check import check as checked
from inarch.resolve.kinds import DOES
from inarch.resolve.refusal import Refused
from inarch.stack import load_stack


@click.command()
@click.argument("stack")
@json_option
def check(stack: str, as_json: bool) -> int:
    """Check a STACK file by manifests and file headers; nothing is imported or read beyond.

    What only the edits of the adapters can decide is named, and left to `inarch plan`. Exits 1
    where something is wrong.
    """
    output = Output(as_json, "check")
    report = checked(load_stack(stack), index(), stack)
    problems = report.problems
    if as_json:
        error = None
        if problems:
            error = problems[0].as_dict() if len(problems) == 1 else Refused(problems).as_dict()
        output.envelope(_data(report), error=error)
        return 1 if problems else 0
    if report.members:
        headings = ("name", "adapter", "package", "what it does")
        output.table(headings, [_row(member) for member in report.members])
    for problem in problems:
        click.echo(err=True)
        output.refuse(problem)
    for finding in report.findings:
        output.note(f"\nnote[{finding.code}]: {finding.what}\n  = help: {finding.remedy}")
    model = report.family.id if report.family else "its model"
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "fine"
    click.echo(f"\n{stack}: {count}, by manifests and file headers, for {model}")
    output.items(report.left)
    if report.left:
        click.echo(f"the edits decide the rest: inarch plan {stack}")
    return 1 if problems else 0


def _row(member: Listed) -> tuple[str, str, str, str]:
    does = " and ".join(DOES[kind] for kind in member.entry.kinds) or "unsaid"
    size = f", {member.bytes / 2**20:.1f} MiB" if member.bytes else ""
    package = f"{member.entry.distribution} {member.entry.version}"
    return member.name, member.kind, package, does + size


def _data(report: Report) -> dict[str, Any]:
    return {
        "model": report.family.id if report.family else None,
        "members": [
            {
                "name": m.name,
                "adapter": m.kind,
                "distribution": m.entry.distribution,
                "version": m.entry.version,
                "kinds": list(m.entry.kinds),
                "file": None if m.path is None else str(m.path),
                "bytes": m.bytes,
            }
            for m in report.members
        ],
        "problems": [problem.as_dict() for problem in report.problems],
        "findings": [as_data(finding) for finding in report.findings],
        "left": report.left,
    }
