"""B6: adapt, rescale and drop one LoRA where 1 to 50 are loaded already.

Here adapters are loaded side by side: one model for each, all sharing the base, so that a request
picks a model. The peers load them into one model, of which one adapter is active: PEFT into a
Llama, diffusers into a UNet. Beside that, ours with all of the loaded adapters acting at once, in
one stack. Adapting, rescaling and dropping follow one another, each timed by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import inarch
from benchmarks import counters, models
from benchmarks.measure import Samples, Setting, bandwidth, fitted, in_cycles
from benchmarks.result import Mark, Picture, Result, Table, Workload, result_of, seconds
from inarch.adapters import Model

WORKLOAD = Workload(
    "B6",
    "Adapt, rescale, drop with 1 to 50 adapters loaded",
    "PEFT, diffusers",
    "cost at 50 over cost at 1 at most 1.1",
    ("transformers", "peft", "diffusers"),
)
COUNTS = (1, 7, 50)
ACTIONS = ("adapt", "rescale", "drop")


class Contender(Protocol):
    """A library with some adapters loaded, which takes one more and lets go of it again."""

    def adapt(self) -> None: ...
    def rescale(self) -> None: ...
    def drop(self) -> None: ...


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


class InPeft:
    """PEFT: all loaded into one model, of which one is active."""

    def __init__(self, theirs: Any, folders: Mapping[str, Path], new: Path) -> None:
        self.model, self.new, self.names = models.in_peft(theirs, folders), new, list(folders)
        self.device = str(next(theirs.parameters()).device)
        self.scales = itertools.cycle((0.5, 0.75))
        self.activate(self.names[:1])

    def adapt(self) -> None:
        self.model.load_adapter(str(self.new), "new", torch_device=self.device)
        self.activate(["new"])

    def rescale(self) -> None:
        from peft.tuners.lora import LoraLayer

        scale = next(self.scales)
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale("new", scale)

    def drop(self) -> None:
        if "new" in self.model.peft_config:
            self.activate(self.names[:1])
            self.model.delete_adapter("new")

    def activate(self, names: Sequence[str]) -> None:
        self.model.base_model.set_adapter(list(names))


class InDiffusers:
    """diffusers: all loaded into one UNet, of which one is active."""

    def __init__(self, theirs: Any, folders: Mapping[str, Path], new: Path) -> None:
        self.model, self.new, self.names = theirs, new, list(folders)
        for name, folder in folders.items():
            models.load_in_diffusers(theirs, name, folder)
        self.scales = itertools.cycle((0.5, 0.75))
        self.activate(self.names[:1])

    def adapt(self) -> None:
        models.load_in_diffusers(self.model, "new", self.new)
        self.activate(["new"])

    def rescale(self) -> None:
        self.model.set_adapters("new", next(self.scales))

    def drop(self) -> None:
        if "new" in self.model.peft_config:
            self.activate(self.names[:1])
            self.model.delete_adapters("new")

    def activate(self, names: Sequence[str]) -> None:
        self.model.set_adapters(list(names))


@dataclass
class Side:
    """One model in both libraries: who the peer is, how it is made, and what both give.

    Attributes:
        label: of the model.
        base: ours.
        peer: the peer's name.
        loaded: the peer with some folders' adapters, and the one that is added, on a fresh model.
        outputs: what a model of ours gives, and what the peer's gives.
        options: of the adapters' files.
    """

    label: str
    base: Model
    peer: str
    loaded: Callable[[Mapping[str, Path], Path], Any]
    outputs: Callable[[Model, Any], tuple[Tensor, Tensor]]
    options: Mapping[str, Any]


def _llama(setting: Setting) -> Side:
    config = models.llama_config(64, 1 if setting.quick else 2)
    base = models.built("llama", config, setting)
    ids = models.token_ids(2, 7, setting)
    return Side(
        "Llama",
        base,
        "PEFT",
        lambda some, new: InPeft(models.in_transformers(base, config, setting), some, new),
        lambda model, theirs: (model(ids), theirs(input_ids=ids, use_cache=False).logits),
        {},
    )


def _unet(setting: Setting) -> Side:
    channels = 8 if setting.quick else 16
    base = models.unet_of(setting, channels, shallow=True)
    x, step, text = models.unet_inputs(2 * channels, 8, setting)
    return Side(
        "UNet",
        base,
        "diffusers",
        lambda some, new: InDiffusers(models.in_diffusers(base, setting), some, new),
        lambda model, theirs: (
            model.trees["unet"](x, timestep=step, text=text),
            theirs(x, step, text, return_dict=False)[0],
        ),
        {"targets": models.attention_linears(base), "format": "diffusers"},
    )


def growth(
    ratio: tuple[int, int] = (1, 50), kind: type[Beside] = Beside, blocks: int = 2
) -> dict[str, float]:
    """The function calls of each action with many loaded, over those with one.

    Args:
        ratio: how many are loaded.
        kind: side by side, or `Stacked`.
        blocks: of the model, seven layers each.
    """
    setting = Setting(quick=True)
    base = models.built("llama", models.llama_config(16, blocks), setting)
    found: dict[str, list[int]] = {action: [] for action in ACTIONS}
    with models.folder() as where:
        names = [f"a{i:02}" for i in range(ratio[1])]
        folders = models.saved(base, [*names, "new"], where, rank=2)
        new = folders.pop("new")
        for count in ratio:
            ours = kind(base, dict(itertools.islice(folders.items(), count)), new)
            for _ in range(2):  # the first time makes what is made once
                ours.adapt()
                ours.drop()
            ours.adapt()
            for action in ACTIONS:
                found[action].append(counters.calls(getattr(ours, action)))
    return {action: many / one for action, (one, many) in found.items()}


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    counts = (1, 3) if setting.quick else COUNTS
    for side in (_llama(setting), _unet(setting)):
        with models.folder() as where:
            names = [f"a{i:02}" for i in range(counts[-1])]
            folders = models.saved(side.base, [*names, "new"], where, rank=4, **side.options)
            new = folders.pop("new")
            made: dict[str, dict[int, Any]] = {"inarch": {}, side.peer: {}, "inarch, one stack": {}}
            for count in counts:
                some = dict(itertools.islice(folders.items(), count))
                made["inarch"][count] = Beside(side.base, some, new)
                made["inarch, one stack"][count] = Stacked(side.base, some, new)
                made[side.peer][count] = side.loaded(some, new)
            _compare(setting, side, made, counts[-1])
            _tell(result, side, counts, _times(made, setting))
    for action, grown in growth((1, counts[-1])).items():
        what = f"{action}: function calls at {counts[-1]} over those at 1"
        result.marks.append(Mark(what, round(grown, 3), 1.1, counted=True))
    for action, grown in growth((1, counts[-1]), Stacked, 12).items():
        what = f"one stack: {action}: function calls at {counts[-1]} over those at 1"
        result.counters[what] = round(grown, 3)
    return result


def _times(made: Mapping[str, Mapping[int, Contender]], setting: Setting) -> dict[str, Samples]:
    """Each contender's times of each action, in turns."""
    runs = {
        f"{label} {count}": [getattr(one, action) for action in ACTIONS]
        for label, of_count in made.items()
        for count, one in of_count.items()
    }
    return dict(zip(ACTIONS, in_cycles(runs, setting), strict=True))


def _tell(result: Result, side: Side, counts: Sequence[int], times: Mapping[str, Samples]) -> None:
    first, last = counts[0], counts[-1]
    labels = ("inarch", side.peer, "inarch, one stack")
    for action, samples in times.items():
        costs = f"{action}, cost at {last} over cost at {first}"
        for label in labels:
            ratio = samples.ratio(f"{label} {last}", f"{label} {first}")
            if label == "inarch":
                result.marks.append(Mark(f"{side.label}: {costs}", ratio.median, 1.1, spread=ratio))
            result.counters[f"{side.label}, {label}: {costs}"] = round(ratio.median, 3)
        medians = {label: [samples.median(f"{label} {n}") for n in counts] for label in labels}
        title = f"{side.label}: to {action} one more"
        lines = [fitted(label, counts, values) for label, values in medians.items()]
        result.pictures.append(Picture(title, "adapters loaded", "seconds", lines))
        rows = [[label, *map(seconds, values)] for label, values in medians.items()]
        faster = [samples.ratio(f"{side.peer} {n}", f"inarch {n}").median for n in counts]
        rows.append([f"inarch, times faster than {side.peer}", *(f"{x:.3g}" for x in faster)])
        result.tables.append(Table(title, ["loaded", *map(str, counts)], rows))


@torch.no_grad()
def _compare(
    setting: Setting, side: Side, made: Mapping[str, Mapping[int, Any]], count: int
) -> None:
    """With so many loaded, the new one acting gives the peer's outputs, and so do all at once."""
    theirs = made[side.peer][count]
    for label in ("inarch", "inarch, one stack"):
        ours = made[label][count]
        ours.adapt()
        theirs.adapt()
        if label != "inarch":
            theirs.activate([*theirs.names, "new"])
        outputs = side.outputs(ours.loaded["new"], theirs.model)
        what = f"{side.label}, {label}, {count} loaded"
        setting.compare(what, *outputs, reordered=label != "inarch")
        ours.drop()
        theirs.drop()
