"""Swapping: other weights in the modules of an adapter, where these need not change otherwise.

What runs is the same code over the same memory, so nothing is compiled again. A file fits a slot
where an adapter made of it would have the same edits, modules and shapes; an edit whose parameters
may all be zero (`Edit.padded`) may be missing in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inarch.adapters.asks import METADATA, disagreements
from inarch.adapters.edge import Edge
from inarch.adapters.flat import Flat, Key
from inarch.adapters.graft import Draft, draft_of, installed
from inarch.adapters.memory import Place, Store, materialise, parts
from inarch.adapters.mismatch import (
    by_key,
    from_file,
    mismatches,
    modules_of_both,
    no_swap,
    unlike,
    with_room,
)
from inarch.adapters.pattern import Buffers, Pattern, Settings, pattern_of
from inarch.adapters.slot import Content, Slot
from inarch.errors import InarchError
from inarch.plugins.wanted import located
from inarch.tree import Edit

if TYPE_CHECKING:
    from inarch.adapters.member import Member
    from inarch.adapters.model import Model
    from inarch.stack import AdapterSpec

_WHOLE = frozenset({nn.Parameter, Tensor})
_PATTERNS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Filling:
    """Weights that are ready to be put into an adapter; made by `Model.prepare`.

    They lie on the adapter's device, in the layout of its memory, smaller ranks padded. One filling
    can be put in any number of times, in any model that shares the adapter.

    Attributes:
        content: what the adapter holds afterwards.
        slot: what it was made for.
        moves: the weights, by the memory they go to.
        buffers: of modules that are no edges: the owner's buffers, a name in them, and the value.
        settings: for modules, the plain attributes that the file decides.
    """

    content: Content
    slot: Slot
    moves: Sequence[_Move]
    buffers: Buffers
    settings: Settings

    @property
    def bytes(self) -> int:
        """What putting it in copies."""
        return sum(move.values.nbytes for move in self.moves if move.values is not None)


@dataclass(frozen=True, slots=True, eq=False)
class _Move:
    """Weights for one allocation of an adapter's.

    Attributes:
        into: the allocation; None where the tensors lie by themselves.
        values: what it is to hold; None for zeros.
        places: of each tensor that should lie there.
        addresses: where each lies in memory, if nothing was moved.
        keys: of those tensors.
        found: where the values of each lie, for tensors that have to be copied one by one.
    """

    into: Tensor | None
    values: Tensor | None
    places: Sequence[Place]
    addresses: list[int]
    keys: Sequence[Key]
    found: Mapping[Key, Flat]

    def tensors(self) -> list[Any]:
        return [store[name] for store, name in self.places]

    def make(self, tensors: Sequence[Tensor]) -> None:
        """Copy, at once where nothing was moved, cast or copied since."""
        if self.into is not None and [t.data_ptr() for t in tensors] == self.addresses:
            self.into.zero_() if self.values is None else self.into.copy_(self.values)
            return
        for tensor, key in zip(tensors, self.keys, strict=True):
            flat = self.found.get(key)
            tensor.zero_() if flat is None else tensor.copy_(flat.view(key))


def prepared(model: Model, member: Member, weights: str | Path) -> Filling:
    """See `Model.prepare`."""
    if not isinstance(weights, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InarchError(
            "IA401",
            f"a {type(weights).__name__} is no weights for an adapter",
            where=f"adapter `{member.name}`",
            why="they are a file, a folder, the id of trained weights, or what `prepare` gave",
            remedy=f'model.swap("{member.name}", "other.safetensors")',
        )
    _refuse_fixed(member)
    if not member.slot.patterns:
        _know(member.slot, _own_pattern(model, member))
    for known in member.slot.patterns:
        like = known.of(model, member, Path(weights))
        if like is not None:
            _refuse_disagreement(model, member, like)
            return _filling(member, like, known.flats(like), known.buffers, known.settings)
    draft = _draft(model, member, weights)
    own, theirs = by_key(member.edits), by_key(draft.edits)
    facts = mismatches(member.adapter, member.edits, draft)
    if facts:
        raise no_swap(member, facts, str(weights), with_room(model, member.spec, draft.spec))
    _refuse_disagreement(model, member, draft)
    flats = materialise(draft.edits, model.sites, draft.header, like=member.slot.flats)
    if draft.header is not None:
        draft.header.close()
    facts = [fact for key in theirs for fact in unlike(own[key], theirs[key])]
    if facts:
        raise no_swap(member, facts, str(weights))
    beside = _beside([pair for key in theirs for pair in modules_of_both(own[key], theirs[key])])
    _know(member.slot, pattern_of(draft, model, member, flats, *beside))
    return _filling(member, draft, flats, *beside)


def _beside(pairs: Sequence[tuple[nn.Module, nn.Module]]) -> tuple[Buffers, Settings]:
    """What modules are to take over from others that isn't in the adapter's memory."""
    buffers = [one for old, new in pairs for one in _buffers(old, new)]
    settings = [
        (old, {name: getattr(new, name) for name in from_file(old)})
        for old, new in pairs
        if from_file(old)
    ]
    return buffers, settings


def _know(slot: Slot, pattern: Pattern | None) -> None:
    if pattern is not None:
        slot.patterns = (pattern, *slot.patterns[: _PATTERNS - 1])


def _own_pattern(model: Model, member: Member) -> Pattern | None:
    """The pattern of the file an adapter was made of, if that is what it holds."""
    content, modules = member.slot.content, list(_modules_of(member.edits))
    if content.header is None or content.weights is None or member.entry is None:
        return None
    spec = _spec(member, content.use, content.weights)
    draft = Draft(spec, member.kind, member.entry, content.adapter, content.header, member.edits)
    beside = _beside([(module, module) for module in modules])
    return pattern_of(draft, model, member, member.slot.flats, *beside)


def _filling(
    member: Member,
    draft: Draft,
    flats: Sequence[Flat],
    buffers: Buffers,
    settings: Settings,
) -> Filling:
    moves = list(_moves(member.slot, flats))
    return Filling(Content.of(draft), member.slot, moves, buffers, settings)


def _refuse_disagreement(model: Model, member: Member, draft: Draft) -> None:
    """Refuse settings of tasks that are none, or that another adapter asks to be different."""
    others = [draft if m.name == member.name else m for m in model.adapters]
    told = draft.header is not None and METADATA in draft.header.metadata
    for problem in disagreements(others, installed()) if told or len(others) > 1 else ():
        raise problem


def _moves(slot: Slot, flats: Sequence[Flat]) -> Iterator[_Move]:
    """What is to be copied where: an allocation at once, or what lies by itself."""
    found = {key: flat for flat in flats for key in flat.spans}
    left = dict(slot.places)
    for flat in slot.flats:
        new = next((f for f in flats if f.spans is flat.spans), None)
        places = [left.pop(key) for key in flat.spans]
        values = None if new is None else new.whole
        yield _Move(flat.whole, values, places, flat.addresses(), list(flat.spans), found)
    if left:
        yield _Move(None, None, list(left.values()), [], list(left), found)


@torch.inference_mode(False)  # which would not count what is written
@torch.no_grad()
def put_in(filling: Filling, member: Member) -> None:
    """Copy a filling into the modules of the adapter it was made for.

    Raises:
        InarchError: IA498 where it was made for another, or that is merged or sharded.
    """
    if filling.slot is not member.slot:
        why = ["these weights were prepared for another adapter, whose modules are others"]
        raise no_swap(member, why, filling.content.weights or "")
    tensors = [move.tensors() for move in filling.moves]
    if (
        member.merged
        or member.inner is not None
        or not {type(t) for some in tensors for t in some} <= _WHOLE
    ):
        _refuse_fixed(member)
    for move, some in zip(filling.moves, tensors, strict=True):
        move.make(some)
        torch.autograd.graph.increment_version([t for t in some if not t.is_inference()])
    if filling.buffers:
        into = [buffers[name] for buffers, name, _ in filling.buffers]
        values = [value for _, _, value in filling.buffers]
        torch._foreach_copy_(into, values)  # pyright: ignore
    for module, values in filling.settings:
        vars(module).update(values)  # as setattr would, which looks for parameters among them
    member.slot.content = filling.content


def _draft(model: Model, member: Member, weights: str | Path) -> Draft:
    """What `adapt` would make of the weights, with the options the member has."""
    listed, told = installed(), str(weights)
    shipped = told in listed.weights and not Path(told).exists()
    spec = _spec(member, told if shipped else member.kind, None if shipped else told)
    entry, _ = located(spec, listed, model.family)
    if entry.id != member.kind:
        why = f"`{told}` are weights of {entry.id}, and it is of kind {member.kind}"
        raise no_swap(member, [why], told)
    return draft_of(spec, model)


def _spec(member: Member, use: str, weights: str | None) -> AdapterSpec:
    fresh, now = member.adapter.for_training, member.spec.options
    options = {k: v for k, v in now.items() if k not in fresh}
    return replace(member.asked, options=options, use=use, weights=weights, where="")


def _refuse_fixed(member: Member) -> None:
    """Refuse where an adapter's tensors aren't what the model runs, or aren't whole."""
    if member.merged:
        raise no_swap(member, ["the model's weights hold it as it was merged"], "")
    if member.inner is not None:
        raise no_swap(member, ["other adapters stand in the tree that it brings"], "")
    for key, place in member.slot.places.items():
        kind = type(place.store[place.name])
        if kind not in _WHOLE:
            why = f"{key[0]}: its {key[3]} is a {kind.__name__}, no whole tensor"
            raise no_swap(member, [why], "")


def _modules_of(edits: Sequence[Edit]) -> Iterator[nn.Module]:
    for edit in edits:
        for _, part in parts(edit):
            yield from part.modules()


def _buffers(old: nn.Module, new: nn.Module) -> Iterator[tuple[Store, str, Tensor]]:
    """A module's buffers, and what they are in another; those of edges are in the memory."""
    for name in old._buffers if not isinstance(old, Edge) else ():
        value = new._buffers.get(name)
        if value is not None:
            yield old._buffers, name, value
