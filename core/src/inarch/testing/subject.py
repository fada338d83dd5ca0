"""What is tested: an adapter with options, fresh or trained, alone or beside others."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import Tensor

import inarch
from inarch.errors import InarchError
from inarch.plugins import index
from inarch.plugins.manifest import AdapterEntry
from inarch.stack import AdapterSpec

if TYPE_CHECKING:
    from inarch.adapters import Member, Model

NAME = "subject"


@contextmanager
def seeded(text: str) -> Generator[None]:
    """Draw from a generator that the text alone decides; the caller's is as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(text.encode()))
        yield


def randomise(member: Member, text: str) -> None:
    """Move every parameter from where it begins, as training would: none is zero any more."""
    generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
    with torch.no_grad():
        for parameter in member.parameters().values():
            if parameter.is_floating_point() and not parameter.is_meta:
                noise = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.add_(noise.to(parameter))


def trained(base: Model, spec: AdapterSpec, seed: str = "") -> Model:
    """The base with one adapter whose parameters were moved at random, frozen again.

    Args:
        base: without adapters.
        spec: one that has no file.
        seed: other texts give other parameters; the adapter's name by default.
    """
    with seeded(seed or spec.name):
        model = base.adapt(spec)
    member = model.adapters[spec.name]
    randomise(member, seed or spec.name)
    member.trainable = False
    return model


def inputs_of(model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each example of the model, its tree and all that the tree now asks for."""
    for example in model.examples():
        asked = model.trees[example.tree].form.needs
        inputs = dict(example.inputs)
        for member in model.adapters:
            given = member.adapter.example_inputs(example)
            inputs |= {name: value for name, value in given.items() if name in asked}
        yield example.tree, inputs


def outputs(model: Model) -> list[Tensor]:
    """What every tree gives for the model's examples, with what its adapters ask for."""
    found: list[Tensor] = []
    for tree, inputs in inputs_of(model):
        found += flat(model.trees[tree](**inputs))
    return found


def flat(result: Any) -> list[Tensor]:
    """The tensors of a result: one, or those of a tuple or list."""
    values = result if isinstance(result, tuple | list) else (result,)
    return [value for value in values if isinstance(value, Tensor)]


def same_bits(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    return len(one) == len(two) and all(map(torch.equal, one, two))


def assert_close(one: Iterable[Tensor], two: Iterable[Tensor], within: float) -> None:
    """Assert equality up to a part of the largest number."""
    for a, b in zip(one, two, strict=True):
        largest = float(b.detach().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=within, atol=within * max(largest, 1.0))


def moved(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    """Whether anything differs, all of it being numbers."""
    assert all(bool(torch.isfinite(t).all()) for t in (*one, *two) if t.is_floating_point())
    return not same_bits(one, two)


class Subject:
    """The adapter that a class of tests is about; see `Conformance`."""

    adapter: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    families: ClassVar[Sequence[str]] = ()
    mergeable: ClassVar[bool | None] = None
    vanishes: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    within: ClassVar[float] = 1e-5

    @property
    def entry(self) -> AdapterEntry:
        found = index().adapters.get(self.adapter)
        assert found is not None, f"no installed package has an adapter `{self.adapter}`"
        return found

    def spec(
        self, name: str = NAME, weights: Path | None = None, scale: float = 1.0, **options: Any
    ) -> AdapterSpec:
        options = {} if weights is not None else {**self.options, **options}
        return inarch.adapter(self.adapter, name=name, weights=weights, scale=scale, **options)

    def fresh(self, base: Model, name: str = NAME, **options: Any) -> Model:
        with seeded(name):
            return base.adapt(self.spec(name, **options))

    def trained(self, base: Model, name: str = NAME) -> Model:
        return trained(base, self.spec(name))

    def file(self, base: Model, folder: Path, seed: str = NAME) -> Path:
        """A folder with a trained one in it; other seeds are trained otherwise."""
        model = trained(base, self.spec(), seed)
        return model.save_adapter(NAME, folder / seed)

    @property
    def saves(self) -> bool:
        return bool(self.entry.formats)

    def loaded(self, base: Model, folder: Path, *names: str) -> list[AdapterSpec]:
        """Specifications of trained ones by name, from files where the kind has files."""
        if not self.saves:
            return [self.spec(name) for name in names]
        return [self.spec(name, self.file(base, folder, name)) for name in names]

    def parameters(self, model: Model, name: str = NAME) -> dict[str, Tensor]:
        return dict(model.adapter_parameters(name))

    def needs_parameters(self, model: Model) -> None:
        """End a test that has nothing to look at where the adapter has nothing to train."""
        if not self.parameters(model):
            assert not self.entry.trainable, "its manifest says trainable, and nothing is"
            pytest.skip("it has no parameters")


def refusal(call: Callable[[], object]) -> InarchError:
    """The one error of a call that is refused."""
    with pytest.raises(InarchError) as caught:
        call()
    return caught.value
