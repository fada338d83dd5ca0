"""B11: compile the whole model, compile block by block, then adapt and drop twenty times.

Counted are the graphs that reach the compiler's back end: one for a whole model, for blocks one for
each distinct structure, and none for an adapter of a structure that was there before. `fullgraph`
makes any graph break an error, ours and the peer's. The forwards that are timed are those of
blocks compiled with inductor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import inarch
from benchmarks import models
from benchmarks.measure import Setting, bandwidth, interleaved
from benchmarks.result import Mark, Result, Table, Workload, result_of, seconds
from inarch.adapters import Model

WORKLOAD = Workload(
    "B11",
    "Compile: whole, by blocks, then 20 cycles of adapting and dropping",
    "transformers, PEFT",
    "0 graph breaks; compilations = distinct structures",
    ("transformers", "peft"),
)
LAYERS, CYCLES = 8, 20


class Backend:
    """A back end that counts the graphs it is given."""

    def __init__(self, name: str) -> None:
        self.name, self.graphs = name, 0

    def __call__(self, graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        if self.name == "eager":
            return graph.forward
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(graph, examples)


def compiled(blocks: Iterable[nn.Module], backend: Backend) -> None:
    for block in blocks:
        block.compile(fullgraph=True, backend=backend)


def blocks_of(model: Model) -> list[nn.Module]:
    return [found.module for found in model.tree.select("model.layers.*") if found.module]


def graph_breaks() -> int:
    return sum(torch._dynamo.utils.counters["graph_break"].values())


def counted(cycles: int = CYCLES) -> dict[str, int]:
    """Graphs of the whole model, of its blocks in three structures, and of cycles after those."""
    setting = Setting(quick=True)
    base = models.built("llama", models.llama_config(32, LAYERS), setting)
    ids = models.token_ids(1, 8, setting)
    found: dict[str, int] = {}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with models.folder() as where, torch.no_grad():
        folders = models.saved(base, [f"a{i:02}" for i in range(cycles)], where, rank=4)
        whole, backend = base.adapt(*_uneven()), Backend("eager")
        torch.compile(whole.tree, fullgraph=True, backend=backend)(ids, **_inputs(whole, ids))
        found["whole"] = backend.graphs
        torch._dynamo.reset()
        # On a base of its own: blocks without an adapter are the base's, and compiled in place.
        other = models.built("llama", models.llama_config(32, LAYERS), setting)
        uneven, backend = other.adapt(*_uneven()), Backend("eager")
        compiled(blocks_of(uneven), backend)
        uneven(ids)
        found["blocks"], found["structures"] = backend.graphs, _structures(uneven)
        backend = Backend("eager")
        for i, (name, path) in enumerate(folders.items()):
            model = base.adapt(inarch.adapter("lora", weights=path, name="one"))
            compiled(blocks_of(model), backend)
            model(ids)
            found["first" if i == 0 else "cycles"] = backend.graphs
            del model, name
    found["cycles"] -= found["first"]
    found["breaks"] = graph_breaks()
    torch._dynamo.reset()
    return found


def _uneven() -> list[Any]:
    """LoRAs of other layers in other blocks, so that there are three kinds of block."""
    first, last = "model.layers.{0,1,2}.self_attn.q_proj", "model.layers.{6,7}.mlp.up_proj"
    return [
        inarch.adapter("lora", name="first", targets=[first], rank=4),
        inarch.adapter("lora", name="last", targets=[last], rank=2),
    ]


def _structures(model: Model) -> int:
    return len({id(block.form) for block in blocks_of(model)})  # type: ignore[union-attr]


def _inputs(model: Model, ids: torch.Tensor) -> dict[str, Any]:
    from inarch.nn.attention import causal_mask

    time = ids.shape[1]
    positions = torch.arange(time, device=ids.device)[None]
    return {"positions": positions, "mask": causal_mask(time, time, device=ids.device)}


def _theirs(setting: Setting, cycles: int) -> tuple[int, int]:
    """The graphs of PEFT's blocks: at first, and in cycles of loading and deleting after that.

    It compiles again for each name, until Dynamo's limit makes that an error and the cycles end.
    """
    config = models.llama_config(32, LAYERS)
    base = models.built("llama", config, Setting(quick=True))
    ids = models.token_ids(1, 8, Setting(quick=True))
    torch._dynamo.reset()
    backend = Backend("eager")
    with models.folder() as where, torch.no_grad():
        folders = models.saved(base, [f"a{i:02}" for i in range(cycles)], where, rank=4)
        first = next(iter(folders))
        theirs = models.in_transformers(base, config, Setting(quick=True))
        model = models.in_peft(theirs, {first: folders[first]})
        compiled(theirs.model.layers, backend)
        model(input_ids=ids, use_cache=False)
        begun, previous = backend.graphs, first
        for name, path in list(folders.items())[1:]:
            model.load_adapter(str(path), name, torch_device="cpu")
            model.set_adapter(name)
            model.delete_adapter(previous)
            try:
                model(input_ids=ids, use_cache=False)
            except torch._dynamo.exc.FailOnRecompileLimitHit:  # as `fullgraph` has it
                break
            previous = name
    torch._dynamo.reset()
    return begun, backend.graphs - begun


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    cycles = 3 if setting.quick else CYCLES
    found = counted(cycles)
    result.marks += [
        Mark("graph breaks", found["breaks"], 0, "exactly", counted=True),
        Mark("graphs of a whole model", found["whole"], 1, "exactly", counted=True),
        Mark(
            "graphs of its blocks, compiled one by one, beyond their distinct structures",
            found["blocks"] - found["structures"],
            0,
            "exactly",
            counted=True,
        ),
        Mark(f"graphs in {cycles - 1} further cycles", found["cycles"], 0, "exactly", counted=True),
    ]
    result.counters["distinct structures of blocks"] = found["structures"]
    if setting.quick:
        _compare(setting, "eager")
        return result
    begun, more = _theirs(setting, cycles)
    result.counters["PEFT: graphs of equal blocks"] = begun
    result.counters[f"PEFT: graphs in {cycles - 1} further cycles"] = more
    _timed(setting, result)
    return result


def _compare(setting: Setting, backend: str) -> dict[str, Callable[[], Any]]:
    """Both libraries' adapted models with their blocks compiled, held against each other."""
    width = 64 if setting.quick else 256
    config = models.llama_config(width, 4)
    base = models.built("llama", config, setting)
    ids = models.token_ids(1, 16, setting)
    with models.folder() as where:
        folders: dict[str, Path] = models.saved(base, ["one"], where, rank=8)
        ours = models.adapted(base, folders)
        hf: Any = models.in_transformers(base, config, setting)
        theirs = models.in_peft(hf, folders)
    compiled(blocks_of(ours), Backend(backend))
    compiled(hf.model.layers, Backend(backend))
    runs = {
        "inarch": lambda: ours(ids),
        "PEFT": lambda: theirs(input_ids=ids, use_cache=False).logits,
    }
    with torch.no_grad():
        outputs = [run() for run in runs.values()]
    setting.compare(f"blocks compiled with {backend}", *outputs, tolerance=1e-4)
    return runs


def _timed(setting: Setting, result: Result) -> None:
    """How long a forward of compiled blocks takes, and how long compiling them took."""
    torch._dynamo.reset()
    start = time.perf_counter()
    runs = _compare(setting, "inductor")
    taken = time.perf_counter() - start
    with torch.no_grad():
        times = interleaved(runs, setting)
    rows = [[who, seconds(times.median(who))] for who in runs]
    rows.append(["ratio", times.ratio("inarch", "PEFT").text()])
    title = "A forward of 4 blocks compiled with inductor, d = 256, a LoRA on every linear layer"
    result.tables.append(Table(title, ["", "a forward"], rows))
    result.remarks.append(f"Compiling both took {seconds(taken)}.")
    torch._dynamo.reset()
