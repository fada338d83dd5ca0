"""Packing: layers that share their input as one product, whose rows keep their names.

Each layer stays where it is, with the parameters its checkpoint names; these are rows of one tensor
now, and a module without parameters of its own multiplies by all of them at once. Whether layers
share an input is read from the program, edits included, and never assumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.tree.chain import Chain, ModulesOf, Pack
from inarch.tree.generate import writer_of
from inarch.tree.lines import Value
from inarch.tree.names import can_name_a_value
from inarch.tree.steps import Combinator, Let, Ref, Seq, Step, Use, walk
from inarch.tree.twin import twin_of
from inarch.tree.write import Writer

SomeChain = TypeVar("SomeChain", bound=Chain)


class PackedLinear(nn.Module):
    """Linear layers of one input, as one product.

    Attributes:
        sizes: outputs of each.
        parts: the layers' own parameters, weights first. They are registered where their names say.
        weight, bias: all rows. Not of the state dict: the layers hold the same memory.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.sizes = tuple(layer.out_features for layer in layers)
        self.take(layers)

    def take(self, layers: Sequence[nn.Linear]) -> None:
        """Hold the rows of some layers, which are laid out as rows of one tensor if they aren't."""
        weights, biases = (
            [p for layer in layers if (p := layer._parameters[name]) is not None]
            for name in ("weight", "bias")
        )
        self.parts = (*weights, *biases)
        self.register_buffer("weight", _together(weights), persistent=False)
        self.register_buffer("bias", _together(biases) if biases else None, persistent=False)

    def product(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., inputs] to [..., outputs] of each layer."""
        weight, bias = self.weight, self.bias
        if torch.is_grad_enabled() and any(part.requires_grad for part in self.parts):
            count = len(self.sizes)
            weight = torch.cat(self.parts[:count])  # through which gradients reach each layer's
            bias = torch.cat(self.parts[count:]) if bias is not None else None
        return F.linear(x, weight, bias).split(self.sizes, dim=-1)

    def extra_repr(self) -> str:
        return " + ".join(map(str, self.sizes))


class PackedPair(PackedLinear):
    """Two of them."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.product(x)
        return first, second


class PackedTriple(PackedLinear):
    """Three of them."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second, third = self.product(x)
        return first, second, third


_KINDS: Mapping[int, type[PackedLinear]] = {2: PackedPair, 3: PackedTriple}


def packed(tree: SomeChain, groups: Iterable[Mapping[str, str]], own: Chain) -> SomeChain:
    """A new tree in which layers that share their input are one product.

    Layers are packed where a group has two or three of them in one Chain with the same input: plain
    `nn.Linear`s of one dtype and device, all with a bias or none. What doesn't fit stays as it is.
    The parameters of the base's own layers are laid out anew where they lie apart: their values,
    names and identities stay. Where a layer is not the base's, as after a merge, all of its pack
    are copied instead.

    Args:
        tree: adapted or not.
        groups: the short name of each layer that may be packed, by address.
        own: the base's tree, which that of an adapted model shares its layers with.
    """
    plan = _Plan()
    for group in groups:
        found: dict[tuple[str, ...], dict[str, str]] = {}
        for address, short in group.items():
            if address in tree.form.index:
                path, name = tree.form.index[address]
                found.setdefault(path, {})[name] = short
        for path, names in found.items():
            at = plan
            for part in path:
                at = at.below.setdefault(part, _Plan())
            at.groups.append(names)
    return _packed(tree, own, plan) if plan.groups or plan.below else tree


@dataclass(slots=True)
class _Plan:
    """What to pack in one Chain, and in those below it."""

    groups: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    below: dict[str, _Plan] = field(default_factory=dict[str, "_Plan"])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a pack is multiplied: before the step `at`, of the value named so or the main one."""

    at: int
    source: str
    sites: tuple[str, ...]


def _packed(chain: SomeChain, own: nn.Module, plan: _Plan) -> SomeChain:
    twin = chain._twin()  # pyright: ignore[reportPrivateUsage]
    for name, below in plan.below.items():
        child = chain.module_at(name)
        if not isinstance(child, Chain):
            raise TypeError(f"{name} is no Chain")
        twin._replace({name: _packed(child, own.get_submodule(name), below)})  # pyright: ignore[reportPrivateUsage]
    program = chain.program
    if plan.groups:
        tracer = _traced(chain)
        places = [(p, names) for names in plan.groups for p in tracer.places(names)]
        packs = {p: _laid_out(twin, own, p.sites, names) for p, names in places}
        rows = {site: tracer.free(site) for p in packs for site in p.sites}
        program = _rewritten(program, packs, rows)
        twin.packs = (*twin.packs, *packs.values())
    twin._write(program)  # pyright: ignore[reportPrivateUsage]
    return twin


def _traced(chain: Chain) -> _Tracer:
    tracer = writer_of(chain.program, chain.interface, ModulesOf(chain), chain.form.joints, _Tracer)
    tracer.chain = chain
    tracer.run(chain.program, [Value(name) for name in chain.interface.takes])
    return tracer


@dataclass(slots=True)
class _Tracer(Writer):
    """Writes a Chain's forward to see which value every step is given."""

    chain: Chain = field(init=False)
    layers: dict[str, list[list[Value]]] = field(default_factory=dict[str, list[list[Value]]])
    given: dict[int, list[Value]] = field(default_factory=dict[int, list[Value]])
    bound: dict[int, set[str]] = field(default_factory=dict[int, set[str]])

    def run(self, step: Step, given: list[Value], hint: str = "") -> list[Value]:
        if isinstance(step, Ref):
            self.layers.setdefault(step.name, []).append(given)
        self.given[id(step)], self.bound[id(step)] = given, set(self.scope)
        return Writer.run(self, step, given, hint)

    def places(self, names: Iterable[str]) -> Iterator[_Place]:
        """Where the layers of these names that are given one and the same value can be packed."""
        found: dict[int, tuple[Value, list[str]]] = {}
        for name, inputs in self.layers.items():
            if name in names and len(inputs) == 1 and len(inputs[0]) == 1:
                value = inputs[0][0]
                found.setdefault(id(value), (value, []))[1].append(name)
        for value, sites in found.values():
            step = _innermost(self.chain.program, set(sites))
            source = self._source(step, value)
            layers = [self.chain.module_at(name) for name in sites]
            if len(sites) in _KINDS and source is not None and _alike(layers):
                yield _Place(id(step), source, tuple(sites))

    def _source(self, step: Step, value: Value) -> str | None:
        """What a value is called where a step begins, "" for the main one; None if it isn't."""
        if self.given[id(step)] == [value]:
            return ""
        there = self.bound[id(step)] | set(self.needs)
        return next((n for n, v in self.scope.items() if v is value and n in there), None)

    def free(self, site: str) -> str:
        """A name for a layer's rows: its own, if nothing is called so."""
        name = site.rpartition(".")[2]
        taken = {*self.scope, *self.takes, *self.functions}
        while name in taken or not can_name_a_value(name):
            name = f"{name}_rows"
        return name


def _innermost(step: Step, names: set[str]) -> Step:
    """The smallest step that holds the modules of all these names."""
    for child in step.children if isinstance(step, Combinator) else ():
        if names <= {s.name for s in walk(child) if isinstance(s, Ref)}:
            return _innermost(child, names)
    return step


def _rewritten(step: Step, packs: Mapping[_Place, Pack], rows: Mapping[str, str]) -> Step:
    """The program with the rows of packed layers in their places, and the products before them."""
    if isinstance(step, Ref):
        return Use(rows[step.name]) if step.name in rows else step
    new = step
    if isinstance(step, Combinator) and step.children:
        children = tuple(_rewritten(child, packs, rows) for child in step.children)
        if any(a is not b for a, b in zip(step.children, children, strict=True)):
            new = step.with_children(children)
    for place, pack in packs.items():
        if place.at == id(step):
            product: Step = Ref(pack.name)
            if place.source:
                product = Seq(Use(place.source), product)
            new = Seq(Let(tuple(rows[site] for site in place.sites), product), new)
    return new


def _laid_out(
    twin: Chain, own: nn.Module, sites: tuple[str, ...], names: Mapping[str, str]
) -> Pack:
    """The pack of some layers of a Chain that is being made, with its module registered there."""
    layers: list[nn.Module] = [twin.module_at(site) for site in sites]
    if any(own.get_submodule(s) is not m for s, m in zip(sites, layers, strict=True)):
        for i, site in enumerate(sites):
            layers[i] = _with_own_parameters(layers[i])
            twin._replace({site: layers[i]})  # pyright: ignore[reportPrivateUsage]
    shorts = [names[site] for site in sites]
    name = ("_" if max(map(len, shorts)) > 1 else "").join(shorts)
    while hasattr(twin, name):
        name = f"packed_{name}"
    module = _KINDS[len(sites)]([m for m in layers if isinstance(m, nn.Linear)])
    twin._register(name, module.train(twin.training))  # pyright: ignore[reportPrivateUsage]
    return Pack(name, sites)


def _with_own_parameters(layer: nn.Module) -> nn.Module:
    """The same layer, of the same values, whose parameters may be laid out anew."""
    twin = twin_of(layer)
    for name, p in layer._parameters.items():
        if p is not None:
            twin._parameters[name] = nn.Parameter(p.detach(), requires_grad=p.requires_grad)
    return twin


def _alike(layers: Sequence[nn.Module]) -> bool:
    """Whether the layers are plain linear ones that may be rows of one tensor."""
    kinds: set[object] = set()
    for layer in layers:
        if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter:
            return False
        w = layer.weight
        kinds.add((w.dtype, w.device, w.shape[1], layer.bias is None))  # pyright: ignore
    return len(kinds) == 1


@torch.inference_mode(False)  # whose tensors could not be parameters of what is trained later
def _together(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The parameters below each other as one tensor, which they are rows of afterwards."""
    first = parameters[0].detach()
    rows = sum(len(p) for p in parameters)
    if _adjacent(parameters):
        return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())
    whole = torch.cat([p.detach() for p in parameters])
    at = 0
    for parameter in parameters:
        parameter.data = whole[at : at + len(parameter)]
        at += len(parameter)
    return whole


def _adjacent(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether each begins where the one before it ends, in one piece of memory."""
    first = parameters[0]
    memory, at = first.untyped_storage().data_ptr(), first.storage_offset()
    for p in parameters:
        there = (p.untyped_storage().data_ptr(), p.storage_offset())
        if p.is_meta or not p.is_contiguous() or there != (memory, at):
            return False
        at += p.numel()
    return True
