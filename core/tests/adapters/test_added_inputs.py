"""Inputs that adapters add, towers that begin as copies, and adapters that rest for a while."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import inarch
import inarch.adapters.graft
from inarch.adapters import Adapter, AddedInput, Model, Request, SiteView
from inarch.errors import InarchError
from inarch.plugins.manifest import AdapterEntry
from inarch.tree import Edit, Seq, Use

WIDTH = 6
REQUEST = Request(8, 8, 1, False, torch.device("cpu"), torch.float32)


class Tower(Adapter):
    """A copy of a layer over an image of its own, added at that layer in the first half."""

    class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
        pass

    def edits(self, sites: SiteView, weights: Any) -> Iterable[Edit]:
        layer, image = nn.Linear(WIDTH, WIDTH), f"{self.name}_image"
        yield Edit(
            address="",
            kind="provide",
            adapter=self.name,
            names=(f"{self.name}_0",),
            step=Seq(Use(image), layer),
            copies={n: f"layers.0.fc.{n}" for n in ("weight", "bias")},
            fills={"weight": "weight"} if weights else {},
            label="tower",
        )
        yield Edit.add("layers.0.fc", Use(f"{self.name}_0"), self.name)

    def inputs(self) -> Sequence[AddedInput]:
        return (AddedInput(f"{self.name}_image", f"[batch, {WIDTH}] in 0..1"),)

    def read_input(self, added: AddedInput, value: Any, request: Request) -> Mapping[str, Any]:
        return {added.name: torch.as_tensor(value, dtype=request.dtype)}

    def acts(self, start: float, end: float) -> bool:
        return end <= 0.5


@pytest.fixture(autouse=True)
def tower(plugins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower is installed beside core's own two."""
    graft, others = inarch.adapters.graft, inarch.adapters.graft.load_object
    graft.index().adapters["tower"] = AdapterEntry(id="tower")
    monkeypatch.setattr(
        graft, "load_object", lambda group, name: Tower if name == "tower" else others(group, name)
    )


def test_an_untrained_tower_begins_as_a_copy_of_its_own(base: Model) -> None:
    adapted = base.adapt(inarch.adapter("tower", name="t"))
    mine, theirs = adapted.adapter_parameters("t"), base.tree.layers[0].fc
    [weight] = [p for n, p in mine.items() if n.endswith("weight")]
    assert torch.equal(weight, theirs.weight)
    assert weight is not theirs.weight
    with torch.no_grad():
        weight.zero_()
    assert bool(theirs.weight.any())


def test_what_the_file_does_not_hold_is_the_bases(base: Model, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(WIDTH, WIDTH)}, tmp_path / "t.safetensors")
    adapted = base.adapt(inarch.adapter("tower", name="t", weights=tmp_path / "t.safetensors"))
    mine = {n.rpartition(".")[2]: p for n, p in adapted.adapter_parameters("t").items()}
    assert torch.equal(mine["weight"], torch.ones(WIDTH, WIDTH))
    assert torch.equal(mine["bias"], base.tree.layers[0].fc.bias)


def test_inputs_are_read_by_the_adapter_that_adds_them(base: Model, x: Tensor) -> None:
    adapted = base.adapt(inarch.adapter("tower", name="t"))
    values = adapted.read_inputs({"t_image": [[0.5] * WIDTH]}, REQUEST)
    assert torch.equal(values["t_image"], torch.full((1, WIDTH), 0.5))
    assert "t_image" in adapted.inputs
    adapted.tree(x, **values)


def test_a_missing_input_says_who_needs_what(base: Model) -> None:
    adapted = base.adapt(inarch.adapter("tower", name="t"))
    with pytest.raises(InarchError) as raised:
        adapted.read_inputs({}, REQUEST)
    assert raised.value.code == "IA507"
    assert raised.value.what == f"tower `t` needs `t_image`: [batch, {WIDTH}] in 0..1"


def test_an_input_that_nothing_asks_for_is_refused(base: Model) -> None:
    adapted = base.adapt(inarch.adapter("tower", name="t"))
    with pytest.raises(InarchError) as raised:
        adapted.read_inputs({"t_image": [[0.5] * WIDTH], "t_imge": 1}, REQUEST)
    assert raised.value.code == "IA508"
    assert "t_image" in raised.value.remedy


def test_an_adapter_says_when_it_rests(base: Model) -> None:
    adapted = base.adapt(inarch.adapter("tower", name="t"), inarch.adapter("lowrank"))
    assert adapted.resting(0.25, 0.5) == ()
    assert adapted.resting(0.5, 0.75) == ("t",)
