"""B1: what the two libraries do around the operations.

A Llama and a Stable Diffusion 1.5 UNet at full depth, so narrow that the arithmetic takes no time:
what is measured is Python and the dispatch of operations, in eager mode.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import counters, models
from benchmarks.measure import Setting, bandwidth, interleaved, tensor_bytes
from benchmarks.result import Limit, Mark, Result, Table, Workload, result_of, seconds

WORKLOAD = Workload(
    "B1",
    "Dispatch: a forward at full depth and tiny width, eager",
    "transformers, diffusers",
    "Llama at most 0.85x the time, UNet at most 0.75x",
    ("transformers", "diffusers"),
)
Pair = tuple[Callable[[], Tensor], Callable[[], Tensor], int]
BOUNDS = {"Llama": 0.85, "UNet": 0.75}


@torch.inference_mode()
def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    rows: list[list[str]] = []
    for name, make in (("Llama", _llama), ("UNet", _unet)):
        ours, theirs, weights = make(setting)
        setting.compare(f"{name}: outputs", ours(), theirs())
        times = interleaved({"ours": ours, "theirs": theirs}, setting)
        ratio = times.ratio("ours", "theirs")
        what = f"{name}: time over the peer's"
        result.marks.append(Mark(what, ratio.median, BOUNDS[name], spread=ratio))
        for label, call in (("inarch", ours), ("peer", theirs)):
            result.counters[f"{name}: aten operations, {label}"] = counters.operations(call)
            result.counters[f"{name}: function calls, {label}"] = counters.calls(call)
        result.limits.append(Limit(name, weights, times.median("ours"), result.bandwidth))
        medians = [seconds(times.median(n)) for n in ("ours", "theirs")]
        rows.append([name, *medians, ratio.text()])
    result.tables.append(Table("A forward", ["model", "inarch", "peer", "ratio"], rows))
    return result


def _llama(setting: Setting) -> Pair:
    config = models.llama_config(64, 2 if setting.quick else 32)
    model = models.built("llama", config, setting)
    theirs = models.in_transformers(model, config, setting)
    ids = models.token_ids(1, 16, setting)
    weights = tensor_bytes(model.tree.state_dict())
    return lambda: model(ids), lambda: theirs(input_ids=ids, use_cache=False).logits, weights


def _unet(setting: Setting) -> Pair:
    channels = 8 if setting.quick else 16
    model = models.unet_of(setting, channels)
    theirs = models.in_diffusers(model, setting)
    tree = model.trees["unet"]
    size = 8 if setting.quick else 16
    x, step, text = models.unet_inputs(2 * channels, size, setting)
    return (
        lambda: tree(x, timestep=step, text=text),
        lambda: theirs(x, step, text, return_dict=False)[0],
        tensor_bytes(tree.state_dict()),
    )
