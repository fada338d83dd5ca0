"""Starts processes for what a test asks of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

WORKER = Path(__file__).with_name("worker.py")


def asked_of(size: int, tasks: Sequence[Sequence[str]], folder: Path) -> list[dict[str, Any]]:
    """What each of several gloo processes found, by task."""
    folder.mkdir(exist_ok=True)
    (folder / "asked.json").write_text(json.dumps(tasks))
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(size), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        for worker in workers:
            said, _ = worker.communicate(timeout=300)
            assert worker.returncode == 0, said
    finally:
        for worker in workers:
            worker.kill()
    return torch.load(folder / "found.pt", weights_only=False)
