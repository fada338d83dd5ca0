"""Building modules without weights: on the meta device, and with no initialisation at all."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._device import DeviceContext

from inarch.tree.repeated import repeating


class _Blank(DeviceContext):
    """`torch.device("meta")` that leaves out what `torch.nn.init` would draw.

    Every value is about to come from a file. On the meta device it draws nothing anyway, but
    imports the compiler to do so. One mode for both: every tensor made goes through each.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return super().__torch_function__(func, types, args, kwargs)


@contextmanager
def blank() -> Generator[None, None, None]:
    """While it lasts, modules are made on the meta device and not initialised.

    Chains that a tree has many of are built once and copied: see `inarch.tree.repeated`.
    """
    with _Blank(torch.device("meta")), repeating():
        yield
