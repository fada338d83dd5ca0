"""Building modules without weights: on the meta device, and with no initialisation at all."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoInitialisation(TorchFunctionMode):
    """Leaves out what `torch.nn.init` would draw: every value is about to come from a file.

    On the meta device it draws nothing anyway, but imports the compiler to do so.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def blank() -> Generator[None, None, None]:
    """While it lasts, modules are made on the meta device and not initialised."""
    with torch.device("meta"), _NoInitialisation():
        yield
