"""What `inarch tree --why ADDRESS` says: who put what at a site, in which order, and why."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import click

from inarch.cli.output import Output
from inarch.errors import InarchError
from inarch.resolve.kinds import DOES

if TYPE_CHECKING:
    from inarch.adapters.model import Model


def why(adapted: Model, address: str, as_json: bool) -> None:
    """Print, or give as JSON, all that adapters did at an address.

    Raises:
        InarchError: IA702 for an address the model doesn't have.
    """
    if address not in adapted.sites.all:
        near = difflib.get_close_matches(address, list(adapted.sites.all), 1, 0.4)
        raise InarchError(
            "IA702",
            f"the model has no site `{address}`",
            remedy=f"inarch tree MODEL --why {near[0]}" if near else "inarch tree MODEL",
        )
    data = told(adapted, address)
    output = Output(as_json, "tree")
    if as_json:
        output.envelope(data)
        return
    module = adapted.sites.all[address].module
    click.echo(f"{address}: {'a step' if module is None else type(module).__name__}")
    if not data["edits"]:
        click.echo("no adapter has an edit here")
    for i, edit in enumerate(data["edits"], 1):
        who = f"{edit['adapter']} {DOES[edit['kind']]}"
        brought = f": {', '.join(edit['modules'])}" if edit["modules"] else ""
        click.echo(f"\n{i}. {who}{brought}")
        click.echo(f"   {edit['plugin']}, from {edit['file'] or 'no file: untrained'}")
    if data["verdicts"]:
        click.echo("\nin this order, since")
        output.items(f"{a}, {b}: {v['reason']}" for v in data["verdicts"] for a, b in [v["pair"]])
    if data["source"]:
        click.echo("\nas source")
        for line in data["source"]:
            click.echo(f"  {line}")


def told(adapted: Model, address: str) -> dict[str, Any]:
    """The edits at an address in canonical order, the verdicts there, and the lines they made."""
    edits: list[dict[str, Any]] = []
    for name in adapted.order.names:
        member = adapted.adapters[name]
        entry = member.entry
        plugin = f"{member.kind} ({entry.distribution} {entry.version})" if entry else member.kind
        for edit in member.edits:
            if edit.address == address:
                edits.append(
                    {
                        "adapter": name,
                        "kind": edit.kind,
                        "modules": _described(member.modules.get(address)),
                        "plugin": plugin,
                        "file": None if member.header is None else member.header.path.name,
                        "merged": member.merged,
                    }
                )
    here = {edit["adapter"] for edit in edits}
    verdicts = [v for v in adapted.order.verdicts if address in v.at or {v.a, v.b} <= here]
    return {
        "address": address,
        "edits": edits,
        "verdicts": [v.as_dict() | {"at": [address]} for v in verdicts],
        "source": _lines(adapted, address),
    }


def _described(module: Any) -> list[str]:
    if module is None:
        return []
    shapes = [f"{n} {list(p.shape)}" for n, p in module.named_parameters()]
    return [" ".join([type(module).__name__, *shapes[:4]])]


def _lines(adapted: Model, address: str) -> list[str]:
    """The lines of the Chain's source that belong to the site."""
    from inarch.resolve.footprint import Grounds

    _, chain, name = Grounds(adapted.trees).chain(address)
    lines = chain.source.splitlines()
    own = [
        line.strip()
        for line, site in zip(lines, chain.form.lines, strict=False)
        if site == name or site.startswith(f"{name}.")
    ]
    return own
