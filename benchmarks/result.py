"""What a benchmark gives: marks, ratios with their spread, counters, limits, pictures, as data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from benchmarks.measure import Setting


ROUNDS = 30
"""In how many contenders take turns; where there were fewer, a spread says so."""


class Spread(msgspec.Struct, frozen=True):
    """The median of paired measurements, their quartiles, and how many there are."""

    median: float
    low: float
    high: float
    count: int

    def text(self, unit: str = "x") -> str:
        fewer = "" if self.count == ROUNDS else f"; {self.count} rounds"
        return f"{number(self.median)}{unit} ({number(self.low)} to {number(self.high)}{fewer})"


class Equality(msgspec.Struct, frozen=True):
    """How far two libraries' outputs are apart, before anything is timed.

    Attributes:
        what: the outputs that were compared.
        difference: the greatest difference, as a share of the greatest absolute output.
        tolerance: what it had to stay below.
    """

    what: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerance  # false for NaN


class Mark(msgspec.Struct, frozen=True):
    """One number that the workload was set, and what was measured.

    Attributes:
        what: the quantity, with its unit.
        value: as measured.
        bound: what it was to be.
        sense: on which side of the bound.
        spread: of a ratio of times.
        counted: whether it is a counter, which CI asserts, rather than a time.
    """

    what: str
    value: float
    bound: float
    sense: Literal["at most", "at least", "exactly"] = "at most"
    spread: Spread | None = None
    counted: bool = False

    @property
    def reached(self) -> bool:
        sides = {
            "at most": self.value <= self.bound,
            "at least": self.value >= self.bound,
            "exactly": self.value == self.bound,
        }
        return sides[self.sense]

    @property
    def text(self) -> str:
        measured = number(self.value) if self.spread is None else self.spread.text("")
        return f"{self.what}: {measured}, {self.sense} {number(self.bound)}"


class Limit(msgspec.Struct, frozen=True):
    """How far a time is from what the memory allows.

    Attributes:
        what: the run that was timed.
        bytes: the least it has to read and write.
        seconds: what it took.
        bandwidth: bytes a second of a large copy in the same run, read and written.
    """

    what: str
    bytes: float
    seconds: float
    bandwidth: float

    @property
    def share(self) -> float:
        """The share of the time that moving the bytes alone would take."""
        return self.bytes / self.bandwidth / self.seconds


class Table(msgspec.Struct, frozen=True):
    """Numbers to read: a title, the names of columns, rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class Line(msgspec.Struct, frozen=True):
    """Points of one contender, with the exponent that fits them."""

    label: str
    x: list[float]
    y: list[float]
    exponent: float


class Picture(msgspec.Struct, frozen=True):
    """A log-log picture."""

    title: str
    x: str
    y: str
    lines: list[Line]


class Machine(msgspec.Struct, frozen=True):
    """Where a result was measured."""

    processor: str
    cores: int
    threads: int
    memory: str
    gpu: str
    system: str
    versions: dict[str, str]


class Result(msgspec.Struct):
    """All that a workload gave in one run."""

    workload: str
    title: str
    peer: str
    mark: str
    device: str
    dtype: str
    quick: bool
    equal: list[Equality] = []
    marks: list[Mark] = []
    counters: dict[str, float] = {}
    limits: list[Limit] = []
    tables: list[Table] = []
    pictures: list[Picture] = []
    remarks: list[str] = []
    bandwidth: float = 0.0
    seconds: float = 0.0
    date: str = ""
    commit: str = ""
    machine: Machine | None = None

    @property
    def reached(self) -> bool:
        return bool(self.marks) and all(mark.reached for mark in self.marks)


class Workload(msgspec.Struct, frozen=True):
    """What a benchmark is: its number, its peers as distributions to install, and its mark."""

    name: str
    title: str
    peer: str
    mark: str
    needs: tuple[str, ...] = ()


class NotEqual(Exception):
    """The outputs differ, so there is no ratio."""


class NotHere(Exception):
    """The workload can't run on this machine or device: why."""


class NoResult(Exception):
    """A file that holds no result that can be read: which, and why."""


def number(value: float) -> str:
    """A number with the digits that mean something."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e3 else f"{value:,.4g}"


def encoded(result: Result, indent: int = 1) -> bytes:
    return msgspec.json.format(msgspec.json.encode(result), indent=indent or -1) + b"\n"


def decoded(file: Path) -> Result:
    """A result as it was written down, in a file that has the workload's name.

    Raises:
        NoResult: for a file that is cut off, that another version wrote, or of another name.
    """
    try:
        result = msgspec.json.decode(file.read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError) as error:
        raise NoResult(f"`{file}` is no result that can be read: {error}") from error
    if result.workload != file.stem:
        raise NoResult(f"`{file}` is a result of {result.workload}")
    return result


def plural(count: int, what: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count} {what}{'s' * (count != 1)}"


def seconds(value: float) -> str:
    """A time in the unit that reads best."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def result_of(workload: Workload, setting: Setting, bandwidth: float) -> Result:
    """An empty result of a workload, for what is about to be measured."""
    return Result(
        workload.name,
        workload.title,
        workload.peer,
        workload.mark,
        str(setting.device),
        str(setting.dtype).removeprefix("torch."),
        setting.quick,
        bandwidth=bandwidth,
    )
