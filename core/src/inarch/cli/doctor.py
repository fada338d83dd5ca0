"""`inarch doctor`"""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

import click

import inarch
from inarch.cli.output import Output, as_data, json_option
from inarch.plugins import index
from inarch.plugins.index import Finding, Index


@click.command()
@click.option(
    "--import/--no-import",
    "importing",
    default=True,
    show_default=True,
    help="Import every plugin to see that it can be.",
)
@json_option
def doctor(importing: bool, as_json: bool) -> int:
    """Say what is installed, and what is wrong with it. Exits 1 where something is."""
    output = Output(as_json, "doctor")
    listed = index()
    findings = [*listed.findings, *_absent(listed), *(_imported(listed) if importing else [])]
    facts = {"inarch": inarch.__version__, "python": platform.python_version(), **_torch()}
    packages = sorted({(e.distribution, e.version) for t in _tables(listed) for e in t.values()})
    if as_json:
        found = [as_data(finding) for finding in findings]
        output.envelope({**facts, "packages": dict(packages), "findings": found})
        return 1 if findings else 0
    for name, value in [*facts.items(), *packages]:
        click.echo(f"{name:<24}{value}")
    for finding in findings:
        click.echo(f"\nwarning[{finding.code}]: {finding.distribution}: {finding.what}")
        for mark, text in (("  --> ", finding.where), ("  = help: ", finding.remedy)):
            if text:
                click.echo(mark + text)
    if not findings:
        click.echo("nothing is wrong")
    return 1 if findings else 0


def _tables(listed: Index) -> list[dict[str, Any]]:
    return [listed.models, listed.adapters, listed.formats, listed.weights, listed.checkpoints]


def _torch() -> dict[str, str]:
    if importlib.util.find_spec("torch") is None:
        return {"torch": "not installed"}
    import torch

    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {"torch": torch.__version__, "cuda": cuda}


def _absent(listed: Index) -> list[Finding]:
    """Trained weights whose adapter or model is not installed."""
    found: list[Finding] = []
    for entry in listed.weights.values():
        for kind, name, table in (
            ("adapter", entry.adapter, listed.adapters),
            ("model", entry.model, listed.models),
        ):
            if name not in table:
                what = f"its weights `{entry.id}` need the {kind} `{name}`, which is not installed"
                remedy = f"pip install inarch-{name}"
                found.append(Finding("IA308", entry.distribution, what, entry.manifest, remedy))
    return found


def _imported(listed: Index) -> list[Finding]:
    from inarch.errors import InarchError
    from inarch.plugins import load_object

    found: list[Finding] = []
    for group, objects in listed.objects.items():
        for name, (_, distribution) in objects.items():
            try:
                load_object(group, name)
            except InarchError as error:
                found.append(
                    Finding(error.code, distribution, error.why, error.where, error.remedy)
                )
    return found
