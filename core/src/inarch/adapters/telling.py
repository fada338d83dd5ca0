"""What packages are told of a model that their adapters are in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inarch.errors import InarchError
from inarch.plugins import index
from inarch.plugins.hooks import hooked, manager

if TYPE_CHECKING:
    from inarch.adapters.model import Model


def tell(model: Model, base: Model) -> None:
    """Let the packages of a model's adapters look at it, those that asked to.

    Raises:
        InarchError: IA413 with the first thing one of them finds wrong.
    """
    listed = index()
    kinds = (listed.adapters.get(member.kind) for member in model.adapters)
    names = hooked(entry.distribution for entry in kinds if entry is not None)
    if not names:
        return
    hooks = manager(names).hook
    for findings in hooks.inarch_check(model=model):
        for finding in findings or ():
            raise InarchError(
                "IA413",
                f"{finding.distribution} refuses this stack: {finding.what}",
                where=finding.where,
                why=finding.code,
                remedy=finding.remedy,
            )
    hooks.inarch_after_apply(model=model, base=base)
