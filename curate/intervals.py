"""From scores to intervals: hysteresis, merging, least length, padding. Pure functions on an integer time axis.

    samples (a score holds for [start, end)) -> switched on and off -> merged -> long enough -> padded

A score switches the layer on where it reaches `on`, off where it falls below `off`, and in between leaves it as it was.
**Unknown is no sample**: a stretch without one is neither on nor off. One that is no longer than `merge` is bridged like a
short stretch that was off, and the state is held across it; a longer one ends what was on, and what comes after it has to
reach `on` again. Intervals are half-open, sorted and disjoint: an int64 array (N, 2) of [start, end) in ticks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.errors import UsageError

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
    before = bool(np.any((samples.start < start) & (samples.end >= start)))
    after = bool(np.any((samples.start <= end) & (samples.end > end)))
    return int(inside.sum()), before, after


def peak(start: int, end: int, samples: Samples) -> int | None:
    """Return the index of the highest sample that begins in [start, end), the first of equals; None without one."""
    first, last = np.searchsorted(samples.start, (start, end), "left")
    return int(first + np.argmax(samples.value[first:last])) if last > first else None
