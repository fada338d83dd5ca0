"""Patterns: what is known of the files of one structure, once one was made into an adapter.

Files of one training say the same in their headers: names, shapes, dtypes, places and strings. What
the first of them was found to be, the next are, so that only their bytes are read, straight into
memory of the slot's layout. Any difference, in the settings beside the file too, is another file,
looked at from the beginning.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor, nn

from inarch.adapters.flat import Flat, Key
from inarch.adapters.memory import Store, key_of, parameters, places
from inarch.tree import Chain
from inarch.weights.adapter_file import WeightsHeader, adapter_files
from inarch.weights.header import PICKLES, Stamp, changed, stamp_of

if TYPE_CHECKING:
    from inarch.adapters.graft import Draft
    from inarch.adapters.member import Member
    from inarch.adapters.model import Model
    from inarch.stack import AdapterSpec

Buffers = Sequence[tuple[Store, str, Tensor]]
"""Of modules that are no edges: the owner's buffers, a name in them, and a value for it."""

Settings = Sequence[tuple[nn.Module, Mapping[str, Any]]]
"""For modules, the plain attributes that a file decides."""

_LONGEST_HEADER = 100_000_000

_MOST_READ = 1 << 16
"""Bytes of tensors whose values decide something, such as alphas, that are compared."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Bytes that follow one another in a file's data and in memory: where they begin, how many."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """One allocation that a file fills, without its memory.

    Attributes:
        size: of the whole, in elements.
        dtype, device: of it.
        spans: as `Flat.spans`.
        runs: what is read as it is.
        cast: what isn't: another dtype, or columns of a larger tensor; keys of the file by place.
    """

    size: int
    dtype: torch.dtype
    device: torch.device
    spans: Mapping[Key, tuple[int, tuple[int, ...]]]
    runs: Sequence[Run]
    cast: Mapping[Key, str]

    def filled(self, file: FileIO, begin: int, header: WeightsHeader) -> Flat:
        """The allocation with a file's values, gathered on the host where it is elsewhere."""
        host, pinned = torch.device("cpu"), self.device.type == "cuda"
        flat = Flat(torch.zeros(self.size, dtype=self.dtype, pin_memory=pinned), self.spans)
        _read(file, begin, self.runs, flat.whole)
        for key, name in self.cast.items():
            value = header.load(name, host, None)
            flat.view(key)[tuple(slice(size) for size in value.shape)].copy_(value)
        return Flat(flat.whole.to(self.device), self.spans)


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """What files with one header become in a slot.

    Attributes:
        draft: of the first such file, without its edits.
        header: of that file.
        entries: what stands in the file's header.
        size: of the file's data, in bytes.
        told: the settings beside it, as bytes; None for none.
        read: where in the data tensors lie whose values decided something, and their bytes.
        asked, trees: what else decided it: the member's specification, the model's pristine trees.
        rooms: the allocations that the file fills.
        kept: those of buffers, which follow from all of this.
        buffers, settings: as a `Filling` has them.
    """

    draft: Draft
    header: WeightsHeader
    entries: Mapping[str, Any]
    size: int
    told: bytes | None
    read: Mapping[int, bytes]
    asked: AdapterSpec
    trees: Mapping[str, Chain]
    rooms: Sequence[Room]
    kept: Sequence[Flat]
    buffers: Buffers
    settings: Settings

    def of(self, model: Model, member: Member, weights: Path) -> Draft | None:
        """What weights would be made into; None where they may be anything else than this."""
        fresh, now = self.draft.adapter.for_training, member.spec.options
        if (
            model.pristine is not self.trees
            or member.asked is not self.asked
            or self.draft.spec.options != {k: v for k, v in now.items() if k not in fresh}
            or not weights.exists()  # the id of weights that a package ships, or nothing
        ):
            return None
        path, beside = adapter_files(weights)
        stamp = None if path.suffix in PICKLES else self._stamp_of_same(path, beside)
        if stamp is None:
            return None
        spec = replace(self.draft.spec, weights=str(weights))
        return replace(self.draft, spec=spec, header=self.header.of(path, stamp))

    def _stamp_of_same(self, path: Path, beside: Path | None) -> Stamp | None:
        """What tells a file that is of this pattern from others; None for one that isn't."""
        try:
            with path.open("rb", buffering=0) as file:
                stamp = stamp_of(os.fstat(file.fileno()))
                begin, entries = _entries(file)
                same = (
                    stamp[1] - begin == self.size
                    and entries == self.entries
                    and _told(beside) == self.told
                    and all(_bytes(file, begin + at, len(b)) == b for at, b in self.read.items())
                )
        except OSError:  # who looks at it from the beginning says what that means
            return None
        return stamp if same else None

    def flats(self, draft: Draft) -> tuple[Flat, ...]:
        """The allocations for a file that is of this pattern.

        Raises:
            InarchError: IA201 or IA202 where the file was changed since its header was read.
        """
        header = draft.header
        if header is None:
            raise TypeError("a pattern is of files")
        try:
            with header.path.open("rb", buffering=0) as file:
                begin = header.stamp[1] - self.size
                rooms = [room.filled(file, begin, header) for room in self.rooms]
                if stamp_of(os.fstat(file.fileno())) != header.stamp:
                    raise OSError("its size or the time it was written differs")
        except OSError as error:
            raise changed(header.path, error) from error
        header.close()
        return (*rooms, *self.kept)


def pattern_of(
    draft: Draft,
    model: Model,
    member: Member,
    flats: Sequence[Flat],
    buffers: Buffers,
    settings: Settings,
) -> Pattern | None:
    """The pattern of a file that was made into edits, and these filled; None where it has none.

    It has one where the adapter says that the header decides (`Adapter.by_header`), every parameter
    is in the file, and nothing changed what was filled.
    """
    header, files = draft.header, _files(draft)
    if not draft.adapter.by_header or header is None or files is None:
        return None
    if draft.spec.weights is None or any(f.whole.device.type not in ("cpu", "cuda") for f in flats):
        return None
    weights = Path(draft.spec.weights)
    try:
        with header.path.open("rb", buffering=0) as file:
            begin, entries = _entries(file)
            told = _told(adapter_files(weights)[1])
            spans = [header.info(key).span for key in header.used]
            if sum(last - first for first, last in spans) > _MOST_READ:
                return None
            read = {first: _bytes(file, begin + first, last - first) for first, last in spans}
            same = stamp_of(os.fstat(file.fileno())) == header.stamp
        if not same or (json.loads(told) if told else {}) != header.settings:
            return None
    except (OSError, ValueError):
        return None
    rooms = [_room(flat, files, header) for flat in flats if files.keys() & flat.spans]
    kept = [Flat(f.whole.clone(), f.spans) for f in flats if not files.keys() & f.spans]
    if not files.keys() <= {key for room in rooms for key in room.spans}:
        return None
    return Pattern(
        replace(draft, edits=(), header=None),
        header.of(header.path, header.stamp),
        entries,
        header.stamp[1] - begin,
        told,
        read,
        member.asked,
        model.pristine,
        rooms,
        kept,
        [(store, name, value.clone()) for store, name, value in buffers],
        settings,
    )


def _files(draft: Draft) -> dict[Key, str] | None:
    """The file's key for each parameter; None where one is not as the file has it."""
    own = places(draft.edits)
    found: dict[Key, str] = {}
    for edit in draft.edits:
        for name, _, _, parameter in parameters(edit):
            key, file = key_of(edit, name), edit.fills.get(name)
            if parameter._version or (file is None and name not in edit.padded):
                return None
            if key in own and file is not None:
                found[key] = file
    return found


def _room(flat: Flat, files: Mapping[Key, str], header: WeightsHeader) -> Room:
    runs: list[Run] = []
    cast: dict[Key, str] = {}
    width = flat.whole.dtype.itemsize
    for key, (start, shape) in flat.spans.items():
        if key not in files:
            continue
        info = header.info(files[key])
        if info.dtype == flat.whole.dtype and info.shape[1:] == shape[1:]:
            first, last = info.span
            runs.append(Run(first, start * width, last - first))
        else:
            cast[key] = files[key]
    joined = list(_joined(sorted(runs, key=lambda run: run.source)))
    return Room(flat.whole.numel(), flat.whole.dtype, flat.whole.device, flat.spans, joined, cast)


def _joined(runs: Sequence[Run]) -> Iterator[Run]:
    """Runs with those in one that follow each other in the file and in memory."""
    last: Run | None = None
    for run in runs:
        if last is None:
            last = run
        elif (last.source + last.length, last.target + last.length) == (run.source, run.target):
            last = Run(last.source, last.target, last.length + run.length)
        else:
            yield last
            last = run
    if last is not None:
        yield last


def _told(settings: Path | None) -> bytes | None:
    return None if settings is None else settings.read_bytes()


def _entries(file: FileIO) -> tuple[int, Any]:
    """Where a safetensors file's data begins, and what its header says: None for no header."""
    begin = 8 + int.from_bytes(_bytes(file, 0, 8), "little")
    try:
        return begin, msgspec.json.decode(file.read(min(begin - 8, _LONGEST_HEADER)))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return begin, None


def _bytes(file: FileIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _read(file: FileIO, begin: int, runs: Sequence[Run], into: Tensor) -> None:
    """Read runs of a file, whose data begins somewhere, into a tensor's memory.

    Raises:
        OSError: where the file ends before.
    """
    if not runs:
        return
    memory = (ctypes.c_char * into.nbytes).from_address(into.data_ptr())
    with memoryview(memory) as whole, whole.cast("B") as view:
        for run in runs:
            file.seek(begin + run.source)
            done = 0
            while done < run.length:
                count = file.readinto(view[run.target + done : run.target + run.length])
                if not count:
                    raise OSError(f"it ends at byte {begin + run.source + done}")
                done += count
