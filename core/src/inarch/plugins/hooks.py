"""Hooks that installed packages may answer: pluggy calls them for what a stack names, no others.

Hooks are not how packages are found (manifests are) and not how models are patched (edits are).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

from inarch.errors import InarchError
from inarch.plugins.index import Finding, index
from inarch.plugins.load import load_object

if TYPE_CHECKING:
    import click

    from inarch.adapters.model import Model

spec = pluggy.HookspecMarker("inarch")
hook = pluggy.HookimplMarker("inarch")
"""Marks a plugin's answer to a hook; the function takes only the parameters it needs."""


class Hooks:
    """What a package may answer through its `inarch.hooks` entry point."""

    @spec
    def inarch_check(self, model: Model) -> Iterable[Finding] | None:  # pyright: ignore[reportReturnType]
        """Look at an adapted model before it is used, and say what is wrong with it."""

    @spec
    def inarch_after_apply(self, model: Model, base: Model) -> None:
        """Told of each model that `adapt` made, and of what it was made from."""

    @spec(firstresult=True)
    def inarch_picture(self, subject: Any, form: str) -> str | None:
        """Draw a model or a plan: a whole `page`, a `fragment` for notebooks, `dot`, `mermaid`."""

    @spec(firstresult=True)
    def inarch_run(self, family: str) -> click.Command | None:
        """What `inarch run` is for a family of models: a command whose argument is the model.

        Asked of the package that has the family, for tasks whose options core does not know. Under
        torchrun every process runs it: see `inarch.distribute.processes.joined`.
        """

    @spec
    def inarch_commands(self) -> Iterable[click.Command] | None:  # pyright: ignore[reportReturnType]
        """Commands to add to the command line."""


def hooked(distributions: Iterable[str] | None = None) -> list[str]:
    """Of the named distributions, or of all, those that answer hooks; imports none of them."""
    points: dict[str, tuple[str, str]] = index().objects.get("inarch.hooks", {})
    having = {distribution for _, distribution in points.values()}
    return sorted(having if distributions is None else having & set(distributions))


def manager(distributions: Iterable[str]) -> pluggy.PluginManager:
    """A manager with the hooks of the named distributions registered, in order of their names.

    Raises:
        InarchError: IA309 where a package can't be imported, IA311 where it answers a hook that
            doesn't exist or asks for a parameter that a hook doesn't have.
    """
    plugins = pluggy.PluginManager("inarch")
    plugins.add_hookspecs(Hooks)
    wanted = set(distributions)
    points: dict[str, Any] = index().objects.get("inarch.hooks", {})
    for name, (_, distribution) in sorted(points.items()):
        if distribution not in wanted:
            continue
        module = load_object("inarch.hooks", name)
        try:
            plugins.register(module, name)
            plugins.check_pending()
        except pluggy.PluginValidationError as error:
            raise InarchError(
                "IA311",
                f"the hooks of {distribution} don't fit",
                where=f"inarch.hooks: {name}",
                why=str(error),
                remedy=f"pip install --upgrade {distribution}",
            ) from None
    return plugins


def picture(subject: Any, form: str) -> str | None:
    """A model or a plan drawn by an installed package; None where none draws it.

    Args:
        subject: what to draw.
        form: `page`, `fragment`, `dot` or `mermaid`.
    """
    for distribution in hooked():
        try:
            hooks = manager([distribution]).hook
        except InarchError:  # which `inarch doctor` reports; the others can still draw
            continue
        drawn: str | None = hooks.inarch_picture(subject=subject, form=form)
        if drawn is not None:
            return drawn
    return None
