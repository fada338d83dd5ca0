"""B6: adapt, rescale and drop one LoRA where 1 to 50 are loaded already.

Here adapters are loaded side by side: one model for each, all sharing the base, so that a request
picks a model. The peer loads them into one model, of which one adapter is active. Beside that, both
libraries with all of the loaded adapters acting at once, in one stack.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import inarch
from benchmarks import counters, models
from benchmarks.measure import Samples, Setting, bandwidth, fitted, interleaved
from benchmarks.result import Mark, Picture, Result, Table, Workload, result_of, seconds
from inarch.adapters import Model

WORKLOAD = Workload(
    "B6",
    "Adapt, rescale, drop with 1 to 50 adapters loaded",
    "PEFT",
    "cost at 50 over cost at 1 at most 1.1",
    ("transformers", "peft"),
)
COUNTS = (1, 5, 20, 50)
ACTIONS = ("adapt", "rescale", "drop")
Run = Callable[[], object]


class Beside:
    """Ours: each loaded adapter is a model of its own on the one base."""

    def __init__(self, base: Model, folders: Mapping[str, Path], new: Path) -> None:
        self.base, self.new = base, new
        self.loaded = {name: models.adapted(base, {name: path}) for name, path in folders.items()}
        self.scales = itertools.cycle((0.5, 0.75))

    def adapt(self) -> None:
        self.loaded["new"] = self.base.adapt(inarch.adapter("lora", weights=self.new, name="new"))

    def rescale(self) -> None:
        self.loaded["new"].adapters["new"].scale = next(self.scales)

    def drop(self) -> None:
        self.loaded.pop("new", None)


class Stacked(Beside):
    """Ours: all loaded adapters in one model."""

    def __init__(self, base: Model, folders: Mapping[str, Path], new: Path) -> None:
        super().__init__(base, {}, new)
        self.stack = models.adapted(base, folders)

    def adapt(self) -> None:
        self.loaded["new"] = self.stack.adapt(inarch.adapter("lora", weights=self.new, name="new"))

    def drop(self) -> None:
        if "new" in self.loaded:
            self.loaded["rest"] = self.loaded.pop("new").without("new")


class Theirs:
    """PEFT: all loaded into one model, with one of them active, or all."""

    def __init__(
        self, model: Any, folders: Mapping[str, Path], new: Path, *, active: bool = False
    ) -> None:
        self.model, self.new, self.active = models.in_peft(model, folders), new, active
        self.names = list(folders)
        self.model.base_model.set_adapter(self.names if active else self.names[0])
        self.scales = itertools.cycle((0.5, 0.75))

    def adapt(self) -> None:
        self.model.load_adapter(str(self.new), "new", torch_device="cpu")
        self.model.base_model.set_adapter([*self.names, "new"] if self.active else "new")

    def rescale(self) -> None:
        from peft.tuners.lora import LoraLayer

        scale = next(self.scales)
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale("new", scale)

    def drop(self) -> None:
        if "new" in self.model.peft_config:
            self.model.delete_adapter("new")
            self.model.base_model.set_adapter(self.names if self.active else self.names[0])


def growth(ratio: tuple[int, int] = (1, 50)) -> dict[str, float]:
    """The function calls of each action with many loaded, over those with one."""
    setting = Setting(quick=True)
    base = models.built("llama", models.llama_config(16, 2), setting)
    found: dict[str, list[int]] = {action: [] for action in ACTIONS}
    with models.folder() as where:
        names = [f"a{i:02}" for i in range(ratio[1])]
        folders = models.saved(base, [*names, "new"], where, rank=2)
        new = folders.pop("new")
        for count in ratio:
            ours = Beside(base, dict(itertools.islice(folders.items(), count)), new)
            ours.adapt()
            for action in ACTIONS:
                found[action].append(counters.calls(getattr(ours, action)))
                ours.adapt()
    return {action: many / one for action, (one, many) in found.items()}


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    counts = (1, 3) if setting.quick else COUNTS
    config = models.llama_config(64, 2 if setting.quick else 12)
    base = models.built("llama", config, setting)
    with models.folder() as where:
        names = [f"a{i:02}" for i in range(counts[-1])]
        folders = models.saved(base, [*names, "new"], where, rank=4)
        new = folders.pop("new")
        made: dict[str, dict[int, Any]] = {"inarch": {}, "PEFT": {}, "inarch, one stack": {}}
        made["PEFT, all active"] = {}
        for count in counts:
            some = dict(itertools.islice(folders.items(), count))
            made["inarch"][count] = Beside(base, some, new)
            made["inarch, one stack"][count] = Stacked(base, some, new)
            for label, active in (("PEFT", False), ("PEFT, all active", True)):
                theirs = models.in_transformers(base, config, setting)
                made[label][count] = Theirs(theirs, some, new, active=active)
        _compare(setting, made, counts[-1])
        times = {action: _times(action, made, counts, setting) for action in ACTIONS}
    for label in made:
        for action in ACTIONS:
            ratio = times[action].ratio(f"{label} {counts[-1]}", f"{label} {counts[0]}")
            if label == "inarch":
                what = f"{action}: cost at {counts[-1]} over cost at {counts[0]}"
                result.marks.append(Mark(what, ratio.median, 1.1, spread=ratio))
            result.counters[f"{label}: {action}, cost at {counts[-1]} over cost at {counts[0]}"] = (
                round(ratio.median, 3)
            )
    for action, samples in times.items():
        lines = [
            fitted(label, counts, [samples.median(f"{label} {count}") for count in counts])
            for label in made
        ]
        title = f"To {action} one more"
        result.pictures.append(Picture(title, "adapters loaded", "seconds", lines))
        rows = [
            [label, *[seconds(samples.median(f"{label} {count}")) for count in counts]]
            for label in made
        ]
        result.tables.append(Table(title, ["loaded", *map(str, counts)], rows))
    for action, grown in growth((1, counts[-1])).items():
        what = f"{action}: function calls at {counts[-1]} over those at 1"
        result.marks.append(Mark(what, round(grown, 3), 1.1, counted=True))
    return result


def _times(
    action: str, made: Mapping[str, Mapping[int, Any]], counts: tuple[int, ...], setting: Setting
) -> Samples:
    """Each contender's time of an action, in turns, with what it needs done before."""
    runs: dict[str, Run] = {}
    before: dict[str, Run] = {}
    for label, of_count in made.items():
        for count in counts:
            one, name = of_count[count], f"{label} {count}"
            runs[name] = getattr(one, action)
            if action != "rescale":
                before[name] = one.drop if action == "adapt" else one.adapt
    if action == "rescale":
        for of_count in made.values():
            for one in of_count.values():
                one.adapt()
    samples = interleaved(runs, setting, before=before, repeats=30 if action == "rescale" else 10)
    for of_count in made.values():
        for one in of_count.values():
            one.drop()
    return samples


def _compare(setting: Setting, made: Mapping[str, Mapping[int, Any]], count: int) -> None:
    """With so many loaded, the new one acting gives the peer's outputs, and so do all at once."""
    ids = models.token_ids(2, 7, setting)
    for ours, theirs in (("inarch", "PEFT"), ("inarch, one stack", "PEFT, all active")):
        one, other = made[ours][count], made[theirs][count]
        one.adapt()
        other.adapt()
        logits = other.model(input_ids=ids, use_cache=False).logits
        # Fifty sums of products round differently where they are made at once.
        tolerance = 1e-4 if "stack" in ours else None
        what = f"{ours}, {count} loaded"
        setting.compare(what, one.loaded["new"](ids), logits, tolerance=tolerance)
        one.drop()
        other.drop()
