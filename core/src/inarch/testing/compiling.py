"""A compiler that counts what it is given, in place of the one torch would use."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters


@contextmanager
def counting_compiler() -> Generator[CompileCounter]:
    """The default compiler, within it, counts graphs and runs them as they are.

    Nothing compiled before is known, and graph breaks are counted from none.
    """
    torch._dynamo.reset()
    counters.clear()
    counter, before = CompileCounter(), torch.compiler.get_default_backend()
    torch.compiler.set_default_backend(counter)
    try:
        yield counter
    finally:
        torch.compiler.set_default_backend(before)
        torch._dynamo.reset()
