"""Whether each adapter of a stack fits a model: everything that is wrong, before a byte is read.

Names, options, roles, file keys and shapes, the base's fingerprint, version ranges, requirements
and declared conflicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from inarch.adapters.asks import disagreements
from inarch.adapters.graft import Draft, draft_of, installed
from inarch.adapters.member import Member
from inarch.errors import InarchError
from inarch.plugins.index import Finding, Index
from inarch.resolve.declared import Party, place_of, taken, unknown_ids, unmet, versions
from inarch.resolve.refusal import flattened
from inarch.stack import AdapterSpec

if TYPE_CHECKING:
    from inarch.adapters.model import Model


def fitted(model: Model, specs: Sequence[AdapterSpec]) -> tuple[list[Draft], list[InarchError]]:
    """The drafts of the adapters that fit, and what is wrong with the others and their company.

    Args:
        model: what is to be adapted; its own adapters count as present.
        specs: what is asked for.
    """
    drafts: list[Draft] = []
    problems: list[InarchError] = []
    names = list(model.adapters.names)
    for spec in specs:
        if spec.name in names:
            problems.append(taken(spec))
            continue
        names.append(spec.name)
        try:
            drafts.append(draft_of(spec, model))
        except InarchError as error:
            problems += flattened(error)
    listed = installed()
    present: list[Party] = [*model.adapters, *drafts]
    problems += unmet(present, listed.adapters)
    problems += _asks([*model.adapters, *drafts], listed)
    family = listed.models.get(model.family)
    for draft in drafts:
        problems += versions(draft.name, draft.entry, family)
        problems += _undeclared(draft)
    return drafts, problems


def _asks(present: Sequence[Draft | Member], listed: Index) -> list[InarchError]:
    try:
        return list(disagreements(present, listed))
    except InarchError as error:  # a header that can't be read
        return [error]


def _undeclared(draft: Draft) -> Iterator[InarchError]:
    """IA811 for kinds of edit that the manifest doesn't name, which answers would have missed."""
    told = set(draft.entry.kinds)
    made = {edit.kind for edit in draft.edits}
    if told and made - told:
        extra = ", ".join(sorted(made - told))
        yield InarchError(
            "IA811",
            f"`{draft.name}` makes edits its manifest doesn't name: {extra}",
            where=place_of(draft.entry, "kinds"),
            why=f"it names: {', '.join(sorted(told))}; `inarch check` relies on that",
            remedy=f"pip install --upgrade {draft.entry.distribution}",
        )


def notes(members: Sequence[Party], listed: Index) -> list[Finding]:
    """What stops nothing and is told: declarations about ids that nothing installed has."""
    entries = {m.entry.id: m.entry for m in members if m.entry is not None}
    return [found for e in entries.values() for found in unknown_ids(e, listed.adapters)]
