"""One of two processes that run commands one after another, as torchrun would start each.

Arguments: rank, a folder. `commands.json` there is the list; what this process printed and how each
command ended is left in `said-RANK.json`. A port is taken for each command, the first is given.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from inarch.cli.main import main


def work(rank: str, folder: Path, ports: list[str]) -> None:
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    said: list[tuple[int, str, str]] = []
    commands = json.loads((folder / "commands.json").read_text())
    for command, port in zip(commands, ports, strict=True):
        os.environ["MASTER_PORT"] = port
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(command)
            except SystemExit as stop:
                said.append((int(stop.code or 0), out.getvalue(), err.getvalue()))
        if dist.is_initialized():  # a command that fails leaves that to the process's end
            dist.destroy_process_group()
    (folder / f"said-{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
