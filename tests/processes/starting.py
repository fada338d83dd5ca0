"""Starts processes for what a test asks of them."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from inarch.testing.workers import side_by_side

WORKER = Path(__file__).with_name("worker.py")
COMMANDER = Path(__file__).with_name("command_worker.py")


def asked_of(size: int, tasks: Sequence[Sequence[str]], folder: Path) -> list[dict[str, Any]]:
    """What each of several gloo processes found, by task."""
    folder.mkdir(exist_ok=True)
    (folder / "asked.json").write_text(json.dumps(tasks))
    side_by_side([[str(WORKER), str(rank), str(size), str(folder)] for rank in range(size)])
    return torch.load(folder / "found.pt", weights_only=False)


def said_of(commands: Sequence[Sequence[str]], folder: Path) -> list[list[Any]]:
    """How each of two processes ended every command, and what it printed."""
    (folder / "commands.json").write_text(json.dumps(commands))
    ports = _ports(len(commands))
    side_by_side([[str(COMMANDER), str(rank), str(folder), *ports] for rank in range(2)])
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(2)]


def _ports(count: int) -> list[str]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    numbers = [str(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return numbers
