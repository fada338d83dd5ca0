"""Terms of one sum that are computed in one call, where their modules know how.

The program keeps one term for each adapter. Only the forward that is written from it calls them
together, through an object that the Chain holds beside its modules, so that every module and every
parameter is registered once and under its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary

from torch import Tensor, nn

from inarch.tree.signature import of_module
from inarch.tree.steps import Graft, Ref, Sum

_SHOWN = 4
_LONGEST = 60


class Joining(Protocol):
    """A module that adds to the sum so far, `plus`, and can do so together with others.

    Attributes:
        joins: what two modules of one class must have equal to be computed together, read when
            a forward is written; None for what is computed alone.
    """

    @property
    def joins(self) -> Hashable: ...

    @classmethod
    def joined(cls, modules: Sequence[Any]) -> Callable[..., Tensor]:
        """What computes all of them: called as each of them is, it adds what all of them add.

        It holds the modules, and serves every tree in which they stand together. It may keep what
        it makes of their parameters only as long as it sees that these, and whatever else their
        terms depend on, are as they were.
        """
        ...


@dataclass(frozen=True, slots=True)
class Joint:
    """Terms that are computed in one call.

    Attributes:
        name: the attribute of the Chain that is called.
        terms: the names of their modules, in the order of the sum.
    """

    name: str
    terms: tuple[str, ...]


def joints_of(sums: Iterable[Sum], modules: Mapping[str, nn.Module]) -> tuple[Joint, ...]:
    """What is computed together in the sums of one program.

    Args:
        sums: of the program.
        modules: the Chain's, by name.
    """
    joints: dict[str, Joint] = {}
    for one in sums:
        for terms in alike(one, modules):
            name = _free(terms, {*joints}, modules)
            joints[name] = Joint(name, terms)
    return tuple(joints.values())


def alike(step: Sum, modules: Mapping[str, nn.Module]) -> list[tuple[str, ...]]:
    """The names of a sum's terms that are computed together, two or more each."""
    terms = [t for t in step.steps if isinstance(t, Graft) and t.kind == "add"]
    groups: dict[Hashable, list[str]] = {}
    for term in terms if len(terms) > 1 else ():
        if isinstance(term.step, Ref):
            module: Any = modules[term.step.name]
            joins = module.joins if hasattr(type(module), "joins") else None
            if joins is not None and (signature := of_module(module)).plus:
                key = (type(module), signature, joins)
                groups.setdefault(key, []).append(term.step.name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def joined(joint: Joint, modules: Mapping[str, nn.Module]) -> Callable[..., Tensor]:
    """What a Chain calls for a joint of its modules: one object for all trees that share these."""
    terms: list[Any] = [modules[name] for name in joint.terms]
    key = tuple(map(id, terms))
    found = _JOINED.get(key)
    if found is None:
        found = _JOINED[key] = type(terms[0]).joined(terms)
    return found


_JOINED: WeakValueDictionary[tuple[int, ...], Callable[..., Tensor]] = WeakValueDictionary()
"""By the identities of the modules, which live as long as what computes them."""


def _free(terms: Sequence[str], taken: set[str], modules: Mapping[str, nn.Module]) -> str:
    """`q_proj__a__b` for `q_proj__a` and `q_proj__b`, or a name like it that nothing has."""
    site = terms[0].partition("__")[0]
    own = [name.removeprefix(f"{site}__") for name in terms]
    name = "__".join([site, *own])
    if len(own) > _SHOWN or len(name) > _LONGEST:
        name = f"{site}__{own[0]}__and_{len(own) - 1}_more"
    wanted, number = name, 1
    while wanted in taken or wanted in modules:
        number += 1
        wanted = f"{name}_{number}"
    return wanted
