"""Hypothesis strategies: trees of every kind of step, and edits to them.

Each value is [2, 4], so that any step fits anywhere; each name is bound before it is asked for.
"""

from __future__ import annotations

import functools

import torch
from hypothesis import strategies as st
from small_trees import Factor, LowRank, Together
from torch import Tensor, nn

from inarch.tree import (
    Chain,
    Concat,
    Distribute,
    Edit,
    Export,
    Here,
    Identity,
    Let,
    Parallel,
    Product,
    Residual,
    Seq,
    Sum,
    Use,
)

INPUTS = ("gain", "text")
HOSTILE = ["cat", "tanh", "x", "torch", "match", "_", "print", "é", "step", "lean_2", "_x"]
HOSTILE += ["gain", "text", "lean"]


def lean(x):
    return x * 0.5 + 0.25


def power(x, *, exponent):
    return x.abs() ** exponent


def weigh(x, *, gain):
    return torch.tanh(x * gain)


def blend(x, *, text, gain):
    return torch.tanh(x - text + gain)


def split(x) -> tuple[Tensor, Tensor]:
    return x.sin(), x.cos()


def fold(x):
    return torch.tanh(x.unflatten(-1, (-1, 4)).sum(-2))


def mix(*values):
    return torch.tanh(sum(value * (i + 1) for i, value in enumerate(values)))


class Spread(Factor):
    def __init__(self):
        super().__init__(4)

    def forward(self, x):
        return self.vector.expand_as(x)


class Weighed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, *, gain):
        return self.inner(x) * gain


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, *, text) -> tuple[Tensor, Tensor]:
        return self.inner(x), x + text


class Maker:
    """Draws one Chain; `known` are the names bound so far, `mine` those this Chain exports."""

    def __init__(self, draw, known, counter, depth):
        self.draw, self.known, self.counter, self.depth = draw, list(known), counter, depth
        self.exports, self.used = [], set()

    def pick(self, options):
        return self.draw(st.sampled_from(options))

    def fresh(self, stem):
        self.counter[0] += 1
        return f"{stem}{self.counter[0]}"

    def label(self, stem):
        """A label of its own, sometimes one that looks like other things in the source."""
        free = [name for name in HOSTILE if name not in self.used]
        hostile = free and self.draw(st.integers(0, 3)) == 0
        name = self.pick(free) if hostile else self.fresh(stem)
        self.used.add(name)
        return name

    def module_label(self):
        return self.pick([self.label("w"), self.fresh("group.w"), f"blocks.{self.fresh('')}"])

    def module(self):
        return self.pick([lambda: nn.Linear(4, 4), Weighed, lambda: nn.LayerNorm(4)])()

    def leaf(self):
        kind = self.draw(st.integers(0, 5))
        if kind == 0:
            return (self.module_label(), self.module())
        if kind == 1:
            return (self.label("use"), Use(self.pick([*self.known, "text"])))
        step = self.pick(
            [lean, torch.tanh, weigh, blend, functools.partial(power, exponent=2), Identity()]
        )
        return (self.label("f"), step) if kind > 2 else step

    def several(self):
        """Steps that turn one value into several, and how many."""
        kind = self.draw(st.integers(0, 3))
        if kind == 0:
            return split, 2
        if kind == 1:
            return (self.module_label(), Pair()), 2
        if kind == 2 and len(self.known) > 1:
            return Use(*self.known[-2:]), 2
        count = self.draw(st.integers(1, 3))
        return Parallel(*(self.step(1) for _ in range(count))), count

    def step(self, depth):
        if depth == 0:
            return self.leaf()
        kind = self.draw(st.integers(0, 9))
        if kind <= 1:
            return self.leaf()
        if kind == 2:
            return self.let(depth)
        if kind == 3 and self.depth:
            return self.chain()
        if kind == 4:
            first, count = self.several()
            each = Distribute(*(self.step(0) for _ in range(count)))
            return Seq(first, *([each] if self.draw(st.booleans()) else []), mix)
        steps = [self.step(depth - 1) for _ in range(self.draw(st.integers(1, 3)))]
        if kind == 5:
            return Seq(Concat(*steps, dim=-1), fold)
        made = self.pick([Seq, Sum, Product, Residual])(*steps)
        return (self.label("g"), made) if self.draw(st.booleans()) else made

    def let(self, depth):
        kind = self.pick([Let, Export])
        if self.draw(st.integers(0, 5)) == 0:
            name = self.fresh("weight")
            self.known.append(name)
            return (name, nn.Parameter(torch.linspace(-1, 1, 8).view(2, 4)))
        if self.draw(st.integers(0, 4)) == 0:
            first, count = self.several()
            names = tuple(self.fresh("v") for _ in range(count))
        else:
            names = (self.fresh("v"),)
            first = self.step(depth - 1) if self.draw(st.booleans()) else Identity()
        self.known += names
        self.exports += names if kind is Export else ()
        step = kind(names, first)
        return (self.label("let"), step) if self.draw(st.booleans()) else step

    def chain(self):
        inner = Maker(self.draw, self.known, self.counter, self.depth - 1)
        chain = inner.whole()
        left = [name for name in inner.exports if name not in chain.interface.keeps]
        self.known += left
        self.exports += left
        return (self.module_label(), chain)

    def whole(self, **options):
        steps = [self.step(2) for _ in range(self.draw(st.integers(1, 4)))]
        keeps = [name for name in self.exports if self.draw(st.integers(0, 2)) == 0]
        return Chain(*steps, keeps=keeps, **options)


@st.composite
def trees(draw):
    """A tree, in float64."""
    return Maker(draw, (), [0], 2).whole(inputs=INPUTS).double()


@st.composite
def edits(draw, tree, adapter):
    """One edit that may or may not be possible."""
    kind = draw(
        st.sampled_from(["add", "add", "scale", "before", "after", "wrap", "replace", "tap"])
    )
    if draw(st.integers(0, 9)) == 0 or not tree.form.index:
        return Edit.provide(f"given_{adapter}", blend, adapter)
    address = draw(st.sampled_from(sorted(tree.form.index)))
    if kind == "tap":
        return Edit.tap(address, f"tapped_{adapter}", adapter, export=draw(st.booleans()))
    linear = nn.Linear(4, 4).double()
    step = draw(
        st.sampled_from(
            [
                linear,
                LowRank(4, 4).double(),
                Together(4, 4, rank=draw(st.integers(1, 2))).double(),
                Spread().double(),
                lean,
                weigh,
                Seq(("first", linear), lean),
                Chain(("inner", linear), weigh),
            ]
        )
    )
    if kind == "wrap":
        step = draw(st.sampled_from([Seq(torch.sin, Here(), step), Residual(Here(), lean)]))
    return getattr(Edit, kind)(address, step, adapter)


def inputs_for(tree):
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(2, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    named = dict(zip(INPUTS, values[1:], strict=True))
    return values[0], {name: named[name] for name in tree.form.needs}
