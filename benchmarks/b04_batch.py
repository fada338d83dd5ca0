"""B4: a batch of 32 rows with 1 to 32 different LoRAs in it, a row each.

Both libraries have all 32 loaded in one model, and are told which row has which: ours by
`model.rows`, PEFT by `adapter_names`. Rows are of one token, as when many requests generate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import models
from benchmarks.measure import Samples, Setting, bandwidth, fitted, interleaved, tensor_bytes
from benchmarks.result import (
    Limit,
    Mark,
    Picture,
    Result,
    Table,
    Workload,
    plural,
    result_of,
    seconds,
)

WORKLOAD = Workload(
    "B4",
    "A batch of 32 rows with 1 to 32 different adapters",
    "PEFT `adapter_names`",
    "32 adapters: at least 5x its throughput",
    ("transformers", "peft"),
)
COUNTS = (1, 2, 4, 8, 16, 32)
RANK = 8


@torch.inference_mode()
def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    counts, rows = ((1, 3), 4) if setting.quick else (COUNTS, 32)
    width, layers = (32, 1) if setting.quick else (512, 4)
    times, size = _times(setting, counts, rows, width, layers)
    most = counts[-1]
    faster = times.ratio(f"PEFT {most}", f"inarch {most}")
    what = f"{most} adapters in {rows} rows: throughput over PEFT's"
    result.marks.append(Mark(what, faster.median, 5.0, "at least", faster))
    spent = times.median(f"inarch {most}")
    result.limits.append(Limit(f"{most} adapters", size, spent, result.bandwidth))
    lines = [
        fitted(who, counts, [times.median(f"{who} {count}") for count in counts])
        for who in ("inarch", "PEFT")
    ]
    title = f"A batch of {rows} rows, d = {width}, {layers} layers, rank {RANK}"
    result.pictures.append(Picture(title, "different adapters", "seconds", lines))
    table = [["none", seconds(times.median("base")), seconds(times.median("their base")), "", ""]]
    for count in counts:
        ours, theirs = (times.median(f"{who} {count}") for who in ("inarch", "PEFT"))
        ratio = times.ratio(f"PEFT {count}", f"inarch {count}").text()
        table.append([str(count), seconds(ours), seconds(theirs), f"{rows / ours:.0f}/s", ratio])
    columns = ["adapters", "inarch", "PEFT", "rows", "throughput over PEFT's"]
    result.tables.append(Table(title, columns, table))
    return result


def _times(
    setting: Setting, counts: tuple[int, ...], rows: int, width: int, layers: int
) -> tuple[Samples, int]:
    config = models.llama_config(width, layers)
    base = models.built("llama", config, setting)
    ids = models.token_ids(rows, 1, setting)
    with models.folder() as where:
        names = [f"a{i:02}" for i in range(counts[-1])]
        folders = models.saved(base, names, where, rank=RANK)
        ours: Any = models.adapted(base, folders)
        theirs = models.in_peft(models.in_transformers(base, config, setting), folders)
    plain: Any = models.in_transformers(base, config, setting)
    runs: dict[str, Callable[[], Any]] = {
        "base": lambda: base(ids),
        "their base": lambda: plain(input_ids=ids, use_cache=False).logits,
    }
    for count in counts:
        told = [names[row % count] for row in range(rows)]
        mixed = ours.rows(told)
        runs[f"inarch {count}"] = lambda m=mixed: m(ids)
        runs[f"PEFT {count}"] = lambda t=told: (
            theirs(input_ids=ids, use_cache=False, adapter_names=t).logits
        )
        outputs = [runs[f"{who} {count}"]() for who in ("inarch", "PEFT")]
        what = f"{plural(count, 'adapter')} in {rows} rows"
        setting.compare(what, *outputs, reordered=True)
    weights = tensor_bytes(list(ours.tree.state_dict().values()))
    return interleaved(runs, setting), weights
