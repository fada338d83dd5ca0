"""B10: from a checkpoint on disk to the first output, with its pages in memory and without.

A Llama of transformers' format. Warm, its file is in the page cache; cold, the file's pages are
dropped first. Both libraries are imported already. A process of its own counts what loading adds to
the peak of resident memory: a second copy of the weights would show there as twice the file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import inarch
from benchmarks import models
from benchmarks.measure import Setting, bandwidth, interleaved
from benchmarks.result import Limit, Mark, Result, Table, Workload, result_of, seconds

WORKLOAD = Workload(
    "B10",
    "A checkpoint to its first output, cold and warm",
    "transformers `from_pretrained`",
    "at least 3x faster; no second copy in memory",
    ("transformers",),
)


def saved(setting: Setting, where: Path) -> int:
    """Write a checkpoint; its bytes."""
    width, layers = (64, 2) if setting.quick else (1024, 12)
    config = models.llama_config(width, layers)
    model = models.built("llama", config, Setting(dtype=setting.dtype))
    save_file(model.tree.state_dict(), where / "model.safetensors", {"format": "pt"})
    dtype = str(setting.dtype).removeprefix("torch.")
    told = {**config, "architectures": ["LlamaForCausalLM"], "torch_dtype": dtype}
    (where / "config.json").write_text(json.dumps(told))
    with (where / "model.safetensors").open("rb") as file:
        os.fsync(file.fileno())
    return (where / "model.safetensors").stat().st_size


def forgotten(where: Path) -> None:
    """Drop the file's pages from the page cache, so that reading it goes to the disk."""
    with (where / "model.safetensors").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@torch.inference_mode()
def first_of_ours(where: Path, setting: Setting) -> torch.Tensor:
    model = inarch.load(where, device=setting.device)
    return model(models.token_ids(1, 8, setting))


@torch.inference_mode()
def first_of_theirs(where: Path, setting: Setting) -> torch.Tensor:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model: Any = transformers.LlamaForCausalLM.from_pretrained(where, dtype=setting.dtype)
    model = model.to(setting.device).eval()
    return model(input_ids=models.token_ids(1, 8, setting), use_cache=False).logits


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    rows: list[list[str]] = []
    with models.folder() as where:
        size = saved(setting, where)
        runs = {
            "inarch": lambda: first_of_ours(where, setting),
            "transformers": lambda: first_of_theirs(where, setting),
        }
        setting.compare("the first output", *(call() for call in runs.values()))
        for state in ("warm", "cold"):
            drop = (lambda: forgotten(where)) if state == "cold" else (lambda: None)
            times = interleaved(runs, setting, repeats=10, before=dict.fromkeys(runs, drop))
            faster = times.ratio("transformers", "inarch")
            what = f"{state}: times faster to the first output"
            result.marks.append(Mark(what, faster.median, 3.0, "at least", faster))
            rows.append([state, *[seconds(times.median(n)) for n in runs], faster.text()])
            result.limits.append(Limit(state, size, times.median("inarch"), result.bandwidth))
        if not setting.quick:  # a tiny file is nothing beside what else a process takes
            _tell_copies(result, {who: _alone(who, where, setting, size) for who in runs})
    title = f"To the first output of {size / 1e6:.0f} MB"
    result.tables.append(Table(title, ["page cache", *runs, "times faster"], rows))
    return result


def _tell_copies(result: Result, copies: dict[str, float]) -> None:
    what = "peak of resident memory that loading adds, over the file's bytes"
    result.marks.append(Mark(what, round(copies["inarch"], 3), 1.1))
    for who, share in copies.items():
        result.counters[f"{what}, {who}"] = round(share, 3)


def _alone(who: str, where: Path, setting: Setting, size: int) -> float:
    """In a process of its own: the growth of the peak of resident memory over the file's bytes."""
    code = f"from benchmarks.b10_loading import alone; alone({who!r}, {str(where)!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, cwd=models.ROOT
    )
    return int(done.stdout.split()[-1]) / size


def alone(who: str, where: str) -> None:
    """Print by how many bytes the peak of resident memory grows, on the CPU."""
    with models.folder() as tiny:
        quick = Setting(quick=True)
        saved(quick, tiny)
        first = first_of_ours if who == "inarch" else first_of_theirs
        first(tiny, quick)  # whatever a first time imports
    # `ru_maxrss` is no use: it begins at what the process that started this one had.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    first(Path(where), Setting())
    print(_status("VmHWM") - before)


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS is resident memory, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
