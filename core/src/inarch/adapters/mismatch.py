"""Why weights can't be put into an adapter in place, and what would have room for both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from inarch.adapters.flat import Key
from inarch.adapters.graft import Draft, draft_of
from inarch.adapters.memory import key_of, parameters, parts
from inarch.errors import InarchError
from inarch.stack import AdapterSpec
from inarch.tree import Chain, Edit
from inarch.tree.generate import structure
from inarch.tree.program import Registry, adopt
from inarch.tree.signature import Call

if TYPE_CHECKING:
    from inarch.adapters.adapter import Adapter
    from inarch.adapters.member import Member
    from inarch.adapters.model import Model

_OWN = frozenset({*vars(nn.Module()), "strength", "_compiled_call_impl"})
_CHAIN = frozenset({"form", "program", "interface", "forward", "ties"})
_NOTHING_THERE = "and the adapter has nothing there"
_SHOWN = 6
_CAPACITIES = (64, 1024)
"""Ranks that room is tried for, where that is what is missing."""


def no_swap(
    member: Member, facts: Sequence[str], weights: str, remedy: str | None = None
) -> InarchError:
    """The error for weights that can't be put in, with everything that is in the way."""
    more = [f"and {len(facts) - _SHOWN} more"] if len(facts) > _SHOWN else []
    if member.merged:
        remedy = "swap it in the model that was merged, and merge that again"
    return InarchError(
        "IA498",
        f"the adapter `{member.name}` can't hold these weights in place",
        where=weights,
        why="\n".join([*facts[:_SHOWN], *more]),
        remedy=remedy or f'make another model: model.without("{member.name}").adapt(...)',
    )


def mismatches(adapter: Adapter, edits: Sequence[Edit], draft: Draft) -> list[str]:
    """What a swap can't bring from an adapter with some edits to one that is yet to be filled."""
    own, theirs = by_key(edits), by_key(draft.edits)
    facts = [*_outlines(adapter, draft.adapter), *_missing(own, theirs)]
    for key in [key for key in own if key in theirs] if not facts else ():
        facts += _differences(own[key], theirs[key])
    return facts


def with_room(model: Model, told: AdapterSpec, wanted: AdapterSpec) -> str | None:
    """How an adapter is made that has room for what two specifications ask for, if one can be.

    It is tried, without a tensor, so that what is said would help.
    """
    for capacity in dict.fromkeys((told.options.get("capacity") or _CAPACITIES[0], *_CAPACITIES)):
        room: dict[str, Any] = {"capacity": capacity}
        made = f'inarch.adapter("{wanted.use}", ..., capacity={capacity}'
        facts, new = _tried(model, told, wanted, room)
        if facts and all(_NOTHING_THERE in fact for fact in facts):
            covers = [*dict.fromkeys(edit.address for edit in new)]
            facts, _ = _tried(model, told, wanted, {**room, "covers": covers})
            made += ", covers=[...]"
        if facts == []:
            return f"make it with room for both: {made})"
    return None


def _tried(
    model: Model, told: AdapterSpec, wanted: AdapterSpec, room: Mapping[str, Any]
) -> tuple[list[str] | None, Sequence[Edit]]:
    """What would be in the way with other options, None where they can't be, and the new edits."""
    try:
        new = draft_of(replace(wanted, options={**wanted.options, **room}), model)
        old = draft_of(replace(told, options={**told.options, **room}), model)
    except InarchError:
        return None, ()
    return mismatches(old.adapter, old.edits, new), new.edits


def by_key(edits: Sequence[Edit]) -> dict[Key, Edit]:
    return {key_of(edit): edit for edit in edits}


def _outlines(old: Adapter, new: Adapter) -> Iterator[str]:
    """What the adapters themselves say of the model's inputs and words."""
    if list(old.inputs()) != list(new.inputs()):
        asked = [", ".join(i.name for i in a.inputs()) or "none" for a in (new, old)]
        yield f"its inputs would be {asked[0]} in place of {asked[1]}"
    if list(old.learned()) != list(new.learned()):
        yield "it would teach other words, which have ids in the model"


def _missing(own: Mapping[Key, Edit], theirs: Mapping[Key, Edit]) -> Iterator[str]:
    for key in theirs:
        if key not in own:
            yield f"the file adapts {key[0]} ({key[1]}), {_NOTHING_THERE}"
    for key, edit in own.items():
        names = {name for name, *_ in parameters(edit)}
        if key not in theirs and (not names or names - {*edit.padded}):
            yield f"the file has nothing for {key[0]} ({key[1]})"


def _differences(old: Edit, new: Edit) -> Iterator[str]:
    """What a swap can't bring from one edit to the other, both at one address and of one kind."""
    at = old.address or ", ".join(old.names)
    shapes = [{n: tuple(p.shape) for n, _, _, p in parameters(edit)} for edit in (old, new)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        first, second = (each.get(name) for each in shapes)
        if first != second:
            told = [list(shape) if shape else "absent" for shape in (second, first)]
            yield f"{at}: {name} is {told[0]}, and the adapter's is {told[1]}"
    if shapes[0] != shapes[1]:
        return
    for name in ("inputs", "reads", "export", "label", "kin"):
        if getattr(old, name) != getattr(new, name):
            yield f"{at}: its {name} would be {getattr(new, name)}, not {getattr(old, name)}"
    (program, modules), (other, others) = _program(old), _program(new)
    if program != other or list(modules) != list(others):
        yield f"{at}: what stands there would be {_told(other)}, not {_told(program)}"
        return
    for label, module in modules.items():
        if structure(module) != structure(others[label]):
            kinds = [type(m).__name__ for m in (others[label], module)]
            yield f"{at}: its {kinds[0]} is built otherwise than the adapter's {kinds[1]}"


def _program(edit: Edit) -> tuple[Any, dict[str, nn.Module]]:
    """An edit's step as a program, and the modules in it by name."""
    modules: dict[str, Any] = {}
    return adopt(edit.step, Registry(frozenset(), modules.__setitem__, prefix="its")), modules


def _told(step: Any) -> str:
    """A step in few words: of a function its name and what is bound in it."""
    if not isinstance(step, Call):
        return str(step)
    function: Any = step.function
    bound = ", ".join(
        f"{name}={value}" for name, value in getattr(function, "keywords", {}).items()
    )
    named = getattr(function, "func", function)
    return f"{getattr(named, '__name__', named)}({bound})"


def unlike(old: Edit, new: Edit) -> Iterator[str]:
    """Settings of modules, once they stand beside the base, that a file doesn't bring."""
    for one, two in modules_of_both(old, new):
        skipped = {*_OWN, *from_file(one), *(_CHAIN if isinstance(one, Chain) else ())}
        first, second = (
            {name: value for name, value in vars(m).items() if name not in skipped}
            for m in (one, two)
        )
        for name in sorted(first.keys() | second.keys()):
            own, other = first.get(name), second.get(name)
            if own is not other and (isinstance(own, Tensor) or own != other):
                yield f"{old.address}: its {name} is {other}, and the adapter's is {own}"


def modules_of_both(old: Edit, new: Edit) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The modules of two edits that match, in pairs."""
    for (_, one), (_, two) in zip(parts(old), parts(new), strict=True):
        yield from zip(one.modules(), two.modules(), strict=True)


def from_file(module: nn.Module) -> tuple[str, ...]:
    """The plain attributes of a module that a file decides."""
    return getattr(type(module), "from_file", ())
