"""B11: compile the whole model, compile block by block, then adapt and drop twenty times.

A Llama beside PEFT, and a UNet beside diffusers, of which `compile_repeated_blocks` compiles the
transformers' blocks. Counted are the graphs that reach the compiler's back end: one for a whole
model, for blocks one for each distinct structure, and none for an adapter of a structure that was
there before. `fullgraph` makes any graph break an error, ours and the peer's. The forwards that are
timed are those of a Llama's blocks compiled with inductor.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch

import inarch
from benchmarks import models
from benchmarks.compiling import SUBJECTS, Backend, LlamaSubject, Subject, compiled
from benchmarks.measure import Setting, bandwidth, interleaved
from benchmarks.result import Mark, Result, Table, Workload, result_of, seconds
from inarch.adapters import Model

WORKLOAD = Workload(
    "B11",
    "Compile: whole, by blocks, then 20 cycles of adapting and dropping",
    "PEFT, diffusers",
    "0 graph breaks; compilations = distinct structures",
    ("transformers", "peft", "diffusers"),
)
CYCLES = 20


def graph_breaks() -> int:
    return sum(torch._dynamo.utils.counters["graph_break"].values())


@torch.no_grad()
def counted(subject: Subject, cycles: int = CYCLES) -> dict[str, int]:
    """Graphs of ours: whole, of blocks in several structures, and of cycles after those.

    Each cycle's adapter has a strength of its own.
    """
    found: dict[str, int] = {}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backend = Backend("eager")
    subject.whole(subject.base().adapt(*subject.uneven()), backend)
    found["whole"] = backend.graphs
    torch._dynamo.reset()
    uneven, backend = subject.base().adapt(*subject.uneven()), Backend("eager")
    compiled(subject.blocks(uneven), backend)
    subject.run(uneven)
    found["blocks"], found["structures"] = backend.graphs, _structures(subject, uneven)
    base, backend = subject.base(), Backend("eager")
    with models.folder() as where:
        names = [f"a{i:02}" for i in range(cycles)]
        folders = models.saved(base, names, where, rank=4, **subject.options)
        for i, path in enumerate(folders.values()):
            model = base.adapt(inarch.adapter("lora", weights=path, name="one", scale=1 - i / 40))
            compiled(subject.blocks(model), backend)
            subject.run(model)
            if i == 0:
                found["first"] = backend.graphs
                found["adapted structures"] = _structures(subject, model)
            del model
    found["cycles"] = backend.graphs - found["first"]
    found["breaks"] = graph_breaks()
    torch._dynamo.reset()
    return found


def _structures(subject: Subject, model: Model) -> int:
    return len({id(block.form) for block in subject.blocks(model)})  # type: ignore[union-attr]


@torch.no_grad()
def _theirs(subject: Subject, cycles: int) -> tuple[int, int, int]:
    """The graphs of the peer's blocks: at first, and in cycles of loading and deleting after that.

    It compiles again for each name, until Dynamo's limit makes that an error and the cycles end.

    Returns:
        The graphs at first, those of further cycles, and how many cycles it ran.
    """
    torch._dynamo.reset()
    base, backend, ran = subject.base(), Backend("eager"), 0
    with models.folder() as where:
        names = [f"a{i:02}" for i in range(cycles)]
        folders = models.saved(base, names, where, rank=4, **subject.options)
        theirs = subject.theirs(base, names[0], folders[names[0]])
        subject.compile_theirs(theirs, backend)
        subject.run_theirs(theirs)
        begun = backend.graphs
        for previous, name in itertools.pairwise(names):
            subject.exchange(theirs, previous, name, folders[name])
            try:
                subject.run_theirs(theirs)
            except torch._dynamo.exc.FailOnRecompileLimitHit:  # as `fullgraph` has it
                break
            ran += 1
    torch._dynamo.reset()
    return begun, backend.graphs - begun, ran


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    cycles = 3 if setting.quick else CYCLES
    for make in SUBJECTS.values():
        subject = make(Setting(setting.device, setting.dtype, quick=True))
        _compare(setting, subject, "eager")
        _count(result, subject, cycles)
    if not setting.quick:
        _timed(setting, result)
    return result


def _count(result: Result, subject: Subject, cycles: int) -> None:
    label, found = subject.label, counted(subject, cycles)
    beyond = found["blocks"] - found["structures"]
    for what, value, bound in (
        ("graph breaks", found["breaks"], 0),
        ("graphs of a whole model", found["whole"], 1),
        ("graphs of its blocks, compiled one by one, beyond their distinct structures", beyond, 0),
        (f"graphs in {cycles - 1} further cycles", found["cycles"], 0),
    ):
        result.marks.append(Mark(f"{label}: {what}", value, bound, "exactly", counted=True))
    result.counters[f"{label}: distinct structures of blocks"] = found["structures"]
    result.counters[f"{label}: graphs of blocks with a LoRA"] = found["first"]
    begun, more, ran = _theirs(subject, cycles)
    peer = f"{label}, {subject.peer}"
    result.counters[f"{peer}: graphs of blocks with a LoRA"] = begun
    result.counters[f"{peer}: further cycles before Dynamo's limit"] = ran
    result.counters[f"{peer}: graphs in those"] = more


@torch.no_grad()
def _compare(setting: Setting, subject: Subject, backend: str) -> dict[str, Callable[[], Any]]:
    """Both libraries' adapted models with their blocks compiled, held against each other."""
    base = subject.base()
    with models.folder() as where:
        folders = models.saved(base, ["one"], where, rank=8, **subject.options)
        ours = models.adapted(base, folders)
        theirs = subject.theirs(base, "one", folders["one"])
    compiled(subject.blocks(ours), Backend(backend))
    subject.compile_theirs(theirs, Backend(backend))
    runs = {
        "inarch": lambda: subject.run(ours),
        subject.peer: lambda: subject.run_theirs(theirs),
    }
    what = f"{subject.label}, blocks compiled with {backend}"
    setting.compare(what, *(run() for run in runs.values()), reordered=True)
    return runs


def _timed(setting: Setting, result: Result) -> None:
    """How long a forward of compiled blocks takes, and how long compiling them took."""
    torch._dynamo.reset()
    subject = LlamaSubject(setting, width=256, layers=4)
    start = time.perf_counter()
    runs = _compare(setting, subject, "inductor")
    taken = time.perf_counter() - start
    with torch.no_grad():
        times = interleaved(runs, setting)
    rows = [[who, seconds(times.median(who))] for who in runs]
    rows.append(["ratio", times.ratio("inarch", subject.peer).text()])
    title = "A forward of 4 blocks compiled with inductor, d = 256, a LoRA on every linear layer"
    result.tables.append(Table(title, ["", "a forward"], rows))
    result.remarks.append(f"Compiling both took {seconds(taken)}.")
    torch._dynamo.reset()
