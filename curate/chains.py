"""Clips that follow each other, on one time axis: integer nanoseconds from the first frame of the first.

**Order.** Clips of a camera, recording and boot in the order of `seq`, then of time; how far apart they are say the monotonic
starts where both clips have one, else their UTC starts, else `seq` (the next one follows at once). A gap of more than `GAP_S`,
or a start that far before the other's end, ends the chain; a shorter gap is time of no clip. Ticks that are not shorter than a
nanosecond come back from the axis exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any, Final

import numpy as np

from curate.intervals import Ticks

GAP_S: Final = 1.0
COLUMNS: Final = (
    "clip_id", "camera_id", "recording_id", "boot_id", "seq", "start_ns", "start_mono_ns", "time_base_num", "time_base_den",
    "first_pts", "end_pts",
)  # fmt: skip
"""What a row of `clips` must have to be put into a chain."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Clips that follow each other: their rows, and [start, end) of each in ns from the first frame of the first."""

    clips: Sequence[Mapping[str, Any]]
    extent: Ticks


def chains(clips: Sequence[Mapping[str, Any]], join_s: float | None = None) -> list[Chain]:
    """Return clips as chains of those that follow each other (see the module).

    Args:
        clips: rows of table `clips`; their order does not matter.
        join_s: a camera's clips that follow within so many seconds (by their UTC starts) are one chain, whatever their
            recording; None: only those of one recording, within `GAP_S`.
    """
    gap_ns = round((GAP_S if join_s is None else join_s) * 1e9)
    made: list[Chain] = []
    for members in _recordings(clips, by_camera=join_s is not None):
        run: list[Mapping[str, Any]] = []
        extent: list[tuple[int, int]] = []
        for clip in members:
            gap = _gap_ns(run[-1], clip, extent[-1][1] - extent[-1][0]) if run else None
            if run and (gap is None or abs(gap) > gap_ns):
                made.append(Chain(run, np.array(extent, np.int64)))
                run, extent = [], []
            start = extent[-1][1] + max(0, gap or 0) if run else 0
            extent.append((start, start + length_ns(clip)))
            run.append(clip)
        made.append(Chain(run, np.array(extent, np.int64)))
    return made


def _recordings(clips: Sequence[Mapping[str, Any]], *, by_camera: bool) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the clips that may follow each other, in order; the groups by camera and time."""

    def order(clip: Mapping[str, Any]) -> tuple[Any, ...]:
        keyed = [clip["start_ns"]] if by_camera else [clip["seq"], clip["start_mono_ns"], clip["start_ns"]]
        return (*((value is None, value or 0) for value in keyed), clip["clip_id"])

    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for clip in sorted(clips, key=order):
        own = (clip["recording_id"] or clip["clip_id"], clip["boot_id"])
        groups.setdefault((clip["camera_id"],) if by_camera else (clip["camera_id"], *own), []).append(clip)
    yield from (groups[key] for key in sorted(groups, key=lambda key: [part or "" for part in key]))


def _gap_ns(before: Mapping[str, Any], after: Mapping[str, Any], before_ns: int) -> int | None:
    """Return the time from the end of one clip to the start of the next; None when nobody knows and they need not follow."""
    if before["boot_id"] == after["boot_id"] and None not in (before["start_mono_ns"], after["start_mono_ns"]):
        return int(after["start_mono_ns"] - before["start_mono_ns"] - before_ns)
    if None not in (before["start_ns"], after["start_ns"]):
        return int(after["start_ns"] - before["start_ns"] - before_ns)
    same = before["recording_id"] is not None and before["recording_id"] == after["recording_id"]
    follows = None not in (before["seq"], after["seq"]) and after["seq"] == before["seq"] + 1
    return 0 if same and follows else None


def _tick_ns(clip: Mapping[str, Any]) -> Fraction:
    return Fraction(1_000_000_000 * clip["time_base_num"], clip["time_base_den"])


def length_ns(clip: Mapping[str, Any]) -> int:
    """Return how long a clip is on the axis, at least 1."""
    made: int = floor((clip["end_pts"] - clip["first_pts"]) * _tick_ns(clip) + Fraction(1, 2))
    return max(1, made)


def to_ns(pts: Ticks, clip: Mapping[str, Any], offset: int) -> Ticks:
    """Return pts of a clip on the axis, where the clip begins at `offset`; rounded half up."""
    tick = _tick_ns(clip)
    made: Ticks = offset + (2 * (pts - clip["first_pts"]) * tick.numerator + tick.denominator) // (2 * tick.denominator)
    return made


def to_pts(at_ns: int, clip: Mapping[str, Any], offset: int) -> int:
    """Return a time on the axis as pts of a clip that begins at `offset`; rounded half up."""
    return int(clip["first_pts"] + floor((at_ns - offset) / _tick_ns(clip) + Fraction(1, 2)))
