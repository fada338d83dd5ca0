"""Adapters ask for settings of a model's tasks; two that disagree are refused, both by name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file, save_file

import inarch
import inarch.plugins.wanted
from inarch.adapters import Model
from inarch.plugins import Index
from inarch.plugins.manifest import AdapterEntry, WeightsEntry
from inarch.resolve import resolve


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    rank: int = 2
    targets: tuple[str, ...] = ("mlp.*",)
    asks: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def distilled(plugins: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The low-rank adapter, which asks for what its options say, and weights of it."""
    lowrank = inarch.adapters.graft.load_object("inarch.adapters", "lowrank")
    asks = {"Options": Options, "asks": lambda self: self.options.asks}
    known = {"distilled": type("Distilled", (lowrank,), asks)}
    shipped = WeightsEntry(
        id="fast", adapter="distilled", model="small", path="fast", asks={"steps": 4, "guidance": 1}
    )
    listed = Index(
        adapters={name: AdapterEntry(id=name) for name in known}, weights={"fast": shipped}
    )
    monkeypatch.setattr(inarch.adapters.graft, "index", lambda: listed)
    monkeypatch.setattr(inarch.adapters.graft, "load_object", lambda _group, name: known[name])
    monkeypatch.setattr(inarch.plugins.wanted, "locate_weights", lambda _: tmp_path / "fast")


def trained(base: Model, folder: Path, **metadata: str) -> Path:
    """A saved adapter whose header holds more strings."""
    base.adapt("distilled").save_adapter("distilled", folder)
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata)
    return folder


def test_a_model_without_adapters_asks_for_nothing(base: Model) -> None:
    assert base.asks == {}


def test_what_the_options_say_is_asked(base: Model) -> None:
    adapted = base.adapt(inarch.adapter("distilled", asks={"scheduler": "lcm"}))
    assert adapted.asks == {"scheduler": "lcm"}
    assert adapted.without("distilled").asks == {}
    assert base.asks == {}


def test_a_file_asks_in_its_header(base: Model, tmp_path: Path) -> None:
    folder = trained(base, tmp_path / "file", **{"inarch.asks": '{"steps": 8, "guidance": 0.5}'})
    spec = inarch.adapter("distilled", weights=folder, asks={"steps": 2})
    assert base.adapt(spec).asks == {"steps": 2, "guidance": 0.5}


def test_shipped_weights_ask_in_their_manifest(base: Model, tmp_path: Path) -> None:
    trained(base, tmp_path / "fast", **{"inarch.asks": '{"steps": 8, "scheduler": "lcm"}'})
    adapted = base.adapt("fast")
    assert adapted.asks == {"steps": 4, "guidance": 1, "scheduler": "lcm"}


def test_merged_ones_still_ask(base: Model) -> None:
    adapted = base.adapt(inarch.adapter("distilled", asks={"scheduler": "lcm"}))
    assert adapted.merge().asks == {"scheduler": "lcm"}


def test_two_that_disagree_are_refused_by_name(base: Model) -> None:
    specs = [
        inarch.adapter("distilled", name=name, asks={"scheduler": "lcm", "steps": steps})
        for name, steps in (("lightning", 4), ("hyper", 8))
    ]
    for model, some in ((base, specs), (base.adapt(specs[0]), specs[1:])):
        for refused in (model.adapt, functools.partial(resolve, model)):
            with pytest.raises(inarch.InarchError) as caught:
                refused(*some)
            assert (caught.value.code, caught.value.where) == ("IA420", "steps")
            assert "`lightning` and `hyper`" in caught.value.what


def test_two_that_agree_are_not(base: Model) -> None:
    specs = [
        inarch.adapter("distilled", name=name, asks={"scheduler": "lcm"}) for name in ("a", "b")
    ]
    assert base.adapt(*specs).asks == {"scheduler": "lcm"}


def test_a_plan_says_what_is_asked(base: Model) -> None:
    plan = resolve(base, inarch.adapter("distilled", asks={"scheduler": "lcm"}), proof=False)
    assert plan.members[0].asks == {"scheduler": "lcm"}
    assert plan.apply(base).asks == {"scheduler": "lcm"}


def test_a_header_that_is_no_object_is_refused(base: Model, tmp_path: Path) -> None:
    folder = trained(base, tmp_path / "file", **{"inarch.asks": "lcm"})
    with pytest.raises(inarch.InarchError) as caught:
        base.adapt(inarch.adapter("distilled", weights=folder))
    assert caught.value.code == "IA411"
