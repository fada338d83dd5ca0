"""`Conformance`: all that any adapter keeps, as one class to inherit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from inarch.testing.algebra import Algebra
from inarch.testing.bystander import Bystander
from inarch.testing.files import Files
from inarch.testing.footprint import Footprint
from inarch.testing.running import Running
from inarch.testing.tiny import Tiny, tiny_models
from inarch.testing.training import Training

if TYPE_CHECKING:
    from inarch.adapters import Model


class Conformance(Footprint, Files, Training, Running, Algebra):
    """Tests of one adapter, on tiny random models of every installed family that it fits.

    Attributes:
        adapter: the id of the adapter's plugin.
        options: what `inarch.adapter` is given for one that is to be trained.
        families: the ids of the only foundation models to test with; all that fit where empty.
        mergeable: whether it must be possible to merge it, or impossible; None takes either.
        vanishes: whether it does nothing at scale 0; say beside it what else it does, and why.
        differentiable: whether its gradients are the derivatives of what it computes; say why not.
        within: how far results that are not bitwise equal may differ, of the largest number.
    """

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run each test on as many models as it needs."""
        if "tiny" not in metafunc.fixturenames:
            return
        found = list(tiny_models(self.entry, self.families))
        assert found, f"no tiny model has the roles of `{self.adapter}`"
        if "every" not in metafunc.fixturenames:
            found = [tiny for tiny in found if tiny.first]
        if "quick" in metafunc.fixturenames:
            found = [min(found, key=lambda tiny: (tiny.size, tiny.family))]
        metafunc.parametrize("tiny", found, ids=str)

    @pytest.fixture
    def every(self, tiny: Tiny) -> Iterator[Model]:
        """A model to adapt: each configuration of each family."""
        yield from _lent(tiny)

    @pytest.fixture
    def base(self, tiny: Tiny) -> Iterator[Model]:
        """A model to adapt: the first configuration of each family."""
        yield from _lent(tiny)

    @pytest.fixture
    def quick(self, tiny: Tiny) -> Iterator[Model]:
        """A model to adapt: the smallest family's, for tests that take long."""
        yield from _lent(tiny)


_BUILT: dict[Tiny, Model] = {}


def _lent(tiny: Tiny) -> Iterator[Model]:
    """A model that all tests share, since none may change it; a test that does is in error."""
    base = _BUILT.get(tiny) or _BUILT.setdefault(tiny, tiny.build())
    bystander = Bystander(base)
    yield base
    _BUILT.pop(tiny)
    bystander.check()
    _BUILT[tiny] = base
