"""How adapters add up: scales, merging, order, and what any history of changes comes to."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inarch.errors import InarchError
from inarch.plugins import index
from inarch.stack import AdapterSpec, adapter
from inarch.testing.bystander import Bystander
from inarch.testing.subject import (
    NAME,
    Subject,
    assert_close,
    moved,
    outputs,
    refusal,
    same_bits,
    seeded,
    trained,
)

if TYPE_CHECKING:
    from inarch.adapters import Model

QUIET = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


class Algebra(Subject):
    """Tests of scales, merging and order."""

    def test_rescaling_and_back_is_nothing(self, base: Model) -> None:
        model = self.trained(base)
        self.needs_a_scale(model)
        whole, bits = outputs(model), {k: v.clone() for k, v in self.parameters(model).items()}
        for scale in (0.0, 0.5, -1.0):
            model.adapters[NAME].scale = scale
            assert moved(outputs(model), whole)
            model.adapters[NAME].scale = 1.0
            assert same_bits(outputs(model), whole)
        assert all(torch.equal(bits[k], v) for k, v in self.parameters(model).items())

    def test_at_scale_nought_it_is_as_if_it_were_not_there(self, base: Model) -> None:
        model = self.trained(base)
        self.needs_a_scale(model)
        model.adapters[NAME].scale = 0.0
        if not self.vanishes:
            assert moved(outputs(model), outputs(base)), "it vanishes, and its tests deny it"
            return
        assert_close(outputs(model), outputs(base), self.within)

    def test_a_scale_given_is_a_scale_set(self, base: Model, tmp_path: Path) -> None:
        model = self.trained(base)
        self.needs_a_scale(model)
        model.adapters[NAME].scale = 0.7
        with seeded(NAME):
            given = base.adapt(self.spec(scale=0.7))
        assert given.adapters[NAME].scale == 0.7
        with torch.no_grad():
            own = self.parameters(model)
            for name, parameter in self.parameters(given).items():
                parameter.copy_(own[name])
        given.adapters[NAME].trainable = False
        assert same_bits(outputs(given), outputs(model))

    def needs_a_scale(self, model: Model) -> None:
        if not list(model.adapters[NAME].edges):
            pytest.skip("it has no scale")

    def test_merged_equals_unmerged_and_twice_is_once(self, base: Model) -> None:
        model, bystander = self.trained(base), Bystander(base)
        try:
            merged = model.merge(NAME)
        except InarchError as error:
            bystander.check()
            assert error.code == "IA409"
            assert self.mergeable is not True, str(error)
            pytest.skip("it can't be merged, and says why")
        assert self.mergeable is not False
        assert_close(outputs(merged), outputs(model), self.within)
        assert same_bits(outputs(merged.merge(NAME)), outputs(merged))
        assert list(merged.state_dict()) == list(base.state_dict())
        assert same_bits(outputs(merged.without(NAME)), outputs(base))
        bystander.check()

    def test_a_delta_that_is_no_number_is_not_merged(self, base: Model) -> None:
        model, bystander = self.trained(base), Bystander(base)
        try:
            model.merge(NAME)
        except InarchError:
            pytest.skip("it can't be merged")
        with torch.no_grad():
            list(self.parameters(model).values())[-1].fill_(float("nan"))
        error = refusal(lambda: model.merge(NAME))
        assert error.code == "IA409"
        assert error.where
        bystander.check()

    def test_beside_each_installed_adapter_either_order_is_the_same_or_refused(
        self, base: Model, tmp_path: Path
    ) -> None:
        bystander = Bystander(base)
        [mine] = self.loaded(base, tmp_path, NAME)
        for other in others(base):
            found = [_attempt(base, pair) for pair in ((mine, other), (other, mine))]
            errors = [f for f in found if isinstance(f, InarchError)]
            if errors:
                assert len(errors) == 2, f"one order with {other.use} is refused: {errors[0]}"
                assert errors[0].code == errors[1].code
                assert errors[0].where or errors[0].why, f"it does not say where: {errors[0]}"
                continue
            one, two = (f for f in found if not isinstance(f, InarchError))
            assert one.digest == two.digest
            for tree in base.trees:
                assert one.trees[tree].form is two.trees[tree].form
            assert same_bits(outputs(one), outputs(two)), f"the order with {other.use} matters"
        bystander.check()

    def test_every_order_of_three_of_it_is_one_form_and_the_same_bits(
        self, quick: Model, tmp_path: Path
    ) -> None:
        specs = self.loaded(quick, tmp_path, "a", "ab", "lora")
        found = [_attempt(quick, order) for order in itertools.permutations(specs)]
        errors = [f for f in found if isinstance(f, InarchError)]
        if errors:
            assert len(errors) == len(found)
            return
        first, *rest = (f for f in found if not isinstance(f, InarchError))
        expected = outputs(first)
        for model in rest:
            assert model.digest == first.digest
            assert all(model.trees[t].form is first.trees[t].form for t in first.trees)
            assert same_bits(outputs(model), expected)

    @QUIET
    @given(data=st.data())
    def test_any_history_comes_to_what_is_left_of_it(
        self, quick: Model, data: st.DataObject
    ) -> None:
        bystander, model = Bystander(quick), quick
        for name in data.draw(st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=6)):
            if name in model.adapters:
                model = model.without(name)
                continue
            with seeded(name):
                try:
                    model = model.adapt(self.spec(name))
                except InarchError as error:
                    assert error.code.startswith("IA4")
        left = sorted(model.adapters.names)
        for name in left:
            model.adapters[name].trainable = False
        again: Any = quick
        for name in left:
            with seeded(name):
                again = again.adapt(self.spec(name))
            again.adapters[name].trainable = False
        assert same_bits(outputs(model), outputs(again))
        assert set(model.state_dict()) == set(again.state_dict())
        bystander.check()


def _attempt(base: Model, specs: Any) -> Model | InarchError:
    """The model, untrained parts drawn by their names alone, or why there is none."""
    try:
        model = base
        with seeded("+".join(sorted(s.name for s in specs))):
            model = base.adapt(*specs)
    except InarchError as error:
        return error
    for member in model.adapters:
        member.trainable = False
    return model


_OTHERS: dict[int, tuple[Model, tempfile.TemporaryDirectory[str], list[AdapterSpec]]] = {}


def others(base: Model) -> list[AdapterSpec]:
    """A trained one of every installed kind that the base takes with its default options.

    They are made once for a base that tests share.
    """
    if id(base) in _OTHERS:
        return _OTHERS[id(base)][2]
    folder = tempfile.TemporaryDirectory()
    specs: list[AdapterSpec] = []
    for kind, entry in index().adapters.items():
        name = f"other_{len(specs)}"
        try:
            model = trained(base, adapter(kind, name=name))
        except InarchError:
            continue
        weights = model.save_adapter(name, Path(folder.name) / name) if entry.formats else None
        specs.append(adapter(kind, name=name, weights=weights))
    _OTHERS[id(base)] = base, folder, specs
    return specs
