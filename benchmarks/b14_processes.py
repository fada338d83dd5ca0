"""B14: two processes over gloo: FSDP2, tensor parallelism, and both with a LoRA, equal to one.

Each plan's logits are held against those of one process, and a checkpoint that two processes saved
is loaded in one. Counted are the collectives of a forward and a backward, for each block, with a
LoRA and without. Two processes on one machine say nothing of speed, so no times are taken; they
run on the CPU whatever the device.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import inarch
from benchmarks import models
from benchmarks.measure import Setting, bandwidth
from benchmarks.result import Mark, Result, Table, Workload, result_of
from inarch.adapters import Model
from inarch.testing.workers import side_by_side

WORKLOAD = Workload(
    "B14",
    "Two processes: FSDP2, TP, TP with a LoRA, a checkpoint from two to one",
    "one process",
    "equal; collectives a block as without the adapter",
)
BLOCKS = 4
PLANS = ("tensor", "fsdp")
STACKS = ("none", "lora")


def adapted(stack: str) -> Model:
    """The same bits in every process."""
    base = models.built("llama", models.llama_config(64, BLOCKS), Setting())
    return base if stack == "none" else models.trained(base, "one", 1, rank=4)


def ids() -> torch.Tensor:
    return models.token_ids(4, 9, Setting())


def loss_of(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A sum, so that those of parts add up to that of the whole."""
    flat = logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(flat, rows[:, 1:].flatten(), reduction="sum")


def run(setting: Setting) -> Result:
    setting = Setting(quick=setting.quick, equal=setting.equal)
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    rows: list[list[str]] = []
    counted: dict[str, dict[str, int]] = {}
    plans = PLANS[:1] if setting.quick else PLANS
    with models.folder() as where:
        found = _both(where, plans)
        for plan in plans:
            for stack in STACKS:
                key = f"{plan} {stack}"
                whole = adapted(stack)(ids()).detach()
                parts = [one[key]["logits"] for one in found]
                given = parts[0] if plan == "tensor" else torch.cat(parts)
                setting.compare(f"{key}: logits", given, whole, reordered=True)
                setting.compare(f"{key}: the checkpoint of two in one", *_restored(where, key))
                counted[key] = found[0][key]["collectives"]
                each = [f"{counted[key][way] / BLOCKS:g}" for way in ("forward", "backward")]
                rows.append([plan, stack, *each])
    for plan in plans:
        for way in ("forward", "backward"):
            more = counted[f"{plan} lora"][way] - counted[f"{plan} none"][way]
            what = f"{plan}: collectives that a LoRA adds to a {way}"
            result.marks.append(Mark(what, more, 0, "exactly", counted=True))
            result.counters[f"{plan}: collectives of a {way}, without"] = counted[f"{plan} none"][
                way
            ]
    columns = ["plan", "adapter", "forward", "backward"]
    result.tables.append(Table("Collectives a block", columns, rows))
    result.remarks.append("The limit of collectives is the plan's own, without an adapter.")
    return result


def _restored(where: Path, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What two processes saved, read by one that knows nothing of them; and what it was."""
    from inarch.distribute import load_tensors

    stored = dict(adapted(key.split()[1]).tree.named_parameters())
    blank = {name: torch.zeros_like(p) for name, p in stored.items()}
    load_tensors(blank, where / key / "dcp")
    return blank, {name: p.detach() for name, p in stored.items()}


def _both(where: Path, plans: Sequence[str]) -> list[dict[str, Any]]:
    """What each of two gloo processes found."""
    code = "from benchmarks.b14_processes import work; work({}, {!r}, {!r})"
    given = [code.format(rank, str(where), tuple(plans)) for rank in range(2)]
    side_by_side([["-W", "ignore", "-c", one] for one in given], folder=models.ROOT)
    return torch.load(where / "found.pt", weights_only=False)


def work(rank: int, folder: str, plans: Sequence[str]) -> None:
    """One of the two processes."""
    from torch.distributed.tensor.debug import CommDebugMode

    from inarch.distribute import save_tensors

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )
    found: dict[str, Any] = {}
    for plan in plans:
        for stack in STACKS:
            model: Any = inarch.shard(adapted(stack), plan)
            model.tree.requires_grad_(True)
            part, parts = model.layout.part_of_data
            rows = ids().chunk(parts)[part]
            for _ in range(2):  # FSDP2 learns in the first what it does from the second on
                with CommDebugMode() as forward:
                    logits = model(rows)
                with CommDebugMode() as backward:
                    loss_of(logits, rows).backward()
            counts = {
                "forward": forward.get_total_counts(),
                "backward": backward.get_total_counts(),
            }
            where = Path(folder) / f"{plan} {stack}" / "dcp"
            save_tensors(
                {n: model.layout.stored(p, p) for n, p in model.tree.named_parameters()}, where
            )
            found[f"{plan} {stack}"] = {"logits": logits.detach(), "collectives": counts}
    everyones: list[Any] = [None, None]
    dist.all_gather_object(everyones, found)
    if rank == 0:
        torch.save(everyones, Path(folder) / "found.pt")
    dist.barrier()
    dist.destroy_process_group()
