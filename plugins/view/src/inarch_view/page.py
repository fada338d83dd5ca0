"""One self-contained page about a model: no network, no build step, opens from a file."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

import inarch
from inarch.adapters import Model
from inarch.cli.colours import DARK, LIGHT
from inarch.resolve import Plan
from inarch_view.account import accounts_of, inputs_of, operations_of
from inarch_view.order import order_facts, order_of
from inarch_view.outline import outlines, roles_of

_PARTS = files("inarch_view") / "page"


def page(model: Model, title: str = "") -> str:
    """The page of a model, which compares it with what it was made from.

    Args:
        model: adapted or not.
        title: what it is called; by default its family, and its adapters.
    """
    names = ", ".join(model.adapters.names)
    family = model.family or type(model).__name__
    return rendered("model", facts(model, title or (f"{family} with {names}" if names else family)))


def facts(model: Model, title: str) -> dict[str, Any]:
    """All that the page shows, as plain data."""
    trees, sources = outlines(model)
    return {
        "title": title,
        "version": inarch.__version__,
        "adapters": [
            msgspec.structs.replace(one, operations=operations_of(model, one.name))
            for one in accounts_of(model, roles_of(model))
        ],
        "order": order_of(model),
        "inputs": inputs_of(model),
        "trees": trees,
        "sources": sources.all(),
    }


def plan_page(plan: Plan) -> str:
    """The page of a plan: its members, and a matrix of every pair with the reason."""
    data = {
        "title": f"Plan of {', '.join(plan.order) or 'an empty stack'}",
        "version": inarch.__version__,
        "adapters": [
            {
                "name": member.name,
                "kind": member.kind,
                "scale": member.scale,
                "edits": member.edits,
                "parameters": member.parameters,
                "inputs": member.inputs,
                "asks": member.asks,
            }
            for member in plan.members
        ],
        "order": order_facts(plan.order, plan.layers, plan.verdicts, plan.digest),
        "proof": plan.proof,
        "model": plan.model,
        "findings": plan.findings,
    }
    return rendered("plan", data)


def rendered(view: str, data: dict[str, Any]) -> str:
    """The page of some data; `view` says which part of the script shows it."""
    environment = jinja2.Environment(autoescape=True)
    template = environment.from_string((_PARTS / "page.html").read_text("utf-8"))
    return template.render(
        title=data["title"],
        view=view,
        light=LIGHT,
        dark=DARK,
        style=Markup((_PARTS / "page.css").read_text("utf-8")),
        script=Markup(_script(view)),
        data=Markup(_json(data)),
    )


def _script(view: str) -> str:
    names = ("parts.js", f"{view}.js")
    return "\n".join((_PARTS / name).read_text("utf-8") for name in names)


def _json(data: Any) -> str:
    """JSON that may stand inside of a script element."""
    return msgspec.json.encode(data).decode().replace("<", "\\u003c")
