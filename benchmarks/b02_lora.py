"""B2: one LoRA on every linear layer, unmerged: what it adds to a forward.

The overhead is the adapted model's time less the base's, taken in the same rounds, in each of the
two libraries, at one token and at 64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import counters, models
from benchmarks.measure import Samples, Setting, bandwidth, interleaved, tensor_bytes
from benchmarks.result import Limit, Mark, Result, Table, Workload, plural, result_of, seconds

WORKLOAD = Workload(
    "B2",
    "One LoRA on every linear layer, unmerged, at 1 and 64 tokens",
    "PEFT",
    "at most half the overhead; at most 2 added aten operations a layer",
    ("transformers", "peft"),
)
LAYERS = {256: 8, 768: 4, 2048: 1}
RANK = 16
OURS, THEIRS = ("lora", "base"), ("their lora", "their base")


def added_operations(adapters: int) -> float:
    """The aten operations that so many LoRAs, all at once, add to each layer they adapt."""
    setting = Setting(quick=True)
    base = models.built("llama", models.llama_config(32, 2), setting)
    ids = models.token_ids(1, 4, setting)
    with models.folder() as where, torch.inference_mode():
        names = [f"a{i}" for i in range(adapters)]
        model = models.adapted(base, models.saved(base, names, where, rank=2))
        model(ids)  # the first forward also makes what several LoRAs at a layer keep
        before = counters.operations(lambda: base(ids))
        after = counters.operations(lambda: model(ids))
    return (after - before) / (2 * len(models.LINEARS))


@torch.inference_mode()
def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    rows: list[list[str]] = []
    widths = {32: 1, 64: 1} if setting.quick else LAYERS
    for width, layers in widths.items():
        for tokens, times, weights in _width(setting, width, layers):
            what = f"d = {width}, {plural(tokens, 'token')}"
            ratio = times.overhead_ratio(OURS, THEIRS)
            result.marks.append(
                Mark(f"{what}: overhead over PEFT's", ratio.median, 0.5, spread=ratio)
            )
            result.limits.append(Limit(what, weights, times.median("lora"), result.bandwidth))
            rows.append([what, *_row(times)])
    result.counters["added operations a layer, 1 adapter"] = added_operations(1)
    result.counters["added operations a layer, 8 adapters"] = added_operations(8)
    one = result.counters["added operations a layer, 1 adapter"]
    result.marks.append(Mark("added aten operations a layer", one, 2, counted=True))
    columns = ["", "base", "inarch", "PEFT", "inarch adds", "PEFT adds", "adapted, over PEFT's"]
    result.tables.append(Table(f"A forward, rank {RANK}", columns, rows))
    return result


def _width(setting: Setting, width: int, layers: int) -> Iterator[tuple[int, Samples, int]]:
    """For each number of tokens the times, and the bytes of weights that a forward reads."""
    config = models.llama_config(width, layers)
    with models.folder() as where:
        base = models.built("llama", config, setting)
        folders = models.saved(base, ["one"], where, rank=RANK)
        ours = models.adapted(base, folders)
        plain: Any = models.in_transformers(base, config, setting)
        theirs: Any = models.in_peft(models.in_transformers(base, config, setting), folders)
    for tokens in (1, 64):
        ids = models.token_ids(1, tokens, setting)
        runs = {
            "base": lambda ids=ids: base(ids),
            "lora": lambda ids=ids: ours(ids),
            "their base": lambda ids=ids: plain(input_ids=ids, use_cache=False).logits,
            "their lora": lambda ids=ids: theirs(input_ids=ids, use_cache=False).logits,
        }
        what = f"d = {width}, {plural(tokens, 'token')}"
        setting.compare(f"{what}: base", runs["base"](), runs["their base"]())
        setting.compare(f"{what}: adapted", runs["lora"](), runs["their lora"]())
        weights = tensor_bytes(list(ours.tree.state_dict().values()))
        yield tokens, interleaved(runs, setting), weights


def _row(times: Samples) -> list[str]:
    medians = [seconds(times.median(name)) for name in ("base", "lora", "their lora")]
    added = [f"{100 * (times.ratio(*pair).median - 1):.0f} %" for pair in (OURS, THEIRS)]
    return [*medians, *added, times.ratio("lora", "their lora").text()]
