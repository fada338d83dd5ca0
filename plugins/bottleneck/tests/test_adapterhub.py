"""Folders of the adapters library give its logits and gradients here, and ours hold what its do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import inarch
from inarch_bottleneck.adapterhub import names

# What is written for the sake of a reader and changes nothing, and how fresh ones begin.
IDLE = re.compile(r"phm_(?!layer).*|.*_phm.*|learn_phm|hypercomplex_.*")


def test_a_folder_of_the_library_gives_its_logits(library: Any) -> None:
    adapted = library.model.adapt(inarch.adapter("bottleneck", weights=library.folder))
    largest = float(library.logits.abs().max())
    torch.testing.assert_close(adapted(library.ids), library.logits, rtol=1e-6, atol=1e-6 * largest)


def test_a_folder_of_the_library_gives_its_gradients(library: Any) -> None:
    adapted = library.model.adapt(inarch.adapter("bottleneck", weights=library.folder, name="b"))
    adapted.adapters["b"].trainable = True
    adapted(library.ids).square().mean().backward()
    places = adapted.adapters["b"].adapter.places
    table = names(norm_before=any("adapter_norm_before" in key for key in library.saved))
    parts = {"attention": "attention_adapters", "mlp": "output_adapters"}
    found = set()
    for key, parameter in adapted.adapter_parameters("b").items():
        address, _, own = key.rpartition(".")
        block, part = places[address]
        theirs = f"{block}.{parts[part]}.adapters.mine.{table[own]}"
        if theirs not in library.gradients:  # of the two names of a norm the library has the first
            theirs = theirs.replace("adapter_down.0", "adapter_norm_before")
        found.add(theirs)
        torch.testing.assert_close(parameter.grad, library.gradients[theirs], rtol=1e-5, atol=1e-6)
    assert found == set(library.gradients)


def test_a_folder_of_ours_holds_what_the_library_s_does(library: Any, tmp_path: Path) -> None:
    adapted = library.model.adapt(inarch.adapter("bottleneck", weights=library.folder, name="mine"))
    adapted.save_adapter("mine", tmp_path / "ours")
    saved = load_file(tmp_path / "ours" / "adapter.safetensors")
    assert set(saved) == set(library.saved)
    assert all(torch.equal(saved[key], library.saved[key]) for key in saved)
    told, theirs = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (tmp_path / "ours", library.folder)
    )
    assert told["config"] == theirs["config"]
    assert {told[key] == theirs[key] for key in ("hidden_size", "name", "version")} == {True}
    again = library.model.adapt(inarch.adapter("bottleneck", weights=tmp_path / "ours", name="x"))
    assert torch.equal(again(library.ids), adapted(library.ids))


def test_a_fresh_one_is_written_with_every_setting_that_says_anything(
    pfeiffer: Any, tmp_path: Path
) -> None:
    theirs = json.loads((pfeiffer.folder / "adapter_config.json").read_text())["config"]
    adapted = pfeiffer.model.adapt(inarch.adapter("bottleneck", reduction=4))
    adapted.save_adapter("bottleneck", tmp_path / "ours")
    told = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["config"]
    assert {k: v for k, v in theirs.items() if not IDLE.fullmatch(k)} == {
        **told,
        "init_weights": "bert",
    }


def test_another_name_is_saved_and_read_back(pfeiffer: Any, tmp_path: Path) -> None:
    for name in ("a", "ab", "lora", "weight", "adapters"):
        spec = inarch.adapter("bottleneck", weights=pfeiffer.folder, name=name)
        adapted = pfeiffer.model.adapt(spec)
        folder = adapted.save_adapter(name, tmp_path / name)
        assert all(f".adapters.{name}." in key for key in load_file(folder / "adapter.safetensors"))
        again = pfeiffer.model.adapt(inarch.adapter("bottleneck", weights=folder, name="z"))
        assert torch.equal(again(pfeiffer.ids), adapted(pfeiffer.ids))


def test_a_file_saved_without_a_head_is_read(pfeiffer: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    expected = pfeiffer.model.adapt(inarch.adapter("bottleneck", weights=pfeiffer.folder))
    bare = {key.removeprefix("model."): value for key, value in pfeiffer.saved.items()}
    save_file(bare, pfeiffer.folder / "adapter.safetensors")
    adapted = pfeiffer.model.adapt(inarch.adapter("bottleneck", weights=pfeiffer.folder))
    assert torch.equal(adapted(pfeiffer.ids), expected(pfeiffer.ids))


def test_activations_are_called_as_they_were_before_settings_had_a_version(
    pfeiffer: Any,
) -> None:
    file = pfeiffer.folder / "adapter_config.json"
    settings = json.loads(file.read_text())
    results = {}
    for name, version in (("gelu", None), ("gelu_orig", None), ("gelu", "1"), ("gelu_new", "1")):
        settings["config"]["non_linearity"] = name
        settings.pop("version", None)
        if version:
            settings["version"] = version
        file.write_text(json.dumps(settings))
        adapted = pfeiffer.model.adapt(inarch.adapter("bottleneck", weights=pfeiffer.folder))
        results[name, version] = adapted(pfeiffer.ids)
    assert torch.equal(results["gelu", None], results["gelu_new", "1"])
    assert torch.equal(results["gelu_orig", None], results["gelu", "1"])
    assert not torch.equal(results["gelu", None], results["gelu", "1"])
