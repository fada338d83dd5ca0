"""The processes that torchrun started for one command: who this one is, and how all of them end."""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import zip_longest
from typing import Any, TypeVar

import click
import torch
from torch import distributed as dist

from inarch.errors import InarchError
from inarch.weights.device import device_of

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
        InarchError: IA882 where several are wanted and there are none, IA209 for no such device,
            IA883 where another process ended without a word.
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
    store, rank, size = next(iter(dist.rendezvous("env://")))
    try:
        own = _own(device)
        backend = "cpu:gloo,cuda:nccl" if own.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        pause_at_exit()
        yield Processes(own, rank == 0)
    except (click.exceptions.Exit, KeyboardInterrupt):
        raise
    except BaseException as error:
        if not _is_teller(store, rank):
            raise click.exceptions.Exit(1) from None
        if _is_of_another(error):
            raise InarchError(
                "IA883",
                "another of the processes has ended",
                why=str(error).partition(". ")[0],
                remedy="see why it did, such as memory; `train` goes on with --resume",
            ) from None
        raise
    dist.destroy_process_group()


def _own(device: str) -> str:
    """The device of this process; of GPUs, its own.

    Raises:
        InarchError: IA209 where there is no such device.
    """
    if device.partition(":")[0] == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if device_of(device).type == "cuda":
        torch.cuda.set_device(device)
    return device


def _is_of_another(error: BaseException) -> bool:
    """Whether a collective failed since a process is gone, which told nothing."""
    gone = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in gone)


@cache
def pause_at_exit() -> None:
    """Give gloo's threads a moment before Python ends, to let go of the last collective's tensors.

    They need the interpreter for that. Where it is ending, the process aborts (SIGABRT) after all
    was done: a fifth of those whose last step is a collective did, with torch 2.13.
    """
    atexit.register(time.sleep, 0.1)


def tells() -> bool:
    """Whether this process tells what is wrong, of those that torchrun started: the first to ask.

    What is wrong with a command all of them see, before they are joined.
    """
    try:
        rendezvous = dist.rendezvous("env://", timeout=timedelta(seconds=10))
        store, rank, _ = next(iter(rendezvous))
    except (RuntimeError, ValueError):  # torchrun itself has ended
        return True
    return _is_teller(store, rank)


def _is_teller(store: dist.Store, rank: int) -> bool:
    """Whether no other process has told what went wrong; from now on, this one has."""
    own = str(rank)
    try:
        return store.compare_set("inarch/told", "", own).decode() == own
    except RuntimeError:  # the store is gone, and with it the process that held it
        return False
