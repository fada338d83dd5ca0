"""The only LoRA at a site: two products, and no sum so far that is copied.

What an edge of this kind costs is mostly calls, so the views that the products read are made once.
They share the parameters' memory: what is written there they see, and nothing is held twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inarch.tree.joint import watched, writable
from inarch_lora.edges.joint import learns

if TYPE_CHECKING:
    from inarch_lora.edges.lora import LoRAEdge

Seen = tuple[Tensor, Tensor, int, int, tuple[Tensor, ...]]


class LoneLoRA:
    """Computes one term, written into the sum so far where nobody else can see that.

    While it learns or drops inputs, or is watched by a hook, the term is called as a module.

    Args:
        term: beside a layer.
        onto: the layer whose output the sum so far is, or None.
    """

    __slots__ = ("onto", "seen", "term")

    def __init__(self, term: LoRAEdge, onto: nn.Module | None) -> None:
        self.term, self.onto = term, onto
        self.seen: Seen | None = None

    def __call__(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """What the term of `x` adds to `plus`, [..., outputs]."""
        term, seen = self.term, self.seen  # with as few calls as may be: every forward asks
        if (
            torch.compiler.is_compiling()
            or plus is None
            or watched(term)
            or (term.training and term.dropout)
            or (torch.is_grad_enabled() and (plus.requires_grad or x.requires_grad or learns(term)))
        ):
            return term(x, plus=plus)
        held, (a, b) = term._parameters, term.names
        if (
            seen is None
            or held[a] is not seen[0]
            or held[b] is not seen[1]
            or seen[0].data_ptr() != seen[2]
            or seen[1].data_ptr() != seen[3]
        ):
            seen = self.seen = _looked(term)
            if seen is None:
                return term(x, plus=plus)
        strength = term.scaling * term.factor * term.strength
        if strength == 0:  # as if it were not there, even where it is no number
            return plus
        return term.add(x, seen[4], plus, strength, writable(plus, self.onto, x))


def _looked(term: LoRAEdge) -> Seen | None:
    """The parameters and views of them; None where a view might not be of them later."""
    first, second = term.pair()
    if type(first) is not nn.Parameter or type(second) is not nn.Parameter:
        return None
    with torch.inference_mode(False), torch.no_grad():
        operands = term.operands(first, second)
    return first, second, first.data_ptr(), second.data_ptr(), operands
