"""The processes that torchrun started for one command: who this one is, and how all of them end."""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar

import click
import torch
from torch import distributed as dist

from inarch.errors import InarchError

Value = TypeVar("Value")
_ABSENT = object()
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Processes:
    """One of several processes.

    Attributes:
        device: this process's own, as torch names it.
        speaks: whether it prints for all.
    """

    device: str
    speaks: bool

    def as_first(self, value: Value) -> Value:
        """What the first process has, such as a seed that was drawn."""
        told = [value]
        dist.broadcast_object_list(told, device=torch.device(self.device))
        return told[0]

    def share(self, things: Sequence[Value]) -> Sequence[Value]:
        """Those that this process sees to, of things that need no other."""
        return things[dist.get_rank() :: dist.get_world_size()]

    def gathered(self, made: Sequence[Value]) -> list[Value]:
        """What the processes made of their shares, in the order of the things."""
        everyones: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, list(made))
        turns = zip_longest(*everyones, fillvalue=_ABSENT)
        return [one for turn in turns for one in turn if one is not _ABSENT]


@contextlib.contextmanager
def joined(device: str, *, wanted: str = "") -> Generator[Processes | None, None, None]:
    """The group of the processes that torchrun started, while it lasts; None for one alone.

    Whatever goes wrong in any of them is told once, and ends all of them: the first tells it, the
    others end without a word.

    Args:
        device: where the command was asked to run; `cuda` is this process's own GPU.
        wanted: what was asked for that needs several processes.

    Raises:
        InarchError: IA882 where several are wanted and there are none.
    """
    if any(name not in os.environ for name in _ENVIRONMENT):
        if wanted:
            raise InarchError(
                "IA882",
                f"{wanted} needs several processes, and this is one",
                why="torchrun starts them and says so in the environment",
                remedy="torchrun --nproc-per-node 2 -m inarch ...",
            )
        yield None
        return
    own = device
    if torch.device(device).type == "cuda":
        own = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(own)
    store, rank, size = next(iter(dist.rendezvous("env://")))
    backend = "cpu:gloo,cuda:nccl" if own.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield Processes(own, rank == 0)
    except (click.exceptions.Exit, KeyboardInterrupt):
        raise
    except BaseException:
        if _told(store):
            raise click.exceptions.Exit(1) from None
        raise
    dist.destroy_process_group()


def _told(store: dist.Store) -> bool:
    """Whether another process has told what went wrong; from now on, this one has."""
    try:
        return store.add("inarch/told", 1) > 1
    except RuntimeError:  # the store is gone, and with it the process that held it
        return True
