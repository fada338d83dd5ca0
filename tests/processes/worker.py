"""One of several processes that a test starts. Arguments: rank, size, a folder to meet in.

It runs every scene that `asked.json` in the folder lists, and rank 0 leaves `found.pt`.
"""

from __future__ import annotations

import datetime
import gc
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import scenes
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode

import inarch
from inarch.distribute import load_tensors, save_tensors
from inarch.errors import InarchError
from inarch.testing.tiny import tiny_models
from inarch_training import train


def spread(model: Any, plan: str) -> Any:
    """`fsdp` over all processes, or `fsdp by tensor` over a mesh of two by two."""
    name, by, _ = plan.partition(" by ")
    names = ("data", "tensor")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=names) if by else None
    return inarch.shard(model, name, mesh)  # type: ignore[arg-type]


def ran(label: str, stack: str, plan: str, folder: Path) -> dict[str, Any]:
    """Logits of this process's rows, every gradient made whole, and what was saved."""
    model = scenes.adapted(label, stack)
    layers = model.pristine[""].select("model.layers.*.{self_attn,mlp}.{q_proj,down_proj}")
    whole = [weakref.ref(found.module) for found in layers]
    del layers
    model = spread(model, plan)
    gc.collect()
    kept = sum(layer() is not None for layer in whole)
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
    late: list[str] = []
    for change in (lambda: model.adapt(scenes.lora("late")), lambda: model.swap("mine", folder)):
        try:
            change()
        except InarchError as error:
            late.append(error.code)
    return {
        "logits": logits.detach(),
        "gradients": gradients,
        "norm": norm,
        "late": late,
        "kept": kept,
    }


def refused(label: str, stack: str, plan: str, _folder: Path) -> dict[str, Any]:
    model = scenes.adapted(label, stack)
    before = {name: id(p) for name, p in scenes.named(model)}
    try:
        spread(model, plan)
    except InarchError as error:
        same = before == {name: id(p) for name, p in scenes.named(model)}
        return {"code": error.code, "text": str(error), "untouched": same}
    return {"code": ""}


def generated(label: str, stack: str, plan: str, _folder: Path) -> dict[str, Any]:
    model = spread(scenes.adapted(label, stack), plan)
    prompts = scenes.ids().tolist()
    steps = model.generate_ids(prompts, max_new_tokens=6, stop=frozenset())
    return {"tokens": list(steps)}


def trained(label: str, stack: str, plans: str, folder: Path) -> dict[str, Any]:
    """The losses of a run of two steps under each plan, and the adapter made whole."""
    model, losses = scenes.adapted(label, stack), [0.0]
    settings: dict[str, Any] = {"batch_size": 3, "clip": 0.1, "schedule": "constant"}
    for number, plan in enumerate(plans.split(" then ")):
        model = spread(scenes.adapted(label, stack), plan)
        settings |= {"steps": 2 * number + 2, "resume": number > 0}
        losses = train(model, scenes.examples(), adapter="mine", out=folder, **settings).losses
    parameters = model.adapters["mine"].parameters()
    whole = {name: model.layout.full(p, p) for name, p in parameters.items()}
    return {"losses": losses, "parameters": whole}


def strange(label: str, stack: str, plan: str, folder: Path) -> dict[str, Any]:
    """How other weights in one process, and other examples, are refused in both."""
    other = scenes.adapted(label, stack)
    with torch.no_grad():
        next(other.trees[""].parameters()).add_(dist.get_rank())
    examples = scenes.examples()[dist.get_rank() :]
    told: list[str] = []
    for work in (
        lambda: spread(other, plan),
        lambda: train(
            spread(scenes.adapted(label, stack), plan), examples, adapter="mine", out=folder
        ),
    ):
        try:
            work()
        except InarchError as error:
            told.append(f"{error.code} {error.what}")
    return {"told": told, "left": folder.exists()}


def unsaved(label: str, stack: str, plan: str, folder: Path) -> dict[str, Any]:
    """The code with which a file that can't be is refused, in every process."""
    model = spread(scenes.adapted(label, stack), plan)
    try:
        model.save_adapter(model.adapters[0].name, folder)
    except InarchError as error:
        return {"code": error.code}
    return {"code": ""}


def fewer(label: str, stack: str, plan: str, _folder: Path) -> dict[str, Any]:
    """Logits without each adapter, or the code of the refusal, and which terms ran together.

    And with what words text is refused, if it is.
    """
    model = spread(scenes.adapted(label, stack), plan)
    found: dict[str, Any] = {}
    with torch.no_grad():
        for name in model.adapters.names:
            try:
                found[name] = model.without(name)(scenes.ids())
            except InarchError as error:
                found[name] = error.code
        model(scenes.ids())
    calls = [call for chain in model.tree.modules() for call in vars(chain).values()]
    banks = [call.bank for call in calls if type(call).__name__ == "JointLoRA"]
    refusal = ""
    try:
        list(model.generate_ids(scenes.ids().tolist(), max_new_tokens=2))
    except InarchError as error:
        refusal = error.what
    together = [bank is not None for bank in banks]
    return {"without": found, "together": together, "generates": refusal}


def counted(label: str, stack: str, plan: str, _folder: Path) -> dict[str, int]:
    """The collectives of a forward, of a backward, of adding up gradients, and without them."""
    model = spread(scenes.adapted(label, stack), plan)
    for tree in model.trees.values():
        tree.requires_grad_(True)
    parameters = [p for _, p in scenes.named(model)]
    counts: dict[str, int] = {}
    for _ in range(2):  # FSDP2 learns in the first what it does from the second on
        with CommDebugMode() as mode:
            loss = scenes.loss_of(model(scenes.ids()), scenes.ids())
        counts.setdefault("first", mode.get_total_counts())
        counts["forward"] = mode.get_total_counts()
        with CommDebugMode() as mode:
            loss.backward()
        counts["backward"] = mode.get_total_counts()
        with CommDebugMode() as mode:
            model.layout.reduce_gradients(parameters)
        counts["step"] = mode.get_total_counts()
    for tree in model.trees.values():
        tree.requires_grad_(False)
    for _ in range(2):
        with CommDebugMode() as mode:
            model(scenes.ids())
        counts["without gradients"] = mode.get_total_counts()
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
        model = spread(model, plan)
        given = [model.trees[e.tree](**e.inputs) for e in model.examples()]
    pairs = zip(_tensors(given), _tensors(expected), strict=True)
    far = [float((one - other).abs().max() / other.abs().max()) for one, other in pairs]
    return {"far": max(far), "split": len(model.layout.placed)}


def drawn(label: str, stack: str, plan: str, folder: Path) -> dict[str, Any]:
    """What every tree of an image model gives for this process's rows, and every gradient."""
    model = spread(scenes.image_model(label, stack), plan)
    part, parts = model.layout.part_of_data
    values, loss = scenes.drawn_of(model, part, parts)
    loss.backward()
    parameters = dict(scenes.named(model))
    model.layout.reduce_gradients(parameters.values())
    gradients = {
        name: model.layout.full(torch.zeros_like(p) if p.grad is None else p.grad, p)
        for name, p in parameters.items()
    }
    norm = model.layout.norm(parameters.values())
    for member in model.adapters:
        model.save_adapter(member.name, folder / member.name)
    stored = {name: model.layout.stored(p, p) for name, p in parameters.items()}
    save_tensors(stored, folder / "dcp")
    kept = {name: model.layout.full(p, p).clone() for name, p in parameters.items()}
    with torch.no_grad():
        for p in parameters.values():
            p.zero_()
    load_tensors(stored, folder / "dcp")
    for name, p in parameters.items():
        model.layout.restored(stored[name], p, p)
    same = all(torch.equal(model.layout.full(p, p), kept[name]) for name, p in parameters.items())
    rules = [rule for rules in model.layout.placed.values() for rule in rules.values()]
    halves = sum(rule.pieces == 2 for rule in rules)
    return {
        "values": values,
        "gradients": gradients,
        "norm": norm,
        "same": same,
        "halves": halves,
    }


def pictured(path: str, stack: str, plan: str, _folder: Path) -> dict[str, Any]:
    """A picture, and one without the adapter that acts in the first steps only."""
    model = spread(scenes.painter(path, stack), plan)
    picture = scenes.picture_of(model)
    model.adapters["style"].scale = 0.0
    return {"picture": picture, "plain": scenes.picture_of(model)}


def every(family: str, kind: str, plan: str, _folder: Path) -> dict[str, Any]:
    """How far outputs and gradients are from those of one process; all have the same rows."""
    values, loss = scenes.answered(whole := scenes.with_one(family, kind))
    loss.backward()
    expected = {name: p.grad for name, p in scenes.named(whole)}
    try:
        model = spread(scenes.with_one(family, kind), plan)
    except InarchError as error:
        return {"refused": error.code, "where": error.where, "remedy": error.remedy}
    given, loss = scenes.answered(model)
    loss.backward()
    parameters = dict(scenes.named(model))
    model.layout.reduce_gradients(parameters.values())
    pairs = list(zip(given, values, strict=True))
    times = 1 if plan == "tensor" else dist.get_world_size()
    for name, p in parameters.items():
        gradient = model.layout.full(torch.zeros_like(p) if p.grad is None else p.grad, p)
        other = expected[name]
        pairs.append((gradient, torch.zeros_like(gradient) if other is None else other * times))
    apart = [float((a - b).abs().max() / (b.abs().max() + 1e-6)) for a, b in pairs if b.numel()]
    return {"far": max(apart), "names": set(parameters) == set(expected)}


def inside(family: str, stack: str, plan: str, folder: Path) -> dict[str, Any]:
    """Whether an adapter of the tree that an adapter brings is saved as one process saves it."""
    model = scenes.with_inner(family, stack)
    paths = [folder / str(dist.get_rank()), folder / "shared"]
    model.adapters["outer"].inner.save_adapter("inner", paths[0])
    sharded = spread(model, plan)
    sharded.adapters["outer"].inner.save_adapter("inner", paths[1])
    names = sorted(file.name for file in paths[0].iterdir())
    same = [scenes.content(paths[0] / n) == scenes.content(paths[1] / n) for n in names]
    return {"same": same, "names": names}


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for one in value for tensor in _tensors(one)]


TASKS = {
    "strange": strange,
    "trained": trained,
    "unsaved": unsaved,
    "alike": alike,
    "inside": inside,
    "drawn": drawn,
    "pictured": pictured,
    "every": every,
    "counted": counted,
    "fewer": fewer,
    "ran": ran,
    "refused": refused,
    "generated": generated,
}


def work(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=120),
    )
    found: dict[str, Any] = {}
    for task, label, stack, plan in json.loads((folder / "asked.json").read_text()):
        name = "-".join((task, label, stack, plan))
        found[name] = TASKS[task](label, stack, plan, folder / name)
    everyones: list[Any] = [None] * size
    dist.all_gather_object(everyones, found)
    if rank == 0:
        torch.save(everyones, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
