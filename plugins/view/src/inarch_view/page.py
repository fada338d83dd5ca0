"""One self-contained page about a model: no network, no build step, opens from a file."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2
import msgspec

import inarch
from inarch.adapters import Model
from inarch_view.account import accounts_of, inputs_of
from inarch_view.order import order_of
from inarch_view.outline import Outline, reads_of, roles_of, within
from inarch_view.sources import Sources

_PARTS = files("inarch_view") / "page"


def page(model: Model, base: Model, title: str = "") -> str:
    """The page of an adapted model, compared with what it was made from.

    Args:
        model: adapted or not.
        base: the model without adapters.
        title: what it is called; its family by default.
    """
    return rendered("model", facts(model, base, title or model.family or type(model).__name__))


def facts(model: Model, base: Model, title: str) -> dict[str, Any]:
    """All that the page shows, as plain data."""
    roles, reads, sources = roles_of(model), reads_of(model), Sources()
    trees = {
        name: Outline(
            tree, base.trees.get(name), within(roles, name), within(reads, name), sources
        ).root
        for name, tree in model.trees.items()
    }
    return {
        "title": title,
        "version": inarch.__version__,
        "adapters": accounts_of(model, roles),
        "order": order_of(model),
        "inputs": inputs_of(model, base),
        "trees": trees,
        "sources": sources.all(),
    }


def rendered(view: str, data: dict[str, Any]) -> str:
    """The page of some data; `view` says which part of the script shows it."""
    environment = jinja2.Environment(autoescape=True)
    template = environment.from_string((_PARTS / "page.html").read_text("utf-8"))
    return template.render(
        title=data["title"],
        view=view,
        style=jinja2.utils.markupsafe.Markup((_PARTS / "page.css").read_text("utf-8")),
        script=jinja2.utils.markupsafe.Markup(_script(view)),
        data=jinja2.utils.markupsafe.Markup(_json(data)),
    )


def _script(view: str) -> str:
    names = ("parts.js", f"{view}.js")
    return "\n".join((_PARTS / name).read_text("utf-8") for name in names)


def _json(data: Any) -> str:
    """JSON that may stand inside of a script element."""
    return msgspec.json.encode(data).decode().replace("<", "\\u003c")
