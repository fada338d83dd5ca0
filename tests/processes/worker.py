"""One of two processes that a test starts. Arguments: rank, a folder to meet in and write to.

It runs every scene that `asked.json` in the folder lists, and rank 0 leaves `found.pt`.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import scenes
import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

import inarch
from inarch.distribute import save_tensors
from inarch.errors import InarchError
from inarch.testing.tiny import tiny_models


def ran(label: str, stack: str, plan: str, folder: Path) -> dict[str, Any]:
    """Logits of this process's rows, every gradient made whole, and what was saved."""
    model = scenes.adapted(label, stack)
    model = inarch.shard(model, plan)  # type: ignore[arg-type]
    for tree in model.trees.values():
        tree.requires_grad_(True)
    part, parts = model.layout.part_of_data
    rows = scenes.ids().chunk(parts)[part]
    logits = model(rows)
    scenes.loss_of(logits, rows).backward()
    parameters = dict(scenes.named(model))
    model.layout.reduce_gradients(parameters.values())
    norm = model.layout.norm(parameters.values())
    gradients = {
        name: model.layout.full(torch.zeros_like(p) if p.grad is None else p.grad, p)
        for name, p in parameters.items()
    }
    for member in model.adapters:
        if not member.merged:
            model.save_adapter(member.name, folder / member.name)
    stored = {name: model.layout.stored(p, p) for name, p in parameters.items()}
    save_tensors(stored, folder / "dcp")
    code = ""
    try:
        model.adapt(scenes.lora("late"))
    except InarchError as error:
        code = error.code
    return {
        "logits": logits.detach(),
        "gradients": gradients,
        "norm": norm,
        "late": code,
    }


def refused(label: str, stack: str, plan: str, _folder: Path) -> dict[str, Any]:
    model = scenes.adapted(label, stack)
    before = {name: id(p) for name, p in scenes.named(model)}
    try:
        inarch.shard(model, plan)  # type: ignore[arg-type]
    except InarchError as error:
        same = before == {name: id(p) for name, p in scenes.named(model)}
        return {"code": error.code, "text": str(error), "untouched": same}
    return {"code": ""}


def generated(label: str, stack: str, plan: str, _folder: Path) -> dict[str, Any]:
    model = inarch.shard(scenes.adapted(label, stack), plan)  # type: ignore[arg-type]
    prompts = scenes.ids().tolist()
    steps = model.generate_ids(prompts, max_new_tokens=6, stop=frozenset())
    return {"tokens": list(steps)}


def counted(label: str, stack: str, plan: str, _folder: Path) -> dict[str, int]:
    """The collectives of one forward, of one backward, and of adding up gradients after it."""
    model = inarch.shard(scenes.adapted(label, stack), plan)  # type: ignore[arg-type]
    for tree in model.trees.values():
        tree.requires_grad_(True)
    parameters = [p for _, p in scenes.named(model)]
    counts: dict[str, int] = {}
    for _ in range(2):  # FSDP2 learns in the first what it does from the second on
        with CommDebugMode() as mode:
            loss = scenes.loss_of(model(scenes.ids()), scenes.ids())
        counts["forward"] = mode.get_total_counts()
        with CommDebugMode() as mode:
            loss.backward()
        counts["backward"] = mode.get_total_counts()
        with CommDebugMode() as mode:
            model.layout.reduce_gradients(parameters)
        counts["step"] = mode.get_total_counts()
    return counts


def alike(family: str, stack: str, plan: str, _folder: Path) -> dict[str, Any]:
    """How far the forwards of every tree of a family are from those of one process."""
    model = next(iter(tiny_models(families=[family]))).build(seed=1)
    model = model.adapt(*scenes.STACKS[stack]())
    for member in model.adapters:
        for parameter in member.parameters().values():
            parameter.data.add_(0.1)
    with torch.no_grad():
        expected = [model.trees[e.tree](**e.inputs) for e in model.examples()]
        model = inarch.shard(model, plan)  # type: ignore[arg-type]
        given = [model.trees[e.tree](**e.inputs) for e in model.examples()]
    pairs = zip(_tensors(given), _tensors(expected), strict=True)
    far = [float((one - other).abs().max() / other.abs().max()) for one, other in pairs]
    return {"far": max(far), "split": len(model.layout.placed)}


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for one in value for tensor in _tensors(one)]


TASKS = {"alike": alike, "counted": counted, "ran": ran, "refused": refused, "generated": generated}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )
    found: dict[str, Any] = {}
    for task, label, stack, plan in json.loads((folder / "asked.json").read_text()):
        name = "-".join((task, label, stack, plan))
        found[name] = TASKS[task](label, stack, plan, folder / name)
    everyones: list[Any] = [None, None]
    dist.all_gather_object(everyones, found)
    if rank == 0:
        torch.save(everyones, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
