"""From scores to intervals: hysteresis, merging, least length, padding. Pure functions on an integer time axis.

    samples (a score holds for [start, end)) -> switched on and off -> merged -> long enough -> padded

A score switches the layer on where it reaches `on`, off where it falls below `off`, and in between leaves it as it was.
**Unknown is no sample**: a stretch without one is neither on nor off. One that is no longer than `merge` is bridged like a
short stretch that was off, and the state is held across it; a longer one ends what was on, and what comes after it has to
reach `on` again. Intervals are half-open, sorted and disjoint: an int64 array (N, 2) of [start, end) in ticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.errors import UsageError

ON, BETWEEN, OFF = 2.0, 1.0, 0.0  # marks of `Runs`
Ticks = NDArray[np.int64]
"""int64, times in ticks of one axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Scores in order: `value[i]` holds for [start[i], end[i]); time that no sample covers is unknown.

    Attributes:
        start: int64 (T,), increasing.
        end: int64 (T,), above `start`, at most the next start.
        value: float64 (T,), no NaN.

    Raises:
        UsageError: they overlap, are empty, out of order, of unequal number, or a value is NaN.
    """

    start: Ticks
    end: Ticks
    value: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not len(self.start) == len(self.end) == len(self.value):
            raise UsageError(f"samples: {len(self.start)} starts, {len(self.end)} ends, {len(self.value)} values")
        if (self.end <= self.start).any() or (self.start[1:] < self.end[:-1]).any():
            raise UsageError("samples overlap, are empty or out of order; legal: sorted, disjoint, end above start")
        if np.isnan(self.value).any():
            raise UsageError("a sample is NaN; unknown is no sample")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How long intervals are made of what is on, all in ticks.

    Attributes:
        merge: two intervals that are at most so far apart become one.
        least: shorter ones are dropped, after merging.
        pad: added before and after each of the rest; what then overlaps or touches becomes one.

    Raises:
        UsageError: one of them is negative.
    """

    merge: int = 0
    least: int = 0
    pad: int = 0

    def __post_init__(self) -> None:
        if min(self.merge, self.least, self.pad) < 0:
            raise UsageError(f"merge {self.merge}, least {self.least}, pad {self.pad} ticks; legal: 0 or more")


def switched(samples: Samples, on: NDArray[np.float64], off: NDArray[np.float64], hold: int) -> NDArray[np.bool_]:
    """Say for each sample whether the layer is on: bool (T,).

    Args:
        samples: the scores.
        on: float64 (T,), the threshold at each sample that switches on.
        off: float64 (T,), the threshold below which it switches off; at most `on`.
        hold: an unknown stretch of more ticks switches off.
    """
    mark = np.where(samples.value >= on, 1, np.where(samples.value < off, -1, 0))
    after_unknown = np.zeros(len(mark), np.bool_)
    after_unknown[1:] = samples.start[1:] - samples.end[:-1] > hold
    mark[after_unknown & (mark == 0)] = -1
    last = np.maximum.accumulate(np.where(mark != 0, np.arange(len(mark)), -1)) if len(mark) else np.zeros(0, np.int64)
    is_on: NDArray[np.bool_] = (last >= 0) & (mark[last] == 1)
    return is_on


def merged(intervals: Ticks, gap: int = 0) -> Ticks:
    """Join intervals that overlap, touch or are at most `gap` ticks apart. Doing it twice changes nothing.

    Args:
        intervals: int64 (N, 2), in any order, also overlapping.
        gap: ticks.
    """
    if not len(intervals):
        return np.zeros((0, 2), np.int64)
    ordered = intervals[np.argsort(intervals[:, 0], kind="stable")]
    ends = np.maximum.accumulate(ordered[:, 1])
    first = np.flatnonzero(np.concatenate([[True], ordered[1:, 0] - ends[:-1] > gap]))
    last = np.append(first[1:], len(ordered)) - 1
    return np.stack([ordered[first, 0], ends[last]], axis=1)


def longer(intervals: Ticks, least: int) -> Ticks:
    """Return those of at least `least` ticks."""
    return intervals[intervals[:, 1] - intervals[:, 0] >= least]


def padded(intervals: Ticks, pad: int, bounds: tuple[int, int]) -> Ticks:
    """Return the intervals `pad` ticks longer at both ends, within [low, high), merged where they meet."""
    if not pad:
        return intervals
    return merged(
        np.stack([np.maximum(intervals[:, 0] - pad, bounds[0]), np.minimum(intervals[:, 1] + pad, bounds[1])], axis=1)
    )


def find(
    samples: Samples, on: NDArray[np.float64], off: NDArray[np.float64], rule: Rule, bounds: tuple[int, int] | None = None
) -> Ticks:
    """Return the intervals in which the layer is on: int64 (N, 2), sorted, disjoint.

    Args:
        samples: the scores.
        on: float64 (T,), threshold at each sample.
        off: float64 (T,), at most `on`.
        rule: merging, least length, padding.
        bounds: [low, high) that padding keeps within; by default that of the samples.

    Raises:
        UsageError: a threshold to switch off is above that to switch on.
    """
    if (off > on).any():
        raise UsageError("a layer would go off above the score at which it goes on; legal: off <= on")
    if not len(samples.start):
        return np.zeros((0, 2), np.int64)
    is_on = switched(samples, on, off, rule.merge)
    pieces = np.stack([samples.start[is_on], samples.end[is_on]], axis=1)
    kept = longer(merged(pieces, rule.merge), rule.least)
    return padded(kept, rule.pad, bounds or (int(samples.start[0]), int(samples.end[-1])))


def cut(interval: tuple[int, int], clips: Ticks) -> list[tuple[int, int, int]]:
    """Cut an interval at clip borders: (index of the clip, start, end) per piece; time between two clips belongs to none.

    Args:
        interval: [start, end).
        clips: int64 (C, 2), sorted, disjoint.
    """
    start, end = interval
    first = int(np.searchsorted(clips[:, 1], start, "right"))
    last = int(np.searchsorted(clips[:, 0], end, "left"))
    return [(i, max(start, int(clips[i, 0])), min(end, int(clips[i, 1]))) for i in range(first, last)]


def known(interval: tuple[int, int], samples: Samples) -> tuple[int, bool, bool]:
    """Say how much of an interval samples cover, in ticks, and whether what comes just before and just after it is known."""
    start, end = interval
    first = int(np.searchsorted(samples.end, start, "right"))
    last = int(np.searchsorted(samples.start, end, "left"))
    inside = np.minimum(samples.end[first:last], end) - np.maximum(samples.start[first:last], start)
    before = int(np.searchsorted(samples.start, start, "left")) - 1
    after = int(np.searchsorted(samples.end, end, "right"))
    is_known_before = before >= 0 and bool(samples.end[before] >= start)
    is_known_after = after < len(samples.start) and bool(samples.start[after] <= end)
    return int(inside.sum()), is_known_before, is_known_after


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Samples that say the same, put together: all that `find` needs, and little of it where nothing happens.

    Attributes:
        marks: value `ON` where the score reaches `on`, `OFF` where it is below `off`, `BETWEEN` else.
        peak: float64 (R,), the highest score of each run.
        peak_at: int64 (R,), where the sample of that score begins, the first of equals.
    """

    marks: Samples
    peak: NDArray[np.float64]
    peak_at: Ticks

    def later(self, ticks: int) -> Runs:
        """Return the same runs so many ticks later."""
        moved = Samples(self.marks.start + ticks, self.marks.end + ticks, self.marks.value)
        return Runs(moved, self.peak, self.peak_at + ticks)

    def find(self, rule: Rule, bounds: tuple[int, int] | None = None) -> Ticks:
        """Return what `find` would return for the samples."""
        shape = np.ones(len(self.peak))
        return find(self.marks, shape * ON, shape * BETWEEN, rule, bounds)

    def highest(self, start: int, end: int) -> tuple[float, int] | None:
        """Return the highest score that begins in [start, end), and where, the first of equals; None without one."""
        first = int(np.searchsorted(self.marks.end, start, "right"))
        last = int(np.searchsorted(self.marks.start, end, "left"))
        at, peak = self.peak_at[first:last], self.peak[first:last]
        is_inside = (at >= start) & (at < end)
        if not is_inside.any():
            return None
        best = int(np.argmax(np.where(is_inside, peak, -np.inf)))
        return float(peak[best]), int(at[best])


def runs(samples: Samples, on: NDArray[np.float64], off: NDArray[np.float64]) -> Runs:
    """Put neighbours together that are on, off or between the thresholds; a stretch without a sample parts them."""
    if not len(samples.start):
        return Runs(samples, samples.value, samples.start)
    mark = np.where(samples.value >= on, ON, np.where(samples.value < off, OFF, BETWEEN))
    is_new = np.ones(len(mark), np.bool_)
    is_new[1:] = (mark[1:] != mark[:-1]) | (samples.start[1:] != samples.end[:-1])
    first = np.flatnonzero(is_new)
    last = np.append(first[1:], len(mark)) - 1
    peak = np.maximum.reduceat(samples.value, first)
    number = np.cumsum(is_new) - 1
    at_peak = np.flatnonzero(samples.value == peak[number])
    _, firsts = np.unique(number[at_peak], return_index=True)
    made = Samples(samples.start[first], samples.end[last], mark[first].astype(np.float64))
    return Runs(made, peak, samples.start[at_peak[firsts]])


def joined(parts: Sequence[Runs]) -> Runs:
    """Return runs one after the other; they must be in order and disjoint."""
    none = np.zeros(0, np.int64)
    start, end, peak_at = (
        np.concatenate([none, *columns])
        for columns in ([p.marks.start for p in parts], [p.marks.end for p in parts], [p.peak_at for p in parts])
    )
    value, peak = (
        np.concatenate([np.zeros(0), *columns]) for columns in ([p.marks.value for p in parts], [p.peak for p in parts])
    )
    return Runs(Samples(start, end, value), peak, peak_at)
