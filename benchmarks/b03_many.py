"""B3: 1 to 16 LoRAs active at once on every linear layer.

Ours against PEFT on a Llama, and against diffusers, which sets PEFT's adapters, on a UNet of
Stable Diffusion 1.5's depth. The overhead is the adapted model's time less the base's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.b02_lora import added_operations
from benchmarks.measure import Samples, Setting, bandwidth, fitted, interleaved, tensor_bytes
from benchmarks.result import Limit, Mark, Picture, Result, Table, Workload, result_of, seconds

WORKLOAD = Workload(
    "B3",
    "1 to 16 LoRAs active at once",
    "PEFT, diffusers",
    "8 within 1.25x of 1; overhead at most a quarter",
    ("transformers", "peft", "diffusers"),
)
COUNTS = (1, 2, 4, 8, 16)
RANK = 8
Run = Callable[[], object]


@torch.inference_mode()
def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    counts = COUNTS[:2] if setting.quick else COUNTS
    most = counts[-1] if setting.quick else 8
    for name, times in (
        ("Llama", _llama(setting, counts, result)),
        ("UNet", _unet(setting, (1, most), result)),
    ):
        peer = "PEFT" if name == "Llama" else "diffusers"
        several = times.ratio(f"inarch {most}", "inarch 1")
        what = f"{name}: time of {most} active over time of 1"
        result.marks.append(Mark(what, several.median, 1.25, spread=several))
        over = times.overhead_ratio((f"inarch {most}", "base"), (f"{peer} {most}", "their base"))
        what = f"{name}: overhead of {most} over {peer}'s"
        result.marks.append(Mark(what, over.median, 0.25, spread=over))
    eight = added_operations(8)
    result.counters["added operations a layer, 8 adapters"] = eight
    result.counters["added operations a layer, 1 adapter"] = added_operations(1)
    return result


def _llama(setting: Setting, counts: Sequence[int], result: Result) -> Samples:
    width, layers = (32, 1) if setting.quick else (512, 8)
    config = models.llama_config(width, layers)
    base = models.built("llama", config, setting)
    ids = models.token_ids(1, 16, setting)
    plain: Any = models.in_transformers(base, config, setting)
    runs: dict[str, Run] = {
        "base": lambda: base(ids),
        "their base": lambda: plain(input_ids=ids, use_cache=False).logits,
    }
    with models.folder() as where:
        folders = models.saved(base, [f"a{i:02}" for i in range(counts[-1])], where, rank=RANK)
        for count in counts:
            some = dict(itertools.islice(folders.items(), count))
            ours = models.adapted(base, some)
            theirs = models.in_peft(models.in_transformers(base, config, setting), some)
            runs[f"inarch {count}"] = lambda m=ours: m(ids)
            runs[f"PEFT {count}"] = lambda m=theirs: m(input_ids=ids, use_cache=False).logits
            outputs = [runs[f"{who} {count}"]() for who in ("inarch", "PEFT")]
            setting.compare(f"Llama, {count} active", *outputs, reordered=True)
            if count == counts[-1]:
                size = tensor_bytes(list(ours.tree.state_dict().values()))
    times = interleaved(runs, setting)
    _tell(result, f"Llama, d = {width}, {layers} layers, rank {RANK}", times, counts, "PEFT")
    last = times.median(f"inarch {counts[-1]}")
    result.limits.append(Limit(f"Llama, {counts[-1]} active", size, last, result.bandwidth))
    return times


def _unet(setting: Setting, counts: Sequence[int], result: Result) -> Samples:
    channels, size = (8, 8) if setting.quick else (32, 16)
    model = models.unet_of(setting, channels)
    x, step, text = models.unet_inputs(2 * channels, size, setting)
    plain = models.in_diffusers(model, setting)
    tree = model.trees["unet"]
    runs: dict[str, Run] = {
        "base": lambda: tree(x, timestep=step, text=text),
        "their base": lambda: plain(x, step, text, return_dict=False)[0],
    }
    with models.folder() as where:
        names = [f"a{i:02}" for i in range(counts[-1])]
        targets = models.attention_linears(model)
        options = {"rank": RANK, "targets": targets, "format": "diffusers"}
        folders = models.saved(model, names, where, **options)
        for count in counts:
            some = dict(itertools.islice(folders.items(), count))
            ours = models.adapted(model, some).trees["unet"]
            theirs = _in_diffusers(model, setting, some)
            runs[f"inarch {count}"] = lambda t=ours: t(x, timestep=step, text=text)
            runs[f"diffusers {count}"] = lambda m=theirs: m(x, step, text, return_dict=False)[0]
            outputs = [runs[f"{who} {count}"]() for who in ("inarch", "diffusers")]
            setting.compare(f"UNet, {count} active", *outputs, reordered=True)
    times = interleaved(runs, setting)
    _tell(result, f"UNet, {channels} channels, rank {RANK}", times, counts, "diffusers")
    return times


def _in_diffusers(model: Any, setting: Setting, folders: dict[str, Path]) -> torch.nn.Module:
    theirs = models.in_diffusers(model, setting)
    for name, folder in folders.items():
        models.load_in_diffusers(theirs, name, folder)
    theirs.set_adapters(list(folders))
    return theirs.requires_grad_(False).eval()


def _tell(result: Result, title: str, times: Samples, counts: Sequence[int], peer: str) -> None:
    lines = [
        fitted(who, counts, [times.median(f"{who} {count}") for count in counts])
        for who in ("inarch", peer)
    ]
    if len(counts) > 2:
        result.pictures.append(Picture(title, "adapters active", "seconds", lines))
    rows = [["0", seconds(times.median("base")), seconds(times.median("their base")), ""]]
    for count in counts:
        medians = [seconds(times.median(f"{who} {count}")) for who in ("inarch", peer)]
        ratio = times.ratio(f"inarch {count}", f"{peer} {count}").text()
        rows.append([str(count), *medians, ratio])
    result.tables.append(Table(title, ["active", "inarch", peer, "ratio"], rows))
