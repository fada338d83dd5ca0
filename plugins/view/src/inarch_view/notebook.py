"""What notebooks show: small, folded, with no script and no style but its own."""

from __future__ import annotations

from html import escape

from inarch.adapters import Model
from inarch.cli.colours import LIGHT
from inarch.plugins.index import Finding
from inarch.resolve import Plan
from inarch_view.account import accounts_of
from inarch_view.outline import Line, outlines, roles_of

_CODE = "font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px"


def fragment(model: Model) -> str:
    """A model as nested `details`: closed, so it takes a line until somebody opens it."""
    places = {name: i for i, name in enumerate(model.adapters.names)}
    names = ", ".join(_coloured(name, places) for name in places) or "no adapters"
    head = f"<b>{escape(type(model).__name__)}</b> with {names}"
    rows = "".join(
        f"<div>{_coloured(one.name, places)} ({escape(one.kind)}, scale {one.scale:g}): "
        f"{', '.join(f'{kind} at {n}' for kind, n in one.edits.items())}, "
        f"{one.parameters:,} parameters</div>"
        for one in accounts_of(model, roles_of(model))
    )
    trees = "".join(_details(line, name, places) for name, line in outlines(model)[0].items())
    return (
        f'<details style="{_CODE}"><summary>{head}</summary>'
        f'<div style="margin:4px 0 4px 12px">{rows}</div>{trees}</details>'
    )


def plan_fragment(plan: Plan) -> str:
    """A plan as a fold: the order in its line, the reason for each pair inside."""
    places = {name: i for i, name in enumerate(plan.order)}
    layers = " &rarr; ".join(
        " &middot; ".join(_coloured(name, places) for name in layer) for layer in plan.layers
    )
    rows = "".join(
        f"<div>{_coloured(v.a, places)} and {_coloured(v.b, places)}: "
        f"{escape(v.word)}, {escape(v.reason)}</div>"
        for v in plan.verdicts
    )
    return (
        f'<details style="{_CODE}"><summary><b>Plan</b> {layers or "of nothing"}</summary>'
        f'<div style="margin:4px 0 4px 12px">{rows}<div>digest {escape(plan.digest)}</div></div>'
        "</details>"
    )


def finding_fragment(finding: Finding) -> str:
    """What is wrong as a fold: the sentence in its line, where and the cure inside."""
    parts = [
        f"<div>{word}: {escape(text)}</div>"
        for word, text in (
            ("where", finding.where),
            ("help", finding.remedy),
        )
        if text
    ]
    code = f'<b style="color:#{LIGHT[6]}">{escape(finding.code)}</b>'
    return (
        f'<details style="{_CODE}"><summary>{code} {escape(finding.what)}</summary>'
        f'<div style="margin-left:12px;white-space:pre-wrap">{"".join(parts)}</div></details>'
    )


def _details(line: Line, tree: str, places: dict[str, int]) -> str:
    label = line.label
    if line.folded:
        label = f"({line.folded[0]}-{line.folded[-1]}) x{len(line.folded)}"
    text = " ".join(filter(None, [tree, f"{label}:" if label else "", line.text]))
    shown = _coloured(line.by, places, text) if line.by else escape(text)
    if not line.below:
        return f'<div style="margin-left:24px">{shown}</div>'
    inner = "".join(_details(one, "", places) for one in line.below)
    return f'<details style="margin-left:12px"><summary>{shown}</summary>{inner}</details>'


def _coloured(name: str, places: dict[str, int], text: str = "") -> str:
    colour = LIGHT[places[name] % len(LIGHT)] if name in places else "667085"
    return f'<span style="color:#{colour}">{escape(text or name)}</span>'
