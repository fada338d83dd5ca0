"""The only LoRA at a site: two products, and no sum so far that is copied.

What an edge of this kind costs is mostly calls, so the views that the products read are made once.
They share the parameters' memory: what is written there they see, and nothing is held twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inarch.tree.joint import writable
from inarch_lora.edges.joint import alone

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
        term = self.term
        if torch.compiler.is_compiling() or plus is None or alone(term):
            return term(x, plus=plus)
        seen = self._seen()
        if seen is None:
            return term(x, plus=plus)
        first, second, _, _, operands = seen
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, plus, first, second)):
            return term(x, plus=plus)
        strength = term.scaling * term.factor * term.strength
        if strength == 0:  # as if it were not there, even where it is no number
            return plus
        return term.add(x, operands, plus, strength, writable(plus, self.onto, x))

    def _seen(self) -> Seen | None:
        """The parameters and the views of them; None where a view might not be of them later."""
        seen, held, (a, b) = self.seen, self.term._parameters, self.term.names
        if (
            seen is not None
            and held[a] is seen[0]
            and held[b] is seen[1]
            and seen[0].data_ptr() == seen[2]
            and seen[1].data_ptr() == seen[3]
        ):
            return seen
        first, second = self.term.pair()
        if type(first) is not nn.Parameter or type(second) is not nn.Parameter:
            return None
        with torch.inference_mode(False), torch.no_grad():
            operands = self.term.operands(first, second)
        self.seen = first, second, first.data_ptr(), second.data_ptr(), operands
        return self.seen
