"""What each adapter of a model did, in numbers and names, and what it asks of the caller."""

from __future__ import annotations

from collections import Counter

import msgspec

from inarch.adapters import Member, Model
from inarch.resolve.proof import prove
from inarch_view.order import folded_places


class Account(msgspec.Struct):
    """One adapter.

    Attributes:
        name: its identity in the model.
        kind: the adapter plugin's id.
        scale: how strongly it acts.
        state: `live`, `trainable` or `merged`.
        parameters: that it brought.
        bytes: of those.
        edits: how many of each kind.
        roles: of the sites it edited, as the model calls them.
        reads: the addresses it was made from, folded.
        operations: that it adds to one forward of each tree; None where the model has no example.
    """

    name: str
    kind: str
    scale: float
    state: str
    parameters: int
    bytes: int
    edits: dict[str, int]
    roles: list[str]
    reads: str
    operations: int | None = None


class Input(msgspec.Struct):
    """One input of the whole model.

    Attributes:
        name: as it is passed.
        new: whether the base does not ask for it.
        asked: the addresses of the steps that use it, folded.
    """

    name: str
    new: bool
    asked: str


def accounts_of(model: Model, roles: dict[str, list[str]]) -> list[Account]:
    """The adapters of a model, in their order."""
    return [_account(member, roles) for member in model.adapters]


def operations_of(model: Model, name: str) -> int | None:
    """How many tensor operations one adapter adds to a forward of each tree, on its own."""
    alone = model.without(*(other for other in model.adapters.names if other != name))
    runs = {run.tree: run for run in reversed(prove(alone, (), (name,))[0].runs)}
    if not runs or model.adapters[name].merged:
        return None
    return sum(run.operations - run.operations_before for run in runs.values())


def _account(member: Member, roles: dict[str, list[str]]) -> Account:
    parameters = list(member.parameters().values())
    touched = (role for edit in member.edits for role in roles.get(edit.address, ()))
    reads = list(dict.fromkeys(read for edit in member.edits for read in edit.reads))
    state = "merged" if member.merged else "trainable" if member.trainable else "live"
    return Account(
        name=member.name,
        kind=member.kind,
        scale=member.scale,
        state=state,
        parameters=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
        edits=dict(Counter(edit.kind for edit in member.edits)),
        roles=list(dict.fromkeys(touched)),
        reads=", ".join(folded_places(reads)),
    )


def inputs_of(model: Model) -> list[Input]:
    """The inputs of a model, the new ones first."""
    known = model.without(*model.adapters.names).inputs
    inputs = [
        Input(name, name not in known, ", ".join(folded_places(where)))
        for name, where in model.inputs.items()
    ]
    return sorted(inputs, key=lambda one: not one.new)
