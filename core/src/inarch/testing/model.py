"""`ModelConformance`: all that any foundation model keeps, as one class to inherit."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import inarch
from inarch.plugins import index, load_object
from inarch.testing.bystander import Bystander
from inarch.testing.interpreter import interpret
from inarch.testing.subject import (
    assert_close,
    flat,
    inputs_of,
    outputs,
    refusal,
    same_bits,
)
from inarch.testing.tiny import Tiny, tiny_models
from inarch.weights.fill import all_ties

if TYPE_CHECKING:
    from inarch.adapters import Model, SiteView


class ModelConformance:
    """Tests of one foundation model, on random models of its configurations for tests.

    Attributes:
        family: the id of the model's plugin.
        within: how far results that are not bitwise equal may differ, of the largest number.
        unreached: patterns' prefixes of weights that no example reaches, with the reason in the
            subclass's own words.
        largest: how many weights a configuration for tests may have.
    """

    family: ClassVar[str]
    within: ClassVar[float] = 1e-5
    unreached: ClassVar[tuple[str, ...]] = ()
    largest: ClassVar[int] = 300_000

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run each test on every configuration; those that take long on the first."""
        if "tiny" not in metafunc.fixturenames:
            return
        found = [tiny for tiny in tiny_models() if tiny.family == self.family]
        assert found, f"`{self.family}` declares no tiny_configs()"
        if "one" in metafunc.fixturenames:
            found = found[:1]
        metafunc.parametrize("tiny", found, ids=str)

    @pytest.fixture
    def model(self, tiny: Tiny) -> Model:
        """A model of one configuration."""
        return tiny.build()

    @pytest.fixture
    def one(self, tiny: Tiny) -> Model:
        """The same, for tests that one configuration is enough for."""
        return tiny.build()

    def save(self, tiny: Tiny, model: Model, folder: Path) -> Path:
        """Write a checkpoint as the family's are published; overridden where they are otherwise.

        Returns:
            The safetensors file that holds the weights.
        """
        aliases = {
            f"{tree}.{alias}" if tree else alias
            for tree, chain in model.trees.items()
            for alias, _ in all_ties(chain)
        }
        state = {k: v.contiguous() for k, v in model.state_dict().items() if k not in aliases}
        (folder / "config.json").write_text(json.dumps(dict(tiny.config)))
        save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors"

    def test_its_tiny_models_are_tiny(self, model: Model) -> None:
        assert sum(p.numel() for p in model.parameters()) <= self.largest

    def test_a_checkpoint_loads_strictly_with_its_own_names(
        self, tiny: Tiny, tmp_path: Path
    ) -> None:
        model = tiny.build()
        file = self.save(tiny, model, tmp_path)
        loaded = inarch.load(tmp_path)
        assert type(loaded) is type(model)
        assert list(loaded.state_dict()) == list(model.state_dict())
        assert same_bits(list(loaded.state_dict().values()), list(model.state_dict().values()))
        assert same_bits(outputs(loaded), outputs(model))
        assert set(load_file(file)) <= set(model.state_dict())

    @pytest.mark.parametrize("how", ["missing", "unexpected", "misshaped"])
    def test_a_tensor_that_does_not_fit_is_named(
        self, tiny: Tiny, tmp_path: Path, how: str
    ) -> None:
        file = self.save(tiny, tiny.build(), tmp_path)
        tensors = load_file(file)
        key = list(tensors)[len(tensors) // 2]
        changes: dict[str, Callable[[], object]] = {
            "missing": lambda: tensors.pop(key),
            "unexpected": lambda: tensors.update({f"{key}_extra": tensors[key].clone()}),
            "misshaped": lambda: tensors.update({key: torch.ones(*tensors[key].shape, 2)}),
        }
        changes[how]()
        save_file(tensors, file)
        error = refusal(lambda: inarch.load(tmp_path))
        assert error.code == "IA206"
        assert key in str(error)

    def test_every_role_has_its_sites_in_some_configuration(self) -> None:
        entry = index().models[self.family]
        found: set[str] = set()
        for tiny in tiny_models():
            if tiny.family == self.family:
                sites = tiny.build().sites
                found |= {role for role in entry.roles if _reaches(sites, role)}
        assert set(entry.roles) == found, "these roles match nothing"

    def test_it_declares_examples_of_every_tree(self, model: Model) -> None:
        examples = model.examples()
        assert {example.tree for example in examples} == set(model.trees)
        for example in examples:
            chain = model.trees[example.tree]
            assert set(example.inputs) == {*chain.interface.takes, *chain.form.needs}
        again = [flat(list(example.inputs.values())) for example in model.examples()]
        assert all(
            same_bits(flat(list(one.inputs.values())), two)
            for one, two in zip(examples, again, strict=True)
        )

    def test_what_it_gives_is_finite_and_the_same_each_time(self, model: Model) -> None:
        bystander = Bystander(model)
        first = outputs(model)
        assert all(bool(torch.isfinite(value).all()) for value in first)
        assert same_bits(outputs(model), first)
        bystander.check()

    def test_the_generated_forward_is_its_program(self, model: Model) -> None:
        for tree, inputs in inputs_of(model):
            chain = model.trees[tree]
            main = [inputs[name] for name in chain.interface.takes]
            named = {k: v for k, v in inputs.items() if k not in chain.interface.takes}
            assert same_bits(flat(chain(*main, **named)), flat(interpret(chain, *main, **named)))

    def test_it_is_loaded_frozen_and_in_evaluation_mode(self, tiny: Tiny, tmp_path: Path) -> None:
        self.save(tiny, tiny.build(), tmp_path)
        model = inarch.load(tmp_path)
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for tree in model.trees.values() for m in tree.modules())

    def test_every_weight_takes_part(self, model: Model) -> None:
        for tree in model.trees.values():
            tree.requires_grad_(True)
        found = [value for value in outputs(model) if value.requires_grad]
        torch.stack([value.float().square().mean() for value in found]).sum().backward()
        idle = [
            f"{name}.{key}" if name else key
            for name, tree in model.trees.items()
            for key, parameter in tree.named_parameters()
            if parameter.grad is None
        ]
        assert not [key for key in idle if not key.startswith(self.unreached or "\0")]

    def test_on_the_meta_device_it_has_the_same_names_and_shapes(self, tiny: Tiny) -> None:
        model, unreal = tiny.build(), tiny.build(device="meta")
        assert all(tensor.is_meta for tensor in unreal.state_dict().values())
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        assert {name: tensor.shape for name, tensor in unreal.state_dict().items()} == shapes
        expected = [(value.shape, value.dtype) for value in outputs(model)]
        assert [(value.shape, value.dtype) for value in outputs(unreal)] == expected

    def test_in_bfloat16_it_gives_numbers_of_that_dtype(self, tiny: Tiny) -> None:
        found = outputs(tiny.build(dtype=torch.bfloat16))
        assert all(bool(torch.isfinite(value).all()) for value in found)
        plain = outputs(tiny.build())
        for value, exact in zip(found, plain, strict=True):
            if exact.is_floating_point():
                error = float((value.float() - exact).norm() / exact.norm())
                assert error < 0.1, f"bfloat16 is off by {error:.0%}"

    @pytest.mark.parametrize("how", ["pickled", "copied"])
    def test_a_copy_is_equal(self, model: Model, how: str) -> None:
        expected = outputs(model)
        trees: Any = model.trees
        again = pickle.loads(pickle.dumps(trees)) if how == "pickled" else copy.deepcopy(trees)
        for tree, chain in again.items():
            assert chain.form is trees[tree].form
            for (name, one), (_, two) in zip(
                chain.named_parameters(), trees[tree].named_parameters(), strict=True
            ):
                assert one is not two, f"the copy shares {name}"
        model.trees = again
        assert same_bits(outputs(model), expected)

    def test_compiled_whole_it_gives_the_same(self, one: Model) -> None:
        from torch._dynamo.testing import CompileCounter

        for tree in one.trees:
            inputs = next(inputs for name, inputs in inputs_of(one) if name == tree)
            torch._dynamo.reset()
            counter = CompileCounter()
            compiled: Any = torch.compile(one.trees[tree], backend=counter, fullgraph=True)
            with torch.no_grad():
                expected: list[Tensor] = flat(one.trees[tree](**inputs))
                assert_close(flat(compiled(**inputs)), expected, self.within)
                compiled(**inputs)
            assert counter.frame_count == 1

    def test_the_manifest_s_class_is_the_model_s(self, one: Model) -> None:
        assert type(one) is load_object("inarch.models", self.family)


def _reaches(sites: SiteView, role: str) -> bool:
    try:
        return bool(sites.find([role]))
    except inarch.InarchError:
        return False
