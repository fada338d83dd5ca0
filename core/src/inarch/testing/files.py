"""An adapter's file: what is saved is what is loaded, and what does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import inarch
from inarch.errors import InarchError
from inarch.testing.bystander import Bystander
from inarch.testing.subject import NAME, Subject, assert_close, moved, outputs, refusal, same_bits

if TYPE_CHECKING:
    from inarch.adapters import Model

Change = Callable[[dict[str, Tensor]], object]


class Files(Subject):
    """Tests of saving and loading."""

    def saved(self, base: Model, folder: Path) -> Path:
        """A trained one's folder; ends the test where the kind has no file."""
        if not self.saves:
            model = self.fresh(base)
            assert not self.entry.trainable, "it can be trained and its manifest names no format"
            error = refusal(lambda: model.save_adapter(NAME, folder))
            assert error.code == "IA408"
            pytest.skip("it has no file format")
        return self.file(base, folder)

    def test_saved_and_loaded_it_gives_the_same_bits(self, every: Model, tmp_path: Path) -> None:
        folder = self.saved(every, tmp_path)
        model, again = self.trained(every), every.adapt(self.spec(weights=folder))
        assert set(again.adapter_parameters(NAME)) == set(model.adapter_parameters(NAME))
        assert same_bits(outputs(again), outputs(model))
        assert not again.adapters[NAME].trainable

    def test_saved_twice_it_is_the_same_file(self, base: Model, tmp_path: Path) -> None:
        first = self.saved(base, tmp_path)
        second = base.adapt(self.spec(weights=first)).save_adapter(NAME, tmp_path / "second")
        for file in sorted(path for path in first.rglob("*") if path.is_file()):
            other = second / file.relative_to(first)
            if file.suffix != ".safetensors":
                assert other.read_bytes() == file.read_bytes(), f"{file.name} differs"
                continue
            one, two = load_file(file), load_file(other)
            assert list(one) == list(two)
            assert_close(two.values(), one.values(), 1e-6)

    def test_swapped_in_place_it_is_what_the_other_file_makes(
        self, base: Model, tmp_path: Path
    ) -> None:
        first = self.saved(base, tmp_path / "first")
        second = self.file(base, tmp_path / "second", seed="another")
        model = base.adapt(self.spec(weights=first))
        before, memory = outputs(model), [p.data_ptr() for p in model.parameters()]
        for file in (second, first, second, first):  # what the first was found to be may be kept
            model.swap(NAME, file)
            fresh = base.adapt(self.spec(weights=file))
            assert same_bits(outputs(model), outputs(fresh))
            assert model.digest == fresh.digest
        assert same_bits(outputs(model), before)
        assert [p.data_ptr() for p in model.parameters()] == memory

    def test_its_file_says_which_base_it_is_for(self, quick: Model, tmp_path: Path) -> None:
        folder = self.saved(quick, tmp_path)
        other = self.build_again(quick, seed=9)
        error = refusal(lambda: other.adapt(self.spec(weights=folder)))
        assert error.code == "IA410"

    def build_again(self, model: Model, seed: int) -> Model:
        """Another random base of the same configuration."""
        trees = model.build(model.config)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for tree in trees.values():
                for parameter in tree.requires_grad_(False).eval().parameters():
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
        return type(model)(trees, model.config, roles=model.roles, family=model.family)

    def test_differently_trained_ones_differ(self, quick: Model, tmp_path: Path) -> None:
        self.saved(quick, tmp_path)
        names = ("one", "two")
        found = [
            outputs(quick.adapt(self.spec(weights=self.file(quick, tmp_path, seed))))
            for seed in names
        ]
        assert moved(*found)

    def test_a_key_that_finds_no_site_is_named(self, base: Model, tmp_path: Path) -> None:
        folder = self.saved(base, tmp_path)
        key = next(iter(load_file(_file(folder)))).replace(".", ".nowhere.", 1) + ".extra"
        self.refused(base, folder, lambda t: t.update({key: torch.ones(3)}), key)

    def test_a_key_that_is_missing_is_named(self, base: Model, tmp_path: Path) -> None:
        """A file may lack a key only where that asks for less, or where its default was there."""
        folder = self.saved(base, tmp_path)
        whole = base.adapt(self.spec(weights=folder))
        tensors = load_file(_file(folder))
        for key in (*list(tensors)[:2], list(tensors)[-1]):
            if len(tensors) == 1:
                return
            try:
                with _changed(_file(folder), lambda t, key=key: t.pop(key)):
                    less = base.adapt(self.spec(weights=folder))
            except InarchError:
                self.refused(base, folder, lambda t, key=key: t.pop(key), key)
                continue
            fewer = len(less.adapters[NAME].edits) < len(whole.adapters[NAME].edits)
            assert fewer or same_bits(outputs(less), outputs(whole)), f"{key} is not missed"

    def test_a_wrong_shape_is_named(self, base: Model, tmp_path: Path) -> None:
        folder = self.saved(base, tmp_path)
        for key, tensor in list(load_file(_file(folder)).items())[-2:]:
            wrong = torch.ones(*tensor.shape[:-1], tensor.shape[-1] + 1) if tensor.dim() else None
            if wrong is not None:
                self.refused(base, folder, lambda t, k=key, w=wrong: t.update({k: w}), key)

    def refused(self, base: Model, folder: Path, change: Change, key: str) -> None:
        """Assert that a file changed so is refused, naming the key or where it belongs."""
        bystander = Bystander(base)
        with _changed(_file(folder), change):
            error = refusal(lambda: base.adapt(self.spec(weights=folder)))
        bystander.check()
        text, bare = str(error), _bare(key)
        named = [site for site in base.sites.all if site in text and _bare(site) in bare]
        assert key in text or any(named), f"the refusal does not say it is about {key}:\n{text}"

    def test_one_target_that_matches_nothing_is_refused(self, base: Model) -> None:
        bystander = Bystander(base)
        plugin = type(self.fresh(base).adapters[NAME].adapter)
        if "targets" not in plugin.Options.__struct_fields__:
            pytest.skip("it takes no targets")
        given = self.fresh(base).adapters[NAME].adapter.options.targets
        wanted = [given] if isinstance(given, str) else list(given)
        error = refusal(lambda: self.fresh(base, targets=[*wanted, "no.such.site"]))
        assert "no.such.site" in str(error)
        bystander.check()

    def test_an_option_of_training_is_refused_beside_a_file(
        self, quick: Model, tmp_path: Path
    ) -> None:
        folder = self.saved(quick, tmp_path)
        adapter = self.fresh(quick).adapters[NAME].adapter
        bystander = Bystander(quick)
        for option in adapter.for_training:
            told = {option: getattr(adapter.options, option)}
            spec = inarch.adapter(self.adapter, name=NAME, weights=folder, **told)
            error = refusal(lambda spec=spec: quick.adapt(spec))
            assert error.code == "IA401"
            assert f"`{option}`" in error.what
        bystander.check()

    def test_an_option_that_does_not_exist_is_refused(self, quick: Model) -> None:
        error = refusal(lambda: self.fresh(quick, no_such_option=1))
        assert error.code == "IA401"
        assert "no_such_option" in str(error)


def _file(folder: Path) -> Path:
    [file] = folder.rglob("*.safetensors")
    return file


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:  # pyright: ignore
        return dict(opened.metadata() or {})


def _bare(name: str) -> str:
    """Letters and digits alone: formats write one address in different ways."""
    return "".join(filter(str.isalnum, name))


@contextmanager
def _changed(file: Path, change: Change) -> Generator[None]:
    """While it lasts, a file's tensors are others."""
    whole, metadata = load_file(file), _metadata(file)
    tensors = dict(whole)
    change(tensors)
    save_file(tensors, file, metadata)
    try:
        yield
    finally:
        save_file(whole, file, metadata)
