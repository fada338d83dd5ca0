"""B8: a hundred times merged and dropped again: what is left of the base.

Merging gives a new model and leaves the base's weights as they are, so there is nothing to undo.
The peers add to the weights in place and subtract again. Counted are the bits of the base's weights
that differ in the end, in float32, bfloat16 and float16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.counters import bits_changed
from benchmarks.measure import Setting, bandwidth, interleaved, tensor_bytes
from benchmarks.result import Limit, Mark, Result, Table, Workload, result_of, seconds

WORKLOAD = Workload(
    "B8",
    "100 cycles of merging and dropping, in three dtypes",
    "PEFT, diffusers",
    "0 bits of the base changed",
    ("transformers", "peft", "diffusers"),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def changed(dtype: torch.dtype, cycles: int = 100, width: int = 32) -> int:
    """The bits of our base that differ after so many cycles."""
    setting = Setting(dtype=dtype, quick=True)
    base = models.built("llama", models.llama_config(width, 2), setting)
    before = _copied(base.tree.state_dict())
    model = models.trained(base, "one", 1, rank=4)
    for _ in range(cycles):
        model.merge().without("one")
    return _bits(before, base.tree.state_dict())


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    cycles = 3 if setting.quick else 100
    rows: list[list[str]] = []
    for dtype in DTYPES:
        here = Setting(setting.device, dtype, setting.quick, setting.equal)
        label = str(dtype).removeprefix("torch.")
        ours, theirs = _llama(here)
        theirs_unet = _unet(here)
        times = interleaved({"ours": ours.cycle, "theirs": theirs.cycle}, here)
        found = [one.changed(cycles) for one in (ours, theirs, theirs_unet)]
        result.marks.append(Mark(f"{label}: bits changed", found[0], 0, "exactly", counted=True))
        for name, count in zip(("inarch", "PEFT", "diffusers"), found, strict=True):
            result.counters[f"{label}: bits of the base changed, {name}"] = count
        moved = 2 * tensor_bytes([p for n, p in ours.weights.items() if n.endswith("proj.weight")])
        result.limits.append(
            Limit(f"{label}: a cycle", moved, times.median("ours"), result.bandwidth)
        )
        medians = [seconds(times.median(name)) for name in ("ours", "theirs")]
        rows.append([label, *medians, times.ratio("ours", "theirs").text()])
    columns = ["dtype", "inarch", "PEFT", "ratio"]
    result.tables.append(Table("A cycle of merging and dropping", columns, rows))
    return result


class Cycled:
    """A base's weights, and what merges into them and takes out again."""

    def __init__(self, weights: Mapping[str, Tensor], cycle: Callable[[], object]) -> None:
        self.weights, self.cycle = weights, cycle
        self.before = _copied(weights)

    def changed(self, cycles: int) -> int:
        for _ in range(cycles):
            self.cycle()
        return _bits(self.before, self.weights)


def _llama(setting: Setting) -> tuple[Cycled, Cycled]:
    config = models.llama_config(64 if setting.quick else 512, 2)
    base = models.built("llama", config, setting)
    with models.folder() as where:
        folders = models.saved(base, ["one"], where, rank=8)
        model = models.adapted(base, folders)
        # The peer gets weights of its own, as it changes them.
        theirs = models.in_transformers(models.built("llama", config, setting), config, setting)
        peer: Any = models.in_peft(theirs, folders)
    ids = models.token_ids(2, 9, setting)
    merged = model.merge()
    peer.merge_adapter()
    expected = peer(input_ids=ids, use_cache=False).logits
    setting.compare(f"merged, {setting.dtype}", merged(ids), expected)
    peer.unmerge_adapter()

    def cycle() -> None:
        model.merge().without("one")

    def their_cycle() -> None:
        peer.merge_adapter()
        peer.unmerge_adapter()

    own = dict(base.tree.state_dict())
    kept = {n: p for n, p in peer.state_dict().items() if "lora_" not in n}
    return Cycled(own, cycle), Cycled(kept, their_cycle)


def _unet(setting: Setting) -> Cycled:
    """Diffusers' own way: `fuse_lora` and `unfuse_lora` of a UNet."""
    import peft

    channels = 8 if setting.quick else 16
    theirs: Any = models.in_diffusers(models.unet_of(setting, channels), setting)
    theirs.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)

    def cycle() -> None:
        theirs.fuse_lora()
        theirs.unfuse_lora()

    kept = {n: p for n, p in theirs.state_dict().items() if "lora_" not in n}
    return Cycled(kept, cycle)


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def _bits(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    return sum(bits_changed(before[name], after[name]) for name in before)
