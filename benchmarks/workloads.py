"""The workloads there are: one file each, found by its name."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any


@functools.cache
def _files() -> dict[str, str]:
    files = sorted(Path(__file__).parent.glob("b[0-9][0-9]_*.py"))
    return {f"B{int(file.stem[1:3])}": file.stem for file in files}


def names() -> list[str]:
    return list(_files())


def workload(name: str) -> Any:
    """The module of a workload: it has `WORKLOAD` and `run`."""
    return importlib.import_module(f"benchmarks.{_files()[name]}")
