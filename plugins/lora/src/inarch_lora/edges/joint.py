"""Several LoRAs at one site as one of rank sum: two operations, however many there are.

    B1 A1 x + B2 A2 x = [B1 B2] [A1; A2] x

The A's lie under one another and the B's side by side in a bank, B's with the strengths in them.
A bank is a copy, as large as the adapters that are in it, and is used only as long as every
parameter is the one it was made of, unchanged, and every strength is what it was.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from inarch.tree.joint import watched, writable

if TYPE_CHECKING:
    from inarch_lora.edges.lora import LoRAEdge


class Source:
    """Terms as they were when something was made of them."""

    def __init__(self, terms: Sequence[LoRAEdge]) -> None:
        self.first = terms[0]
        self.seen = tuple(map(_seen, terms))
        # Memory that nothing held any more could be given to other data, at the same place.
        self.memory = [value.detach() for term in terms for value in term.pair()]

    def stands(self) -> bool:
        """Whether the same would be made of them again, and none must be called by itself.

        An operation in place counts a tensor's version up; assigning its `data` doesn't, and moves
        it. Writing through `data` does neither.
        """
        if watched(self.first):  # as each is by a hook of all modules
            return False
        # Every forward asks, and what it must touch is mostly out of cache by then: so all is in
        # one frame, no module is asked for what its dict holds, and no number is looked into.
        for held, scaling, factor, strength, parameters in self.seen:
            if (
                held["strength"] is not strength
                or held["scaling"] is not scaling
                or held["factor"] is not factor
                or held["_forward_hooks"]
                or held["_forward_pre_hooks"]
                or (held["training"] and held["dropout"])
            ):
                return False
            own = held["_parameters"]
            for name, value, version, place in parameters:
                if own[name] is not value or value._version != version:
                    return False
                if value.data_ptr() != place:
                    return False
        return True


def _seen(term: LoRAEdge) -> tuple[Any, ...]:
    """What a term holds, three numbers in it, and its parameters, each by name."""
    parameters = tuple(
        (name, value, value._version, value.data_ptr())
        for name, value in zip(term.names, term.pair(), strict=True)
    )
    return term.__dict__, term.scaling, term.factor, term.strength, parameters


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """What several terms add: `strength * B(A(x))`, of `operands`; nothing where there are none."""

    source: Source
    operands: tuple[Tensor, ...] | None = None
    strength: float = 0.0

    @classmethod
    @torch.inference_mode(False)  # a tensor of inference mode could not be used outside of it
    @torch.no_grad()
    def of(cls, terms: Sequence[LoRAEdge]) -> Bank | None:
        """A bank of these terms; None where what it would be made of can change unseen.

        What acts with no strength is left out, so that it is not there even where it is no number.
        """
        pairs = [term.pair() for term in terms]
        every = [value for pair in pairs for value in pair]
        if not copyable(every, terms):
            return None
        strengths = [term.whole_strength() for term in terms]
        live = [(p, s) for p, s in zip(pairs, strengths, strict=True) if s != 0]
        if not live:
            return cls(Source(terms))
        # The largest is left to the product, which is exact, and no other factor is above 1.
        most = max((s for _, s in live), key=abs)
        first = _joined([a for (a, _), _ in live], 0)
        second = _joined([b if s == most else b * (s / most) for (_, b), s in live], 1)
        if type(first) not in (Tensor, nn.Parameter):  # it is traced, or counted without data
            return None
        return cls(Source(terms), terms[0].operands(first, second), most)


def _joined(values: Sequence[Tensor], dim: int) -> Tensor:
    """All of them along a dimension; one alone is not copied.

    Matrices lie transposed in memory, in the order in which a product with their transpose reads
    them: it is a third faster so on a CPU.
    """
    if len(values) == 1:
        return values[0]
    if values[0].dim() > 2:
        return torch.cat(list(values), dim)
    return torch.cat([value.t() for value in values], 1 - dim).t()


class JointLoRA:
    """Computes several terms of one form together.

    Where something depends on each term by itself they run one after another, as they would alone:
    while one of them learns or drops inputs, or is watched by a hook, and where FSDP2 writes
    parameters without a trace.

    Args:
        terms: of one class, beside one layer.
        onto: the layer whose output the sum so far is, or None.
    """

    def __init__(self, terms: Sequence[LoRAEdge], onto: nn.Module | None) -> None:
        self.terms = tuple(terms)
        self.onto = onto
        self.bank: Bank | None = None

    def __call__(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """What all the terms of `x` add to `plus`, [..., outputs]."""
        if torch.compiler.is_compiling():
            apart = plus is None or any(map(alone, self.terms))
            return self._in_turn(x, plus) if apart else self._traced(x, plus)
        bank = self.bank
        if bank is None or torch.is_grad_enabled() or gathering() or not bank.source.stands():
            bank = self.bank = renewed(self.bank, self.terms, lambda: Bank.of(self.terms))
        if bank is None or plus is None:
            return self._in_turn(x, plus)
        if bank.operands is None:
            return plus
        write = writable(plus, self.onto, x)
        return self.terms[0].add(x, bank.operands, plus, bank.strength, write)

    def _in_turn(self, x: Tensor, plus: Tensor | None) -> Tensor:
        first, *rest = self.terms
        total = first(x, plus=plus)
        for term in rest:
            total = term(x, plus=total)
        return total

    def _traced(self, x: Tensor, plus: Tensor) -> Tensor:
        """The same from the parameters themselves, whose gradients find them, at any strengths."""
        pairs = [term.pair() for term in self.terms]
        form = self.terms[0]
        z = form.down(x, torch.cat([first for first, _ in pairs]))
        strengths = torch.cat(
            [
                torch.as_tensor(term.whole_scale()).expand(first.shape[0])
                for term, (first, _) in zip(self.terms, pairs, strict=True)
            ]
        )
        z = (z * form.along_ranks(strengths)).to(z.dtype)
        return form.up(z, torch.cat([second for _, second in pairs], 1), plus, 1.0)


class Banked(Protocol):
    """What was made of terms."""

    @property
    def source(self) -> Source: ...


SomeBank = TypeVar("SomeBank", bound=Banked)


def renewed(
    old: SomeBank | None, terms: Sequence[LoRAEdge], make: Callable[[], SomeBank | None]
) -> SomeBank | None:
    """A bank that stands, the old one if it does; None where terms run one after another."""
    if apart(terms):
        return None
    return old if old is not None and old.source.stands() else make()


def copyable(parameters: Sequence[Tensor], terms: Sequence[LoRAEdge]) -> bool:
    """Whether what is copied of them can be told from what it no longer is."""
    return (
        all(type(value) is nn.Parameter and not value.is_inference() for value in parameters)
        and len({(value.dtype, value.device) for value in parameters}) == 1
        and all(math.isfinite(term.whole_strength()) for term in terms)
    )


def target(plus: Tensor, z: Tensor, second: Tensor, write: bool) -> Tensor | None:
    """Where a sum goes that may be written into `plus`: autocast casts nothing that is."""
    return plus if write and plus.dtype == z.dtype == second.dtype else None


def apart(terms: Sequence[LoRAEdge]) -> bool:
    """Whether each term must be called by itself, and nothing be kept of them."""
    if gathering() or any(map(alone, terms)):
        return True
    return torch.is_grad_enabled() and any(map(learns, terms))


def gathering() -> bool:
    """Whether FSDP2 puts parameters together in this process, and writes them without a trace.

    It gives each module that it manages a class of its own.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and bool(fsdp.FSDPModule.__subclasses__())


def alone(term: LoRAEdge) -> bool:
    """Whether a term must be called by itself: inputs are dropped for it alone, or a hook waits."""
    return watched(term) or (term.training and bool(term.dropout))


def learns(term: LoRAEdge) -> bool:
    first, second = term.pair()
    return first.requires_grad or second.requires_grad
