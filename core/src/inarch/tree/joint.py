"""Terms of one sum that are computed in one call, where their modules know how.

The program keeps one term for each adapter. Only the forward that is written from it calls them
together, through an object that the Chain holds beside its modules, so that every module and every
parameter is registered once and under its own name.

Terms that come first after a layer's own output may write into it, since no other step sees it. So
one alone is called through such an object too, and as in torch the name ends in an underscore.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules

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
    def joined(cls, modules: Sequence[Any], onto: nn.Module | None) -> Callable[..., Tensor]:
        """What computes all of them: called as each of them is, it adds what all of them add.

        It holds the modules, and serves every tree in which they stand together. It may keep what
        it makes of their parameters only as long as it sees that these, and whatever else their
        terms depend on, are as they were.

        Args:
            modules: one or more.
            onto: the layer whose output it is given as the sum so far, and may write into where
                `writable` says so; None for a sum that others may see.
        """
        ...


@dataclass(frozen=True, slots=True)
class Joint:
    """Terms that are computed in one call.

    Attributes:
        name: the attribute of the Chain that is called.
        terms: the names of their modules, in the order of the sum.
        onto: the name of the layer whose output they are added to, where no other step sees it.
    """

    name: str
    terms: tuple[str, ...]
    onto: str = ""


def joints_of(sums: Iterable[Sum], modules: Mapping[str, nn.Module]) -> tuple[Joint, ...]:
    """What is computed together in the sums of one program.

    Args:
        sums: of the program.
        modules: the Chain's, by name.
    """
    joints: dict[str, Joint] = {}
    for one in sums:
        layer, first = _onto(one, modules)
        for terms in alike(one, modules):
            onto = layer if terms[0] == first else ""
            if len(terms) > 1 or onto:
                name = _free(terms, "_" if onto else "", {*joints}, modules)
                joints[name] = Joint(name, terms, onto)
    return tuple(joints.values())


def _onto(step: Sum, modules: Mapping[str, nn.Module]) -> tuple[str, str]:
    """The layer a sum begins with, if its output is new each time, and what is added to it first.

    Nothing else in the program can name that output: a tap would stand between the two.
    """
    match step.steps:
        case (Ref(layer), Graft(kind="add", step=Ref(first)), *_) if _gives_new(modules[layer]):
            return layer, first
        case _:
            return "", ""


def _gives_new(module: nn.Module) -> bool:
    """Whether all that a module gives is new memory, which it keeps no hold of.

    Other classes than torch's say so themselves, by an attribute `gives_new`.
    """
    kind = type(module)
    return kind in _LAYERS or bool(vars(kind).get("gives_new"))


_LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def alike(step: Sum, modules: Mapping[str, nn.Module]) -> list[tuple[str, ...]]:
    """The names of a sum's terms that may be computed together, alone or with others."""
    groups: dict[Hashable, list[str]] = {}
    for term in step.steps:
        if isinstance(term, Graft) and term.kind == "add" and isinstance(term.step, Ref):
            module: Any = modules[term.step.name]
            joins = module.joins if hasattr(type(module), "joins") else None
            if joins is not None and (signature := of_module(module)).plus:
                key = (type(module), signature, joins)
                groups.setdefault(key, []).append(term.step.name)
    return [tuple(names) for names in groups.values()]


def joined(terms: Sequence[Any], onto: nn.Module | None) -> Callable[..., Tensor]:
    """What a Chain calls for a joint: one object for all trees that share its modules.

    Args:
        terms: the modules of the joint's terms.
        onto: that of its layer.
    """
    if len(terms) == 1:  # which keeps no copy to be shared
        return type(terms[0]).joined(terms, onto)
    key = (id(onto), *map(id, terms))
    found = _JOINED.get(key)
    if found is None:
        found = _JOINED[key] = type(terms[0]).joined(terms, onto)
    return found


def writable(value: Tensor, layer: nn.Module | None, given: Tensor) -> bool:
    """Whether what a layer has just made of what it was given may be written into.

    No other step sees it. But a hook may have kept it, and what was put in place of the layer or of
    its forward may have given what is not new. Gradients may need it, and what transforms or traces
    is told of no writing.
    """
    return (
        layer is not None
        and value is not given
        and type(value) is Tensor
        and not layer._forward_hooks
        and "forward" not in layer.__dict__
        and not all_modules._global_forward_hooks
        and not value.requires_grad
        and not torch._C._are_functorch_transforms_active()
    )


_JOINED: WeakValueDictionary[tuple[int, ...], Callable[..., Tensor]] = WeakValueDictionary()
"""By the identities of the modules, which live as long as what computes them."""


def watched(module: nn.Module) -> bool:
    """Whether a hook waits for a call of a module, which must then be called as one."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or all_modules._global_forward_hooks
        or all_modules._global_forward_pre_hooks
    )


def _free(terms: Sequence[str], end: str, taken: set[str], modules: Mapping[str, nn.Module]) -> str:
    """`q_proj__a__b` for `q_proj__a` and `q_proj__b`, or a name like it that nothing has."""
    site = terms[0].partition("__")[0]
    own = [name.removeprefix(f"{site}__") for name in terms]
    name = "__".join([site, *own])
    if len(own) > _SHOWN or len(name) > _LONGEST:
        name = f"{site}__{own[0]}__and_{len(own) - 1}_more"
    wanted, number = name + end, 1
    while wanted in taken or wanted in modules:
        number += 1
        wanted = f"{name}_{number}{end}"
    return wanted
