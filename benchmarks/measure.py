"""Times of several contenders taken in turns, the memory's bandwidth, and fitted exponents."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.result import ROUNDS, Equality, Line, NotEqual, Spread

Run = Callable[[], object]


@dataclass
class Setting:
    """How to run: where, in which dtype, how large, how often.

    Attributes:
        quick: small sizes and few repeats, to see that everything runs; its numbers say nothing.
        equal: what was found equal so far.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    quick: bool = False
    equal: list[Equality] = field(default_factory=list)

    @property
    def repeats(self) -> int:
        return 2 if self.quick else ROUNDS

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def compare(
        self, what: str, ours: Any, theirs: Any, *, reordered: bool = False, half: float = 5e-2
    ) -> None:
        """Note that two outputs are equal, up to what the dtype's rounding makes of them.

        Args:
            what: the outputs that are compared.
            ours, theirs: tensors, or what holds tensors and other values.
            reordered: whether long sums are made in another order, which round differently.
            half: what is allowed in dtypes of two bytes.

        Raises:
            NotEqual: where they are not.
        """
        usual = {torch.float32: 1e-4 if reordered else 2e-5, torch.float64: 1e-9}
        found = Equality(what, difference(ours, theirs), usual.get(self.dtype, half))
        if not found.holds:
            raise NotEqual(f"{what}: {found.difference:.3g} apart, {found.tolerance:.3g} allowed")
        self.equal.append(found)


def difference(ours: Any, theirs: Any) -> float:
    """The greatest difference of all tensors, as a share of the greatest absolute value."""
    pairs = list(zip(tree_leaves(ours), tree_leaves(theirs), strict=True))
    worst = 0.0
    for a, b in pairs:
        if not isinstance(a, Tensor):
            worst = max(worst, 0.0 if a == b else float("inf"))
            continue
        if a.shape != b.shape:
            return float("inf")
        a, b = a.detach().double(), b.detach().double()
        largest = float(b.abs().max()) or 1.0
        apart = float((a - b).abs().max()) / largest
        worst = apart if apart != apart else max(worst, apart)
        if worst != worst:
            return worst
    return worst


@dataclass
class Samples:
    """Seconds for one call of each contender, in each of the rounds they took turns in."""

    times: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    def ratio(self, ours: str, theirs: str) -> Spread:
        """The median, over rounds, of one contender's time over another's."""
        return spread([a / b for a, b in zip(self.times[ours], self.times[theirs], strict=True)])

    def added(self, name: str, base: str) -> list[float]:
        """What a contender took beyond another, round by round."""
        return [a - b for a, b in zip(self.times[name], self.times[base], strict=True)]

    def overhead_ratio(self, ours: tuple[str, str], theirs: tuple[str, str]) -> Spread:
        """One overhead over another: of medians, as a difference of times may be near zero.

        Each is (with, without). The quartiles are of 400 resamplings of the rounds. Where noise
        makes theirs nothing or less, it counts as a nanosecond, so that no ratio looks like a gain.
        """
        one, two = np.array(self.added(*ours)), np.array(self.added(*theirs))
        rounds = len(one)
        draws = np.random.default_rng(0).integers(0, rounds, (400, rounds))
        below = np.maximum(np.median(two[draws], axis=1), 1e-9)
        low, high = np.percentile(np.median(one[draws], axis=1) / below, (25, 75))
        whole = np.median(one) / max(np.median(two), 1e-9)
        return Spread(float(whole), float(low), float(high), rounds)


def spread(values: Sequence[float]) -> Spread:
    low, middle, high = np.percentile(np.array(values), (25, 50, 75))
    return Spread(float(middle), float(low), float(high), len(values))


def interleaved(
    contenders: Mapping[str, Run],
    setting: Setting,
    *,
    least: float = 0.004,
    before: Mapping[str, Run] | None = None,
) -> Samples:
    """Times of contenders that take turns: A B A B.

    Args:
        contenders: what to call; on a GPU the call and what it set going there are waited for.
        least: seconds a sample lasts: shorter calls are repeated within it.
        before: run without being timed before each sample, whose call is then made only once.
    """
    before = before or {}
    calls: dict[str, int] = {}
    for name, run in contenders.items():
        for _ in range(1 if name in before else 2):
            before.get(name, _nothing)()
            once = _timed(run, 1, setting)
        calls[name] = 1 if name in before else max(1, min(1000, round(least / once)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with _left_alone():
        for _ in range(setting.repeats):
            for name, run in contenders.items():
                before.get(name, _nothing)()
                times[name].append(_timed(run, calls[name], setting))
            gc.collect()
    return Samples(times)


def in_cycles(
    contenders: Mapping[str, Sequence[Run]],
    setting: Setting,
    *,
    least: float = 0.06,
) -> list[Samples]:
    """Times of calls that follow one another, such as adapting and dropping; contenders take turns.

    Args:
        contenders: what to call, one call after the other; as many for each.
        least: seconds a sample lasts: shorter cycles are gone through again within it.

    Returns:
        For each place in the cycle, the time in each round: the median of those in a sample.
    """
    cycles: dict[str, int] = {}
    for name, calls in contenders.items():
        for _ in range(2):
            once = sum(_timed(call, 1, setting) for call in calls)
        cycles[name] = 1 if setting.quick else max(1, min(20, round(least / once)))
    places = len(next(iter(contenders.values())))
    samples = [Samples({name: [] for name in contenders}) for _ in range(places)]
    with _left_alone():
        for _ in range(setting.repeats):
            for name, calls in contenders.items():
                rounds = [[_timed(c, 1, setting) for c in calls] for _ in range(cycles[name])]
                for place, times in zip(samples, zip(*rounds, strict=True), strict=True):
                    place.times[name].append(statistics.median(times))
            gc.collect()
    return samples


@contextmanager
def _left_alone() -> Iterator[None]:
    """Collecting between rounds looks at what the rounds left, not at models."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _nothing() -> None:
    return None


def _timed(run: Run, calls: int, setting: Setting) -> float:
    """Seconds a call, with the garbage collector out of the way."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        setting.synchronise()
        start = time.perf_counter_ns()
        for _ in range(calls):
            run()
        setting.synchronise()
        return (time.perf_counter_ns() - start) / 1e9 / calls
    finally:
        if enabled:
            gc.enable()


def bandwidth(setting: Setting) -> float:
    """Bytes a second, read and written, of a copy far larger than any cache."""
    size = 1 << (22 if setting.quick else 29 if setting.device.type == "cpu" else 31)
    source = torch.ones(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    best = min(_timed(lambda: target.copy_(source), 1, setting) for _ in range(6))
    return 2 * size / best


def fitted(label: str, x: Sequence[float], y: Sequence[float]) -> Line:
    """A line through points of two logarithms; its slope is the exponent."""
    slope, _ = np.polyfit(np.log(np.array(x)), np.log(np.array(y)), 1)
    return Line(label, [float(v) for v in x], [float(v) for v in y], float(slope))


def tensor_bytes(tensors: Mapping[str, Tensor] | Sequence[Tensor]) -> int:
    """The bytes of tensors' storages, each counted once."""
    values = tensors.values() if isinstance(tensors, Mapping) else tensors
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in values}
    return sum(storages.values())
