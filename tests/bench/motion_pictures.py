"""A missed event as a picture: `tests/bench/motion.py --pictures DIR` writes one strip for each.

From left to right: 1 s before the event, its middle, 1 s after it, and the frame of it that differs most from the first
picture, as that difference (times 3). Below lies the clip's time from left to right: green the event, then one bar for each
way with the intervals that it found, in the order of the table. What was missed, and what was said instead, at a glance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from infra import video

WIDTH_PX, BAR_PX, GAP_PX = 320, 14, 4
AROUND_S = 1.0
EVERY_S = 0.1
EVENT_RGB, FOUND_RGB, EMPTY_RGB = (60, 180, 75), (245, 130, 48), (60, 60, 60)
Interval = tuple[float, float]
Rgb = npt.NDArray[np.uint8]


def write(path: Path, event: Interval, found: Sequence[Sequence[Interval]], folder: Path) -> Path:
    """Write the strip of one missed event.

    Args:
        path: the clip.
        event: [start, end) of what was missed, in seconds.
        found: for each way its intervals in seconds.
        folder: where the picture goes; made if it is missing.

    Returns:
        `folder`/clip_start-end.png, RGB, about 1,280 px wide.
    """
    probe = video.probe(path)
    tick_s = float(probe.time_base)
    first_s, last_s = probe.first_pts * tick_s, probe.end_pts * tick_s
    start_s, end_s = event
    size_px = (WIDTH_PX, round(WIDTH_PX * probe.height_px / probe.width_px))
    near = [round((start_s - 2 * AROUND_S) / tick_s), round((end_s + 2 * AROUND_S) / tick_s)]
    times: list[float] = []
    shown: list[Rgb] = []
    for part in video.decode(path, start_pts=near[0], end_pts=near[1], size_px=size_px, every_s=EVERY_S, index=probe.index):
        times += [float(pts) * tick_s for pts in part.pts]
        shown += list(part.rgb.copy())
    at = [_nearest(times, moment) for moment in (start_s - AROUND_S, (start_s + end_s) / 2, end_s + AROUND_S)]
    inside = [number for number, moment in enumerate(times) if start_s <= moment < end_s] or [at[1]]
    differences = [np.abs(shown[number].astype(np.int16) - shown[at[0]]).max(axis=2) for number in inside]
    most = np.clip(3 * max(differences, key=lambda one: float(one.mean())), 0, 255).astype(np.uint8)
    strip = np.concatenate([shown[at[0]], shown[at[1]], shown[at[2]], np.repeat(most[:, :, None], 3, axis=2)], axis=1)
    rows = [strip]
    for colour, intervals in ((EVENT_RGB, [event]), *((FOUND_RGB, one) for one in found)):
        rows += [np.zeros((GAP_PX, strip.shape[1], 3), np.uint8), _bar(intervals, (first_s, last_s), strip.shape[1], colour)]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{path.stem}_{start_s:.1f}-{end_s:.1f}.png"
    Image.fromarray(np.concatenate(rows)).save(target, optimize=True)
    return target


def _nearest(times: Sequence[float], moment: float) -> int:
    return int(np.argmin([abs(one - moment) for one in times]))


def _bar(intervals: Iterable[Interval], whole: Interval, width: int, colour: tuple[int, int, int]) -> Rgb:
    bar = np.full((BAR_PX, width, 3), EMPTY_RGB, np.uint8)
    scale = width / (whole[1] - whole[0])
    for start_s, end_s in intervals:
        left, right = round((start_s - whole[0]) * scale), round((end_s - whole[0]) * scale)
        bar[:, left : max(right - 1, left + 1)] = colour  # a pixel apart, so that two that touch are two
    return bar
