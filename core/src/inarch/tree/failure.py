"""What a failing step is told about itself: where it stands and what came in, as a note."""

from __future__ import annotations

import contextlib
import itertools
import linecache
import re
from collections.abc import Iterator
from types import FrameType, TracebackType

import torch


class Explain:
    """Adds to an exception on its way up one note: the address, and the shapes at the failing line.

    The innermost Chain knows the line and the values; each Chain further out knows the next part
    of the address, so the note is written anew at each level. Type and traceback stay as they are.

    Attributes:
        lines: for each generated file, the site each of its lines belongs to.
    """

    def __init__(self) -> None:
        self.lines: dict[str, tuple[str, ...]] = {}

    def __call__(self, error: Exception) -> None:
        with contextlib.suppress(Exception):  # explaining must never hide what it explains
            self._explain(error)

    def _explain(self, error: Exception) -> None:
        trace = error.__traceback__
        if trace is None:
            return
        notes: list[str] = getattr(error, "__notes__", [])
        old = next((note for note in notes if _NOTE.match(note)), "")
        found = _NOTE.match(old)
        below, shapes = "", ", ".join(_shapes(trace)) or "nothing"
        if found:
            notes.remove(old)
            if self._comes_from_below(trace):
                below, shapes = found.groups()
                below = "" if below == _NOWHERE else below
        sites = self.lines[trace.tb_frame.f_code.co_filename]
        address = ".".join(part for part in (sites[trace.tb_lineno - 1], below) if part)
        error.add_note(f"in inarch, at `{address or _NOWHERE}`; what came in: {shapes}")

    def _comes_from_below(self, trace: TracebackType) -> bool:
        """Whether a Chain that this frame called failed, so that the note is of this failure.

        An exception object that is raised again still has its first traceback at the end of the
        new one, and frames in it that this frame never called.
        """
        inner = trace.tb_next
        while inner is not None and inner.tb_frame.f_code.co_filename not in self.lines:
            inner = inner.tb_next
        frame: FrameType | None = None if inner is None else inner.tb_frame.f_back
        while frame is not None and frame is not trace.tb_frame:
            frame = frame.f_back
        return frame is not None


def _shapes(trace: TracebackType) -> Iterator[str]:
    """The values that the failing expression names, each with its shape and dtype."""
    code = trace.tb_frame.f_code
    place = next(itertools.islice(code.co_positions(), trace.tb_lasti // 2, None))
    first, last, start, end = (number or 0 for number in place)
    lines = [line.encode() for line in linecache.getlines(code.co_filename)[first - 1 : last]]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    words = dict.fromkeys(re.findall(r"\w+(?!\w*=)", b"".join(lines).decode()))
    values = trace.tb_frame.f_locals
    for name in words:
        value = values.get(name)
        if isinstance(value, torch.Tensor):
            yield f"{name} {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        elif value is not None and name != "self":
            yield f"{name} {type(value).__name__}"


_NOWHERE = "a step without a label"
_NOTE = re.compile("in inarch, at `(.*?)`; what came in: (.*)", re.DOTALL)
explain = Explain()
