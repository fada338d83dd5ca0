"""Each thing that doesn't fit is refused with its code and its place, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import inarch
from inarch.adapters import Model
from inarch.errors import InarchError


def refusal(model: Model, *adapters: object) -> InarchError:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InarchError) as caught:
        model.adapt(*adapters)  # type: ignore[arg-type]
    assert model.adapters == ()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert list(model.state_dict()) == list(before)
    return caught.value


def test_a_target_that_matches_nothing_among_others_is_named(base: Model) -> None:
    error = refusal(base, inarch.adapter("lowrank", targets=["mlp.*", "attention.query"]))
    assert (error.code, "attention.query" in error.what) == ("IA402", True)


def test_an_unknown_option_is_named_with_its_correction(base: Model) -> None:
    error = refusal(base, inarch.adapter("lowrank", rnak=4))
    assert error.code == "IA401"
    assert "rnak" in error.where
    assert "rank" in error.remedy


def test_an_unknown_adapter_is_named_with_its_correction(base: Model) -> None:
    error = refusal(base, inarch.adapter("lowrnk"))
    assert (error.code, "lowrank" in error.remedy) == ("IA406", True)


@pytest.mark.parametrize("scale", ["1", None, float("nan"), float("inf"), True, [1.0]])
def test_a_scale_that_is_no_finite_number_is_refused_when_asked_for_and_when_set(
    base: Model, scale: Any
) -> None:
    with pytest.raises(InarchError, match="IA401"):
        inarch.adapter("lowrank", scale=scale)
    member = base.adapt("lowrank").adapters["lowrank"]
    member.scale = 0.5
    with pytest.raises(InarchError, match="IA401"):
        member.scale = scale
    assert member.scale == 0.5


def test_a_scale_may_be_a_tensor_s_one_value(base: Model) -> None:
    assert inarch.adapter("lowrank", scale=torch.tensor(0.25)).scale == 0.25


def test_a_path_in_place_of_a_plugin_is_told_where_it_goes(base: Model, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    error = refusal(base, inarch.adapter(str(tmp_path / "mine"), name="mine"))
    assert error.code == "IA406"
    assert f'weights="{tmp_path / "mine"}"' in error.remedy


def test_a_name_given_twice_is_refused(base: Model) -> None:
    assert refusal(base, "lowrank", "lowrank").code == "IA403"


@pytest.mark.parametrize("name", ["my-voice", "a.b", "", "1st", "a__b", "ﬁ"])
def test_a_name_that_is_no_identifier_is_refused_with_one_that_is(base: Model, name: str) -> None:
    error = refusal(base, inarch.adapter("lowrank", name=name))
    assert error.code == "IA116"
    suggested = error.remedy.removeprefix('name="').removesuffix('"')
    assert base.adapt(inarch.adapter("lowrank", name=suggested)).adapters.names == (suggested,)


@pytest.mark.parametrize(
    "name", ["lora", "weight", "base_layer", "fc", "a", "ab", "x", "self", "class", "é"]
)
def test_a_name_may_be_any_identifier(base: Model, name: str) -> None:
    model = base.adapt(inarch.adapter("lowrank", name=name))
    assert model.adapters[name].name == name
    assert model.tree(torch.ones(1, 6)).shape == (1, 3)


def test_kinds_that_do_not_commute_at_one_site_are_refused(base: Model) -> None:
    error = refusal(base, "lowrank", "gain")
    assert (error.code, error.where) == ("IA407", "layers.0.fc")


def test_an_adapter_without_a_scale_takes_no_other(base: Model) -> None:
    assert refusal(base, inarch.adapter("gain", scale=0.5)).code == "IA409"


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", None, True])
def test_a_scale_that_is_no_finite_number_is_refused(scale: object) -> None:
    with pytest.raises(InarchError) as caught:
        inarch.adapter("lowrank", scale=scale)  # type: ignore[arg-type]
    assert caught.value.code == "IA401"


def spoilt(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("layers.1.fc.up"), "layers.1.fc (up) has no tensor"),
        (lambda t: t.update({"layers.7.fc.up": torch.ones(1)}), "layers.7.fc.up finds no site"),
        (
            lambda t: t.update({"layers.0.fc.up": torch.ones(5, 2)}),
            "layers.0.fc.up is [5, 2], the site needs [6, 2]",
        ),
    ],
)
def test_a_file_that_does_not_fit_names_the_key(
    base: Model, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], named: str
) -> None:
    base.adapt("lowrank").save_adapter("lowrank", tmp_path)
    error = refusal(base, inarch.adapter("lowrank", weights=spoilt(tmp_path, change)))
    assert error.code == "IA411"
    assert named in error.why


def test_an_adapter_of_another_base_is_refused(base: Model, tmp_path: Path) -> None:
    base.adapt("lowrank").save_adapter("lowrank", tmp_path)
    base.tree.head.weight.data[0, 0] += 1
    error = refusal(base, inarch.adapter("lowrank", weights=tmp_path))
    assert error.code == "IA410"


def test_an_unknown_name_of_an_adapter_lists_the_known_ones(base: Model) -> None:
    model = base.adapt("lowrank")
    with pytest.raises(InarchError, match="no adapter `pirate`") as caught:
        model.adapters["pirate"]
    assert "lowrank" in caught.value.why


def test_something_that_is_no_adapter_is_refused(base: Model) -> None:
    assert refusal(base, 3).code == "IA401"
