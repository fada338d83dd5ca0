"""B7: put other weights into a LoRA that is there, in eager mode and where blocks are compiled.

What is put in was read before, so that a swap is one copy; beside it stands a copy of as many
bytes. From the file it is held against PEFT's `hotswap_adapter`, which reads one each time: a file
whose header says what that of one before said, as those of one training do, and a file of which
nothing is known. Counted are the graphs that reach the compiler's back end in twenty swaps between
files of other ranks and alphas.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.compiling import Backend, compiled
from benchmarks.measure import Setting, bandwidth, interleaved, tensor_bytes
from benchmarks.result import Limit, Mark, Result, Table, Workload, result_of, seconds
from inarch.adapters import Model

WORKLOAD = Workload(
    "B7",
    "Swap an adapter's weights, eager and compiled",
    "PEFT hotswap",
    "at most 1.5x the memory copy; 0 recompilations",
    ("transformers", "peft"),
)
NAMES = ("first", "second")


def _blocks(model: Any) -> list[torch.nn.Module]:
    return [found.module for found in model.tree.select("model.layers.*")]


def _unlike(base: Model, where: Path) -> dict[str, Path]:
    """Folders of two LoRAs of other ranks and alphas, which fit where there is room for 4."""
    forms = [{"rank": 4, "alpha": 4}, {"rank": 2, "alpha": 6}]
    return {
        name: path
        for name, form in zip(NAMES, forms, strict=True)
        for path in models.saved(base, [name], where, **form).values()
    }


def recompilations(swaps: int = 20) -> int:
    """The graphs that swaps add to those of the first forward, blocks compiled one by one."""
    setting = Setting(quick=True)
    base = models.built("llama", models.llama_config(32, 3), setting)
    ids = models.token_ids(1, 8, setting)
    torch._dynamo.reset()
    backend = Backend("eager")
    with models.folder() as where, torch.no_grad():
        folders = _unlike(base, where)
        model = models.adapted(base, {"one": folders["first"]}, capacity=4)
        compiled(_blocks(model), backend)
        model(ids)
        begun = backend.graphs
        for path in itertools.islice(itertools.cycle(folders.values()), swaps):
            model.swap("one", path)
            model(ids)
    torch._dynamo.reset()
    return backend.graphs - begun


def _their_recompilations(swaps: int) -> int:
    from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

    setting = Setting(quick=True)
    config = models.llama_config(32, 3)
    base = models.built("llama", config, setting)
    ids = models.token_ids(1, 8, setting)
    torch._dynamo.reset()
    backend = Backend("eager")
    with models.folder() as where, torch.no_grad():
        folders = _unlike(base, where)
        hf = models.in_transformers(base, config, setting)
        model = models.in_peft(hf, {"one": folders["first"]})
        prepare_model_for_compiled_hotswap(model, target_rank=4)
        compiled(hf.model.layers, backend)
        model(input_ids=ids, use_cache=False)
        begun = backend.graphs
        for path in itertools.islice(itertools.cycle(folders.values()), swaps):
            hotswap_adapter(model, str(path), "one", torch_device="cpu")
            model(input_ids=ids, use_cache=False)
    torch._dynamo.reset()
    return backend.graphs - begun


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    width, layers = (64, 2) if setting.quick else (1024, 8)
    config = models.llama_config(width, layers)
    base = models.built("llama", config, setting)
    with models.folder() as where:
        folders = models.saved(base, NAMES, where, rank=16)
        ours = models.adapted(base, {"one": folders["first"]})
        hf: Any = models.in_transformers(base, config, setting)
        theirs = models.in_peft(hf, {"one": folders["first"]})
        _compare(setting, ours, theirs, folders)
        times, size = _times(setting, ours, theirs, folders)
    copy = times.ratio("swap", "copy")
    result.marks.append(Mark("a swap over a copy of its bytes", copy.median, 1.5, spread=copy))
    read = times.ratio("swap, from the file", "PEFT hotswap, from the file")
    result.marks.append(Mark("a swap from a file over PEFT's", read.median, 1.0, spread=read))
    swaps = 3 if setting.quick else 20
    made = recompilations(swaps)
    result.marks.append(Mark(f"graphs made in {swaps} swaps", made, 0, "exactly", counted=True))
    result.counters[f"PEFT: graphs made in {swaps} swaps"] = _their_recompilations(swaps)
    result.limits.append(Limit("a swap", 2 * size, times.median("swap"), result.bandwidth))
    rows = [[who, seconds(times.median(who))] for who in times.times]
    title = f"{size / 1e6:.1f} MB of weights"
    result.tables.append(Table(title, ["", "median"], rows))
    new = times.ratio("swap, from a file of a new structure", "PEFT hotswap, from the file")
    result.remarks.append(f"A file of a new structure takes {new.text()} of PEFT's time.")
    return result


def _times(
    setting: Setting, ours: Any, theirs: Any, folders: Mapping[str, Path]
) -> tuple[Any, int]:
    from peft.utils.hotswap import hotswap_adapter

    fillings = itertools.cycle([ours.prepare("one", path) for path in folders.values()])
    size = tensor_bytes(list(ours.adapter_parameters("one").values()))
    source = torch.ones(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    mine, others, news = (itertools.cycle(folders.values()) for _ in range(3))
    device, slot = str(setting.device), ours.adapters["one"].slot
    kind = type(ours.adapters["one"].adapter)

    def anew() -> None:
        known, slot.patterns, kind.by_header = slot.patterns, (), False
        ours.swap("one", next(news))
        slot.patterns, kind.by_header = known, True

    runs = {
        "copy": lambda: target.copy_(source),
        "swap": lambda: ours.swap("one", next(fillings)),
        "swap, from the file": lambda: ours.swap("one", next(mine)),
        "swap, from a file of a new structure": anew,
        "PEFT hotswap, from the file": lambda: hotswap_adapter(
            theirs, str(next(others)), "one", torch_device=device
        ),
    }
    return interleaved(runs, setting), size


def _compare(setting: Setting, ours: Any, theirs: Any, folders: Mapping[str, Path]) -> None:
    """After a swap both give what the other file gives."""
    from peft.utils.hotswap import hotswap_adapter

    ids = models.token_ids(1, 8, setting)
    for name in reversed(NAMES):
        ours.swap("one", folders[name])
        hotswap_adapter(theirs, str(folders[name]), "one", torch_device=str(setting.device))
        with torch.inference_mode():
            logits = theirs(input_ids=ids, use_cache=False).logits
            setting.compare(f"after a swap to the {name}", ours(ids), logits)
