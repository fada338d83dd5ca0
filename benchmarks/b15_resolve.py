"""B15: decide the order of 50 adapters on 739 modules.

A Llama of 123 blocks on the meta device, six linear layers a block and the head: 50 LoRAs of all of
them, their edits known. What is timed is what `adapt` does with them before anything is made:
their footprints, the verdict of all 1,225 pairs, and the canonical order. No peer has a resolver:
what must be equal is the order, however the adapters were listed.
"""

from __future__ import annotations

import random

import inarch
from benchmarks import counters, models
from benchmarks.b05_adapt import TARGETS, layers
from benchmarks.measure import Setting, bandwidth, interleaved, spread
from benchmarks.result import Mark, Result, Table, Workload, result_of, seconds
from inarch.adapters import Model
from inarch.adapters.graft import Draft, draft_of
from inarch.resolve.arrange import arrange

WORKLOAD = Workload("B15", "Resolve 50 adapters on 739 modules", "-", "at most 50 ms")


def drafts(base: Model, count: int) -> list[Draft]:
    """So many LoRAs, checked against the model, whose edits are known and not yet made."""
    names = [f"a{number:02}" for number in range(count)]
    return [draft_of(inarch.adapter("lora", name=n, targets=TARGETS), base) for n in names]


def distinct(base: Model, count: int) -> list[Draft]:
    """Likewise, each on a set of layers that no other has: nothing is decided for two at once."""
    blocks = len(base.tree.select("model.layers.*"))
    specs = [
        inarch.adapter("lora", name=f"a{n:02}", targets=(*TARGETS[1:3], *_some(n, blocks)))
        for n in range(count)
    ]
    return [draft_of(spec, base) for spec in specs]


def _some(number: int, blocks: int) -> tuple[str, ...]:
    """The queries of all blocks but one."""
    return tuple(
        f"model.layers.{i}.self_attn.{{q,k,v,o}}_proj" for i in range(blocks) if i != number
    )


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    blocks, count = (4, 3) if setting.quick else (123, 50)
    base = models.on_meta("llama", models.llama_config(64, blocks))
    stacks = {"alike": drafts(base, count), "all different": distinct(base, count)}
    runs = {name: lambda s=stack: arrange(s, base.pristine) for name, stack in stacks.items()}
    for name, stack in stacks.items():
        listed = arrange(random.Random(0).sample(stack, len(stack)), base.pristine)
        setting.compare(f"{name}: order, listed otherwise", listed.names, runs[name]().names)
    times = interleaved(runs, setting)
    for name in runs:
        ms = spread([1000 * t for t in times.times[name]])
        what = f"{count} adapters on {layers(blocks)} modules, {name}, ms"
        result.marks.append(Mark(what, ms.median, 50, spread=ms))
        result.counters[f"function calls, {name}"] = counters.calls(runs[name])
    half = arrange(stacks["alike"][: count // 2], base.pristine)
    whole = arrange(stacks["alike"], base.pristine)
    result.counters["comparisons of footprints, alike"] = whole.comparisons
    result.counters["the same for half of them"] = half.comparisons
    rows = [[name, seconds(times.median(name))] for name in runs]
    result.tables.append(Table("Deciding the order", ["adapters", "inarch"], rows))
    result.remarks.append("No weights are moved: the limit is Python's own, in function calls.")
    return result
