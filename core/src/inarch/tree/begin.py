"""A Chain with one more step before its first."""

from __future__ import annotations

from torch import nn

from inarch.tree.chain import RESERVED, Chain
from inarch.tree.names import module_name
from inarch.tree.program import Registry, adopt
from inarch.tree.steps import Graft, Seq


def begun(chain: Chain, step: nn.Module, owner: str) -> Chain:
    """A new Chain whose input goes through `step` first, which shares everything else.

    Args:
        chain: takes one main value.
        step: stands under the name `first__OWNER`.
        owner: whose step it is, named as an adapter is.
    """
    twin = chain._twin()  # pyright: ignore[reportPrivateUsage]
    registry = Registry(RESERVED, twin._register, prefix=module_name("first", owner))  # pyright: ignore[reportPrivateUsage]
    first = Graft(owner, "before", adopt(step, registry))
    twin._write(Seq(first, *chain.program.children))  # pyright: ignore[reportPrivateUsage]
    return twin
