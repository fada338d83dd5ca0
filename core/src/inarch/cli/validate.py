"""`inarch validate`"""

from __future__ import annotations

from pathlib import Path

import click

from inarch.cli.output import Output, as_data, json_option
from inarch.errors import InarchError
from inarch.plugins import index
from inarch.plugins.index import Finding
from inarch.plugins.validate import packages_of, source_package, validated


@click.command()
@click.argument("package", required=False)
@json_option
def validate(package: str | None, as_json: bool) -> int:
    """Hold the manifest of a PACKAGE, a folder or an installed distribution, against the rest.

    Without one, all that are installed: that entry points and manifest name the same objects and
    the files are there, that codes are explained, that roles, kinds and versions can be read.
    Nothing is imported. Exits 1 where something is wrong.
    """
    output = Output(as_json, "validate")
    if package is not None and Path(package).is_dir():
        found = [source_package(Path(package))]
    else:
        found = [p for p in packages_of(index()) if package in (None, p.name)]
        if not found:
            raise InarchError(
                "IA702",
                f"`{package}` is neither a folder nor an installed package with a manifest",
                why=f"installed are: {', '.join(p.name for p in packages_of(index())) or 'none'}",
                remedy="inarch doctor",
            )
    findings: list[Finding] = [f for one in found for f in validated(one, index())]
    if as_json:
        data = {"packages": [p.name for p in found], "findings": [as_data(f) for f in findings]}
        output.envelope(data)
        return 1 if findings else 0
    for finding in findings:
        click.echo(f"error[{finding.code}]: {finding.distribution}: {finding.what}")
        for mark, text in (("  --> ", finding.where), ("  = help: ", finding.remedy)):
            if text:
                click.echo(mark + text)
        click.echo()
    names = ", ".join(p.name for p in found)
    counted = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}"
    click.echo(f"{names}: {counted if findings else 'nothing is wrong'}")
    return 1 if findings else 0
