"""B10: from a checkpoint on disk to the first output, with its pages in memory and without.

A Llama of transformers' format and a Stable Diffusion 1.5 UNet of diffusers', each at full depth:
wide, and so narrow that only what is done beside reading is left. Warm, the file is in the page
cache; cold, its pages are dropped first. Both libraries are imported already. A process of its own
counts what loading adds to the peak of memory, on a GPU to the device's: a second copy of the
weights would show there as twice the file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import inarch
from benchmarks import models
from benchmarks.counters import peak_bytes
from benchmarks.measure import Setting, bandwidth, interleaved
from benchmarks.result import Limit, Mark, Result, Table, Workload, result_of, seconds

WORKLOAD = Workload(
    "B10",
    "A checkpoint to its first output, cold and warm",
    "transformers, diffusers `from_pretrained`",
    "at least 3x faster; no second copy in memory",
    ("transformers", "diffusers"),
)
COPIES = "peak of memory that loading adds, over the file's bytes"


@dataclass(frozen=True)
class Kind:
    """A kind of model: how a checkpoint of it is written, and read by both libraries.

    Attributes:
        peer: the library whose format it is.
        widths: of a narrow model and a wide one.
        write: writes a checkpoint of a width to a folder.
        ours, theirs: from the folder to the first output.
    """

    peer: str
    widths: tuple[int, int]
    write: Callable[[int, Setting, Path], None]
    ours: Callable[[Path, Setting], Tensor]
    theirs: Callable[[Path, Setting], Tensor]

    def saved(self, width: int, setting: Setting, where: Path) -> int:
        """Write a checkpoint of a width to the disk; its bytes."""
        self.write(width, setting, where)
        [file] = where.glob("*.safetensors")
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        return file.stat().st_size


def forgotten(where: Path) -> None:
    """Drop the file's pages from the page cache, so that reading it goes to the disk."""
    for path in where.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write_llama(width: int, setting: Setting, where: Path) -> None:
    config = models.llama_config(width, 2 if setting.quick else 12)
    model = models.built("llama", config, Setting(dtype=setting.dtype))
    save_file(model.tree.state_dict(), where / "model.safetensors", {"format": "pt"})
    dtype = str(setting.dtype).removeprefix("torch.")
    told = {**config, "architectures": ["LlamaForCausalLM"], "torch_dtype": dtype}
    (where / "config.json").write_text(json.dumps(told))


@torch.inference_mode()
def _our_llama(where: Path, setting: Setting) -> Tensor:
    return inarch.load(where, device=setting.device)(models.token_ids(1, 8, setting))


@torch.inference_mode()
def _their_llama(where: Path, setting: Setting) -> Tensor:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model: Any = transformers.LlamaForCausalLM.from_pretrained(where, dtype=setting.dtype)
    model = model.to(setting.device).eval()
    return model(input_ids=models.token_ids(1, 8, setting), use_cache=False).logits


def _write_unet(channels: int, setting: Setting, where: Path) -> None:
    on_host = Setting(dtype=setting.dtype)
    model = models.unet_of(on_host, channels, shallow=setting.quick)
    models.in_diffusers(model, on_host).save_pretrained(where)


@torch.inference_mode()
def _our_unet(where: Path, setting: Setting) -> Tensor:
    model = inarch.load(where, device=setting.device)
    x, step, text = models.unet_inputs(model.config.unet.context[0], 8, setting)
    return model.trees["unet"](x, timestep=step, text=text)


@torch.inference_mode()
def _their_unet(where: Path, setting: Setting) -> Tensor:
    import diffusers

    model = diffusers.UNet2DConditionModel.from_pretrained(where, torch_dtype=setting.dtype)
    model = model.to(setting.device).eval()
    inputs = models.unet_inputs(model.config.cross_attention_dim, 8, setting)
    return model(*inputs, return_dict=False)[0]


KINDS = {
    "Llama": Kind("transformers", (64, 1024), _write_llama, _our_llama, _their_llama),
    "UNet": Kind("diffusers", (8, 96), _write_unet, _our_unet, _their_unet),
}


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    for label, kind in KINDS.items():
        for width in kind.widths[:1] if setting.quick else kind.widths:
            with models.folder() as where:
                size = kind.saved(width, setting, where)
                _measure(setting, result, f"{label} of {size / 1e6:.3g} MB", kind, where)
                if width == kind.widths[1]:  # a small file is nothing beside what else is there
                    _tell_copies(setting, result, label, where)
    return result


def _measure(setting: Setting, result: Result, title: str, kind: Kind, where: Path) -> None:
    runs = {
        "inarch": lambda: kind.ours(where, setting),
        kind.peer: lambda: kind.theirs(where, setting),
    }
    setting.compare(f"{title}: the first output", *(call() for call in runs.values()))
    rows: list[list[str]] = []
    [file] = where.glob("*.safetensors")
    for state in ("warm", "cold"):
        drop = (lambda: forgotten(where)) if state == "cold" else (lambda: None)
        times = interleaved(runs, setting, before=dict.fromkeys(runs, drop))
        faster = times.ratio(kind.peer, "inarch")
        what = f"{title}, {state}: times faster to the first output"
        result.marks.append(Mark(what, faster.median, 3.0, "at least", faster))
        rows.append([state, *[seconds(times.median(n)) for n in runs], faster.text()])
        size, taken = file.stat().st_size, times.median("inarch")
        result.limits.append(Limit(f"{title}, {state}", size, taken, result.bandwidth))
    columns = ["page cache", *runs, "times faster"]
    result.tables.append(Table(f"To the first output of a {title}", columns, rows))


def _tell_copies(setting: Setting, result: Result, label: str, where: Path) -> None:
    for who in ("inarch", KINDS[label].peer):
        share = round(copies(who, label, where, setting), 3)
        result.counters[f"{label}, {who}: {COPIES}"] = share
        if who == "inarch":
            result.marks.append(Mark(f"{label}: {COPIES}", share, 1.1))


def copies(who: str, label: str, where: Path, setting: Setting) -> float:
    """In a process of its own: the growth of the peak of memory over the file's bytes."""
    kind = str(setting.dtype).removeprefix("torch.")
    given = ", ".join(map(repr, (who, label, str(where), str(setting.device), kind)))
    code = f"from benchmarks.b10_loading import alone; alone({given})"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, cwd=models.ROOT
    )
    [file] = where.glob("*.safetensors")
    return int(done.stdout.split()[-1]) / file.stat().st_size


def alone(who: str, label: str, where: str, device: str, dtype: str) -> None:
    """Print by how many bytes the peak of memory grows: the device's, or resident memory's."""
    kind, given = KINDS[label], {"device": torch.device(device), "dtype": getattr(torch, dtype)}
    first = kind.ours if who == "inarch" else kind.theirs
    with models.folder() as tiny:
        quick = Setting(quick=True, **given)
        kind.saved(kind.widths[0], quick, tiny)
        first(tiny, quick)  # whatever a first time imports
    setting = Setting(**given)
    if setting.device.type == "cuda":
        print(peak_bytes(lambda: first(Path(where), setting), setting.device))
        return
    # `ru_maxrss` is no use: it begins at what the process that started this one had.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    first(Path(where), setting)
    print(_status("VmHWM") - before)


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS is resident memory, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
