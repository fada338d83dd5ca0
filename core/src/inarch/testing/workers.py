"""Processes that wait for one another, such as those of a gloo group."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def side_by_side(
    arguments: Sequence[Sequence[str]], *, folder: Path | None = None, seconds: float = 300
) -> list[str]:
    """Run Python side by side, one thread each; all must end well, and none is left behind.

    Args:
        arguments: of each interpreter: a script and what it is given.
        folder: where they run; here by default.
        seconds: how long they may take.

    Returns:
        What each printed.

    Raises:
        RuntimeError: with what one printed, where it failed.
        subprocess.TimeoutExpired: where they take longer.
    """
    workers = [
        subprocess.Popen(
            [sys.executable, *given],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for given in arguments
    ]
    told: list[str] = []
    try:
        for worker in workers:
            told.append(worker.communicate(timeout=seconds)[0])
            if worker.returncode:
                raise RuntimeError(told[-1])
    finally:
        for worker in workers:
            worker.kill()
    return told
