"""B9: the memory that each further adapter takes, for LoRAs of rank 1, 8 and 64 and for (IA)^3.

Adapters are loaded one after another onto one base. What is fitted is the slope of the bytes of all
tensors that are alive (on a GPU, of the memory allocated there), as a multiple of the bytes that
the adapter's parameters have; and beside it the slope of the whole process's resident memory, in
which the Python objects are.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import inarch
from benchmarks import models
from benchmarks.measure import Setting, bandwidth, fitted, tensor_bytes
from benchmarks.result import Mark, Picture, Result, Table, Workload, number, result_of
from inarch.adapters import Model

WORKLOAD = Workload(
    "B9",
    "Memory against the number of adapters, rank 1 to (IA)^3",
    "PEFT",
    "slope at most 1.05x the adapters' bytes",
    ("transformers", "peft"),
)
LIBRARIES = ("inarch", "PEFT")
KINDS: Mapping[str, dict[str, Any]] = {
    "LoRA, rank 1": {"use": "lora", "rank": 1},
    "LoRA, rank 8": {"use": "lora", "rank": 8},
    "LoRA, rank 64": {"use": "lora", "rank": 64},
    "(IA)^3": {"use": "ia3"},
}


def config(setting: Setting) -> dict[str, Any]:
    width, layers = (32, 1) if setting.quick else (2048, 2)
    return models.llama_config(width, layers, intermediate_size=4 * width)


def saved(base: Model, kind: str, count: int, where: Path) -> dict[str, Path]:
    """Folders of so many adapters of a kind."""
    found: dict[str, Path] = {}
    for name in (f"a{i:02}" for i in range(count)):
        model = base.adapt(inarch.adapter(**KINDS[kind], name=name))
        with torch.no_grad():
            for parameter in model.adapter_parameters(name).values():
                parameter.normal_(1.0, 0.1)
        found[name] = model.save_adapter(name, where / kind[-4:].strip() / name)
    return found


class Held:
    """What holds adapters: ours one model each, PEFT's all in one."""

    def __init__(self, base: Model, kind: str, theirs: Any = None) -> None:
        self.base, self.theirs, self.kind = base, theirs, kind
        self.models: list[Any] = []

    def load(self, name: str, path: Path) -> None:
        if self.theirs is None:
            use = KINDS[self.kind]["use"]
            self.models.append(self.base.adapt(inarch.adapter(use, weights=path, name=name)))
            return
        import peft

        device = str(next(self.theirs.parameters()).device)
        if not self.models:
            made = peft.PeftModel.from_pretrained(self.theirs, str(path), name, torch_device=device)
            self.models.append(made)
        else:
            self.models[0].load_adapter(str(path), name, torch_device=device)

    def tensors(self) -> list[Tensor]:
        trees = [m.tree for m in self.models] if self.theirs is None else self.models
        return [t for tree in trees for t in (*tree.parameters(), *tree.buffers())]

    def bytes(self, device: torch.device) -> int:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            return torch.cuda.memory_allocated(device)
        return tensor_bytes(self.tensors())


def resident() -> int:
    """The process's resident bytes, after what is free was given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def slopes(
    held: Held, folders: Mapping[str, Path], size: Callable[[], int]
) -> tuple[list[int], float]:
    """The bytes after each adapter, and the bytes each adds, once the first two are there."""
    found: list[int] = []
    for name, path in folders.items():
        held.load(name, path)
        found.append(size())
    counts = range(2, len(found))
    return found, float(np.polyfit(list(counts), found[2:], 1)[0])


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    rows: list[list[str]] = []
    for kind in ("LoRA, rank 1", "(IA)^3") if setting.quick else KINDS:
        made, whole, own = _kind(setting, kind)
        slope = made["inarch"][1]
        what = f"{kind}: bytes of tensors an adapter adds, over its own"
        result.marks.append(Mark(what, round(slope / own, 4), 1.05, counted=True))
        shares = [*(each for _, each in made.values()), *whole.values()]
        rows.append([kind, f"{own / 1e6:.3f} MB", *[number(round(s / own, 3)) for s in shares]])
        if kind == "LoRA, rank 8":
            lines = [
                fitted(label, range(1, len(sizes)), [s - sizes[0] for s in sizes[1:]])
                for label, (sizes, _) in made.items()
            ]
            title = "Bytes of tensors beyond the first adapter, LoRA of rank 8"
            result.pictures.append(Picture(title, "further adapters", "bytes", lines))
    columns = ["kind", "own bytes", *LIBRARIES, *(f"{label}, resident" for label in LIBRARIES)]
    rows = [row + [""] * (len(columns) - len(row)) for row in rows]
    result.tables.append(Table("What an adapter adds, over its own bytes", columns, rows))
    result.remarks.append("The limit is 1: an adapter's parameters are there.")
    return result


def _kind(
    setting: Setting, kind: str
) -> tuple[dict[str, tuple[list[int], float]], dict[str, float], int]:
    """Bytes of tensors and their slope, the slope of resident memory, and an adapter's bytes."""
    base = models.built("llama", config(setting), setting)
    theirs = models.in_transformers(base, config(setting), setting)
    with models.folder() as where:
        folders = saved(base, kind, 5 if setting.quick else 10, where)
        ours, peer = Held(base, kind), Held(base, kind, theirs)
        made = {
            label: slopes(held, folders, functools.partial(held.bytes, setting.device))
            for label, held in (("inarch", ours), ("PEFT", peer))
        }
        whole: dict[str, float] = {}
        if not setting.quick:  # each is a process of its own
            whole = {label: _resident(kind, label, folders) for label in LIBRARIES}
    last = next(reversed(folders))
    own = tensor_bytes(list(ours.models[-1].adapter_parameters(last).values()))
    _compare(setting, kind, ours, peer, list(folders))
    return made, whole, own


def _compare(setting: Setting, kind: str, ours: Held, peer: Held, names: list[str]) -> None:
    """The last adapter of both, acting, gives equal outputs."""
    ids = models.token_ids(1, 5, setting)
    peer.models[0].base_model.set_adapter(names[-1])
    with torch.inference_mode():
        logits = peer.models[0](input_ids=ids, use_cache=False).logits
        setting.compare(kind, ours.models[-1](ids), logits)


def _resident(kind: str, label: str, folders: Mapping[str, Path]) -> float:
    """The slope of a fresh process's resident memory, on the CPU, without anything else in it."""
    paths = {name: str(path) for name, path in folders.items()}
    given = {"kind": kind, "label": label, "folders": paths}
    code = "from benchmarks.b09_memory import alone; alone()"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        cwd=models.ROOT,
    )
    return float(done.stdout.split()[-1])


def alone() -> None:
    """In a process of its own: load the folders that stdin names, print what each adds."""
    given = json.load(sys.stdin)
    setting = Setting()
    base = models.built("llama", config(setting), setting)
    theirs = None
    if given["label"] == "PEFT":
        theirs = models.in_transformers(base, config(setting), setting)
    held = Held(base, given["kind"], theirs)
    folders = {name: Path(path) for name, path in given["folders"].items()}
    with torch.inference_mode():
        base(models.token_ids(1, 5, setting))
    _, slope = slopes(held, folders, resident)
    print(slope)
