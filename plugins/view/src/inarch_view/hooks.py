"""The answer to core's hook: which picture a subject has in a form."""

from __future__ import annotations

from typing import Any

from inarch.errors import InarchError
from inarch.plugins.hooks import hook
from inarch.plugins.index import Finding


@hook
def inarch_picture(subject: Any, form: str) -> str | None:
    """See `inarch.plugins.hooks.Hooks`; what draws is imported when it is asked for."""
    from inarch.adapters import Model
    from inarch.resolve import Plan

    if isinstance(subject, Plan):
        return _plan(subject, form)
    if isinstance(subject, Finding):
        return _finding(subject, form)
    if not isinstance(subject, Model):
        return None
    if form == "page":
        from inarch_view.page import page

        return page(subject)
    if form == "fragment":
        from inarch_view.notebook import fragment

        return fragment(subject)
    from inarch_view.graph import GRAPHS

    if form not in GRAPHS:
        raise _unknown(form, ["page", "fragment", *GRAPHS])
    return GRAPHS[form](subject)


def _plan(plan: Any, form: str) -> str:
    if form == "page":
        from inarch_view.page import plan_page

        return plan_page(plan)
    if form == "fragment":
        from inarch_view.notebook import plan_fragment

        return plan_fragment(plan)
    raise _unknown(form, ["page", "fragment"])


def _finding(finding: Finding, form: str) -> str:
    if form != "fragment":
        raise _unknown(form, ["fragment"])
    from inarch_view.notebook import finding_fragment

    return finding_fragment(finding)


def _unknown(form: str, known: list[str]) -> InarchError:
    return InarchError(
        "IA871",
        f"there is no picture `{form}`",
        why=f"the forms are: {', '.join(known)}",
        remedy=f"ask for one of them: {known[0]}",
    )
