"""What a failing step is told about itself: where it stands and what came in, as a note."""

from __future__ import annotations

import itertools
import linecache
import re
from collections.abc import Iterator
from types import TracebackType

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
        trace = error.__traceback__
        if trace is None:
            return
        frame = trace.tb_frame
        sites = self.lines.get(frame.f_code.co_filename, ())
        number = trace.tb_lineno - 1
        site = sites[number] if number < len(sites) else ""
        notes: list[str] = getattr(error, "__notes__", [])
        record: list[str] | None = getattr(error, "_inarch_record", None)
        if record is None:
            record = ["", f"what came in: {', '.join(_shapes(trace)) or 'nothing'}", ""]
            error._inarch_record = record  # type: ignore[attr-defined]
        elif record[2] in notes:
            notes.remove(record[2])
        record[0] = ".".join(part for part in (site, record[0]) if part)
        record[2] = f"in inarch, at `{record[0] or 'the outermost Chain'}`; {record[1]}"
        error.add_note(record[2])


def _shapes(trace: TracebackType) -> Iterator[str]:
    """The values that the failing expression names, each with its shape and dtype."""
    code = trace.tb_frame.f_code
    first, last, *_ = next(itertools.islice(code.co_positions(), trace.tb_lasti // 2, None))
    lines = linecache.getlines(code.co_filename)[(first or 1) - 1 : last or first]
    words = dict.fromkeys(re.findall(r"\w+(?!\w*=)", "".join(lines)))
    values = trace.tb_frame.f_locals
    for name in words:
        value = values.get(name)
        if isinstance(value, torch.Tensor):
            yield f"{name} {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        elif value is not None and name != "self":
            yield f"{name} {type(value).__name__}"


explain = Explain()
