"""On what machine, and with which versions, a result was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from benchmarks.result import Machine

_VERSIONS = ("torch", "transformers", "peft", "diffusers", "safetensors", "numpy")


def machine(device: torch.device) -> Machine:
    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return Machine(
        _processor(),
        len(os.sched_getaffinity(0)),
        torch.get_num_threads(),
        f"{memory:.0f} GiB",
        gpu,
        f"{platform.system()} {platform.release()}",
        versions,
    )


def _processor() -> str:
    """The processor's name and model number, as Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    known = {key.strip(): value.strip() for key, value in told.items()}
    name = known.get("model name", platform.processor())
    numbers = [known.get(key, "") for key in ("cpu family", "model", "stepping")]
    return f"{name} (family {'/'.join(numbers)})" if any(numbers) else name


def commit(repository: Path = Path(__file__).parent.parent) -> str:
    """The commit that was measured, with a mark where files differ from it.

    Results, which a run writes, and the pages made of them are not what was measured.
    """
    measured = (".", ":!benchmarks/results", ":!docs")
    try:
        name = _git(repository, "describe", "--always")
        differs = _git(repository, "status", "--porcelain", "-uno", "--", *measured)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{name}-dirty" if differs else name


def _git(repository: Path, *words: str) -> str:
    command = ["git", "-C", str(repository), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
