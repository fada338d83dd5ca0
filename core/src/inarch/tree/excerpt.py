"""Structure copied without weights: of a module, or of a tree up to one of its sites."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from inarch.tree.chain import RESERVED, Chain
from inarch.tree.edit import no_site
from inarch.tree.generate import Interface
from inarch.tree.program import Registry, adopt
from inarch.tree.steps import Ref, Seq, Site, Step, walk


def structure(module: nn.Module) -> nn.Module:
    """The same structure with parameters of its own, on the meta device.

    Programs, and buffers that no checkpoint holds, are shared with the original, which is not
    changed. Weights that are tied in it are tied in the copy.
    """
    memo: dict[int, object] = {}
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                kept = name in part._non_persistent_buffers_set
                memo[id(buffer)] = buffer if kept else torch.empty_like(buffer, device="meta")
        if isinstance(part, Chain):
            memo |= {id(value): value for value in (part.program, part.interface, part.ties)}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
    return copy.deepcopy(module, memo)


def excerpt(tree: Chain, until: str, *steps: Step, keeps: Iterable[str] = ()) -> Chain:
    """A new tree of another's first steps and then others, its weights on the meta device.

    For an adapter that brings a copy of a part of the model, such as its encoder.

    Args:
        tree: the original, which is not changed.
        until: the site at its first level that is the last one copied.
        steps: what follows.
        keeps: further names that the new tree keeps.

    Raises:
        InarchError: IA110 where the tree has no such site.
    """
    first: list[Step] = []
    for step in tree.program.children:
        first.append(step)
        if isinstance(step, Site) and step.name == until:
            break
    else:
        raise no_site(tree, until, "an excerpt of the tree")
    part = tree._twin()
    part._modules = {}
    sites: set[str] = set()
    for step in walk(Seq(*first)):
        if isinstance(step, Ref):
            part._register(step.name, tree.module_at(step.name))
        elif isinstance(step, Site):
            sites.add(step.name)
    registry = Registry(RESERVED, part._register, names=sites)
    kept = tree.interface.keeps | frozenset(keeps)
    part.interface = Interface(tree.interface.takes, None, kept)
    part.ties = ()
    part._write(Seq(*first, *adopt(Seq(*steps), registry).children))
    copied = structure(part)
    if not isinstance(copied, Chain):
        raise TypeError("a copy of a Chain is one")
    return copied
