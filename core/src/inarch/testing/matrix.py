"""Which adapters compose: each pair and triple is asked of the resolver, and what it says is tried.

What it accepts runs forward and backward, in every order it may be written in, and must come to
one digest, one program and the same bits. What it refuses is kept with its code and its reason.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from inarch.errors import InarchError
from inarch.plugins import index
from inarch.plugins.fit import misfit
from inarch.resolve.refusal import flattened
from inarch.stack import AdapterSpec, adapter
from inarch.testing.subject import flat, inputs_of, same_bits, seeded, trained

if TYPE_CHECKING:
    from inarch.adapters import Model

Word = Literal["free", "ordered", "undecided", "refused"]


@dataclass(frozen=True, slots=True)
class Combination:
    """What is known of some adapters in one stack.

    Attributes:
        names: of the members, sorted.
        word: `free` in any order; `ordered` by what a manifest declares; `undecided` until the
            user says which comes first; `refused` whatever is said.
        order: the canonical order, where there is one.
        code: of the refusal.
        why: the reason, in one line.
        cure: what would help.
        orders: for an undecided pair, the orders that the user may ask for.
    """

    names: tuple[str, ...]
    word: Word
    order: tuple[str, ...] = ()
    code: str = ""
    why: str = ""
    cure: str = ""
    orders: tuple[tuple[str, ...], ...] = ()


@dataclass
class Matrix:
    """The combinations of adapters on one base.

    Attributes:
        members: what is combined, by name.
        absent: adapters that fit the base and can't stand alone, with the refusal.
        pairs: each with each, and each with another of its own kind.
        triples: of three different ones.
        of: how many triples there are, of which `triples` are a sample.
    """

    members: dict[str, AdapterSpec] = field(default_factory=dict[str, AdapterSpec])
    absent: dict[str, InarchError] = field(default_factory=dict[str, InarchError])
    pairs: list[Combination] = field(default_factory=list[Combination])
    triples: list[Combination] = field(default_factory=list[Combination])
    of: int = 0


def matrix(base: Model, kinds: Iterable[str], folder: Path, *, most: int) -> Matrix:
    """Try all pairs and up to `most` triples of the adapters that fit a base.

    Args:
        base: without adapters.
        kinds: ids of adapters.
        folder: for files of trained ones.
        most: triples that are tried; a sample of them where there are more, the same each time.

    Raises:
        AssertionError: where what the resolver says turns out wrong.
    """
    found = Matrix()
    listed = index()
    for kind in kinds:
        entry = listed.adapters[kind]
        if misfit(entry, listed.models[base.family]):
            continue
        for label, options in {"": {}, **entry.examples}.items():
            name = "_".join("".join(c if c.isalnum() else " " for c in f"{kind} {label}").split())
            try:
                found.members[name] = prepared(base, adapter(kind, name=name, **options), folder)
            except InarchError as error:
                found.absent[f"{kind}: {label}" if label else kind] = error
    names = sorted(found.members)
    for a, b in itertools.combinations_with_replacement(names, 2):
        one, two = found.members[a], found.members[b]
        if a == b:
            again = replace(two, name=f"{b}_2", weights=None)
            two = prepared(base, _fresh(again, listed.adapters[two.use].examples, b), folder)
        found.pairs.append(pair(base, one, two))
    plain = [n for n in names if found.members[n].use.replace("-", "_") == n]
    triples = list(itertools.combinations(plain, 3))
    found.of = len(triples)
    if len(triples) > most:
        triples = sorted(random.Random(0).sample(triples, most))
    for three in triples:
        found.triples.append(combination(base, [found.members[n] for n in three]))
    return found


def _fresh(
    spec: AdapterSpec, examples: Mapping[str, Mapping[str, object]], name: str
) -> AdapterSpec:
    """A specification without a file, with the options of the example its name is made of."""
    for label, options in examples.items():
        ending = "_".join("".join(c if c.isalnum() else " " for c in label).split())
        if name.endswith(f"_{ending}"):
            return replace(spec, options=dict(options))
    return replace(spec, options={})


def prepared(base: Model, spec: AdapterSpec, folder: Path) -> AdapterSpec:
    """A trained one of the adapter, from a file where its kind has files.

    Raises:
        InarchError: where it can't stand on the base alone.
    """
    model = trained(base, spec)
    if not index().adapters[spec.use].formats:
        return spec
    return replace(spec, weights=str(model.save_adapter(spec.name, folder / spec.name)), options={})


def attempt(base: Model, specs: Sequence[AdapterSpec]) -> Model | InarchError:
    """The model with some adapters, those without a file drawn by names alone; or the refusal."""
    try:
        with seeded("+".join(sorted(spec.name for spec in specs))):
            model = base.adapt(*specs)
    except InarchError as error:
        return error
    for member in model.adapters:
        member.trainable = False
    return model


def combination(base: Model, specs: Sequence[AdapterSpec]) -> Combination:
    """What the resolver says of some adapters in every order they may be written in, tried."""
    names = tuple(sorted(spec.name for spec in specs))
    orders = list(itertools.permutations(specs))
    first = attempt(base, orders[0])
    if isinstance(first, InarchError):
        last = attempt(base, orders[-1])
        assert isinstance(last, InarchError), f"{names}: one order of writing alone is refused"
        codes = [{error.code for error in flattened(one)} for one in (first, last)]
        assert codes[0] == codes[1], f"{names} are refused for another reason in another order"
        problem = flattened(first)[0]
        undecided = codes[0] == {"IA407"}
        return Combination(
            names,
            "undecided" if undecided else "refused",
            code=", ".join(sorted(codes[0])),
            why=(problem.why or problem.what).splitlines()[0],
            cure=problem.remedy,
        )
    run(first)  # which takes gradients, and adds terms one by one
    expected = run(first, backward=False)
    for order in orders[1:]:
        other = attempt(base, order)
        assert not isinstance(other, InarchError), f"{names}: one order of writing is refused"
        assert other.digest == first.digest, f"{names}: another order has another digest"
        assert all(other.trees[t].form is first.trees[t].form for t in first.trees)
        assert same_bits(run(other, backward=False), expected), f"{names}: other bits"
    told = [v for v in first.order.verdicts if v.word != "commute"]
    reasons = [verdict.reason for verdict in told or first.order.verdicts]
    return Combination(
        names, "ordered" if told else "free", order=first.order.names, why=reasons[0]
    )


def pair(base: Model, one: AdapterSpec, two: AdapterSpec) -> Combination:
    """As `combination`, with the orders that the user's word would make of an undecided pair."""
    found = combination(base, [one, two])
    if found.word != "undecided":
        return found
    orders: list[tuple[str, ...]] = []
    for first, second in ((one, two), (two, one)):
        model = attempt(base, [first, replace(second, after=(first.name,))])
        if not isinstance(model, InarchError):
            assert model.order.names == (first.name, second.name)
            run(model)
            orders.append(model.order.names)
    assert orders, f"{found.names}: the cure of {found.code} helps in neither order"
    return replace(found, orders=tuple(orders))


def run(model: Model, *, backward: bool = True) -> list[torch.Tensor]:
    """What a model gives for its examples; everything is a number, gradients too."""
    results: list[torch.Tensor] = []
    for member in model.adapters:
        member.trainable = backward and bool(member.parameters())
    for tree, inputs in inputs_of(model):
        results += flat(model.trees[tree](**inputs))
    assert all(bool(torch.isfinite(r).all()) for r in results if r.is_floating_point())
    taking = [result for result in results if result.requires_grad]
    if taking:
        torch.stack([result.float().square().mean() for result in taking]).sum().backward()
        for gradient in _gradients(model):
            assert bool(torch.isfinite(gradient).all())
    for member in model.adapters:
        member.trainable = False
    return [result.detach() for result in results]


def _gradients(model: Model) -> Iterator[torch.Tensor]:
    for member in model.adapters:
        for parameter in member.parameters().values():
            if parameter.grad is not None:
                yield parameter.grad
