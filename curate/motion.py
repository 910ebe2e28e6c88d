"""How much of a picture moves: a share of pixels that differ from a running background. Classical, small and fast.

Works on small luma pictures (`SIDE_PX`), where sensor noise is averaged away. Before comparing, the background is given
the brightness and contrast of the frame (median and quartiles), so that clouds, exposure and gain do not count as motion;
a switched lamp still does for a moment, after which the background starts anew. No threshold is applied to the score.

Two scores: version 1 (`Background`) is the share of all pixels that differ, learned forwards through a whole clip. Version 2
(`largest_shares`) is the share of the largest thing that moves, of a stretch of some seconds by itself, so that a stretch
scores the same whether or not the rest of its clip was decoded; what it stands up to is listed there.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

SIDE_PX = 160  # longer side of the pictures compared
LEVELS = 18  # grey levels of 255 by which a pixel must differ; noise at this size is about 2 to 4
BACKGROUND_S = 2.0  # time constant of the background: what stands still for some seconds becomes part of it
RESTART_SHARE = 0.6  # more than this at once is a switched lamp or another scene, not things that move
MOST_GAIN = 3.0  # contrast may be adapted by this factor up or down

VERSION_2 = 2  # of `largest_shares`: raised with every change of what it gives
LOOK_S = 0.09  # of one stretch, pictures at least so far apart are scored: what moves for less than that is not looked for
LEAST_FRAMES = 3
MEDIAN_FRAMES = 15
JUMP_LEVELS = 6  # grey levels by which
JUMP_SHARE = 0.3  # of the picture must get brighter (or darker) from one picture to the next: a lamp, not a thing
SETTLE_FRAMES = 2
SHAKE_PX = 1
SOLID_PX = 2
MOST_THINGS = 8
BRIGHT_LEVELS, DARK_LEVELS = 12.0, 4.0
BRIGHT_LUMA = 60.0  # median grey level from which a picture is bright
NOISE_SD = 4.0
SAME = 0.9
FINE_PX = (5, 5)  # structure finer than this is what a thing and the light on it are told apart by
LEAST_STRUCTURE = 9.0  # grey levels squared
_MEDIAN_TO_SD = 0.6745 * math.sqrt(2)

Luma = NDArray[np.uint8]


def moving_share(frame: Luma, background: NDArray[np.float32]) -> float:
    """Return the share of pixels, 0 to 1, of `frame` that differ from `background` after adapting its brightness and contrast.

    Args:
        frame: uint8 (H, W), luma.
        background: float32 (H, W), 0..255.
    """
    low, middle, high = _quartiles(frame)
    low_b, middle_b, high_b = _quartiles(background.astype(np.uint8))
    gain = np.clip((high - low + 1) / (high_b - low_b + 1), 1 / MOST_GAIN, MOST_GAIN)
    expected = (background - middle_b) * gain + middle
    np.clip(expected, 0, 255, out=expected)
    return float(np.count_nonzero(np.abs(frame - expected) > LEVELS) / frame.size)


class Background:
    """The picture without what moves, learned from one clip; feed its frames in order."""

    def __init__(self) -> None:
        self._mean: NDArray[np.float32] | None = None
        self._last_s = 0.0

    def score(self, frame: Luma, time_s: float) -> float | None:
        """Return the moving share of `frame` against the frames before it, and learn from it; None for the first.

        Args:
            frame: uint8 (H, W), luma, always of one size.
            time_s: seconds, increasing; the background forgets by time, not by frames.
        """
        if self._mean is None:
            self._mean, self._last_s = frame.astype(np.float32), time_s
            return None
        share = moving_share(frame, self._mean)
        if share > RESTART_SHARE:
            self._mean = frame.astype(np.float32)
        else:
            weight = np.float32(1 - math.exp(-max(0.0, time_s - self._last_s) / BACKGROUND_S))
            self._mean += weight * (frame - self._mean)
        self._last_s = time_s
        return share


def _quartiles(luma: Luma) -> tuple[float, float, float]:
    """Return the three quartiles of a uint8 picture, from its histogram."""
    counts = np.cumsum(np.bincount(luma.ravel(), minlength=256))
    low, middle, high = np.searchsorted(counts, (counts[-1] * 0.25, counts[-1] * 0.5, counts[-1] * 0.75))
    return float(low), float(middle), float(high)


class Pace:
    """Says which pictures of a stretch are scored: the first, and each at least `LOOK_S` after the last one that was.

    A camera of up to 11 frames a second is scored whole, one of 15 every second picture, one of 25 or 30 every third. The
    others have the score of the picture before them that was scored.
    """

    def __init__(self) -> None:
        self._last_s = -math.inf

    def is_due(self, time_s: float) -> bool:
        """Say whether a picture is scored; feed times in order."""
        is_due = time_s - self._last_s >= LOOK_S
        self._last_s = time_s if is_due else self._last_s
        return is_due


def largest_shares(luma: Luma, counts: NDArray[np.bool_] | None = None) -> list[float | None]:
    """Return, per picture of a stretch, the share of the picture that the largest moving thing covers: score version 2.

    Unlike `Background` it looks at both sides in time, needs no warm-up, and depends on nothing but these pictures:

    1. Where most of the picture gets brighter (or darker) at once, or nearly all of it changes, the light or the scene was
       switched: the stretch is cut there. `SETTLE_FRAMES` after it are unknown, and parts of under
       `LEAST_FRAMES`.
    2. The background of a part is its median picture; it is given each picture's brightness and contrast (clouds, exposure).
    3. A pixel differs when it lies outside what its neighbours in the background are (`SHAKE_PX`: a mount that shakes, a leaf,
       an edge that the encoder draws anew) by more than max(least levels, K x noise); the noise is that of this very picture
       (keyframe pulses, gain), the least levels fall with the light.
    4. Of what differs only squares of `SOLID_PX` count (not rain, not noise); those that nearly touch are one thing.
    5. A thing whose fine structure is that of the background is light on the same things (headlights, a lamp next door).

    Args:
        luma: uint8 (T, H, W), small pictures of one stretch, in order; a few seconds, so that the median is the background.
        counts: bool (H, W), False where a mask lies; None: everything counts.

    Returns:
        T scores from 0 to 1, None where it cannot be said; a picture of which most differs is another scene: None.
    """
    n = len(luma)
    scores: list[float | None] = [None] * n
    if n < LEAST_FRAMES:
        return scores
    open_ = np.ones(luma.shape[1:], bool) if counts is None else counts
    wide = luma.astype(np.int16)
    change = wide[1:] - wide[:-1]
    cuts = [0, *(np.flatnonzero(_switches(change)) + 1).tolist(), n]
    for start, end in itertools.pairwise(cuts):
        first = start + SETTLE_FRAMES if start else 0
        if end - first >= LEAST_FRAMES:
            scores[first:end] = _part_shares(luma[first:end], change[first : end - 1], open_)
    return scores


def _switches(change: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Say which steps from picture to picture are a change of light or scene: bool (T - 1,)."""
    size = change[0].size
    up = np.count_nonzero(change > JUMP_LEVELS, axis=(1, 2))
    down = np.count_nonzero(change < -JUMP_LEVELS, axis=(1, 2))
    most, least = np.maximum(up, down), np.minimum(up, down)
    made: NDArray[np.bool_] = ((most > JUMP_SHARE * size) & (least < 0.1 * most)) | (most + least > RESTART_SHARE * size)
    return made


def _part_shares(luma: Luma, change: NDArray[np.int16], open_: NDArray[np.bool_]) -> list[float | None]:
    """Return the scores of pictures between two switches."""
    import cv2

    chosen = luma[np.unique(np.linspace(0, len(luma) - 1, MEDIAN_FRAMES).round().astype(int))]
    middle = _middles(luma, open_)
    usual = np.median(middle, axis=1)
    gain = np.clip((middle[2] - middle[0] + 2) / (usual[2] - usual[0] + 2), 1 / MOST_GAIN, MOST_GAIN)
    background = np.median(chosen, axis=0).astype(np.float32)
    kernel = np.ones((2 * SHAKE_PX + 1, 2 * SHAKE_PX + 1), np.uint8)
    low, high = cv2.erode(background, kernel), cv2.dilate(background, kernel)
    fine = background - cv2.blur(background, FINE_PX)
    steps = np.abs(change).reshape(len(change), -1)[:, ::3]
    noise = np.concatenate([np.median(steps, axis=1), [0.0]]) / _MEDIAN_TO_SD
    noise = np.maximum(noise, np.concatenate([[0.0], noise[:-1]]))
    levels = np.maximum(_least_levels(float(usual[1])), NOISE_SD * noise)
    size = int(np.count_nonzero(open_))
    scores: list[float | None] = []
    for number, picture in enumerate(luma):
        offset = middle[1, number] - usual[1] * gain[number]
        floor = low * gain[number] + (offset - levels[number])
        ceiling = high * gain[number] + (offset + levels[number])
        differs = ((picture < floor) | (picture > ceiling)) & open_
        n_differ = np.count_nonzero(differs)
        if n_differ < SOLID_PX * SOLID_PX:
            scores.append(0.0)
        elif n_differ > RESTART_SHARE * size:
            scores.append(None)
        else:
            scores.append(_largest(differs, picture, fine, size))
    return scores


def _middles(luma: Luma, open_: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the quartiles of each picture where it counts, every third pixel of it: float32 (3, T)."""
    wanted = luma[:, ::3][:, open_[::3]]
    counts = np.cumsum([np.bincount(picture, minlength=256) for picture in wanted], axis=1)
    at = [[np.searchsorted(one, share * one[-1]) for one in counts] for share in (0.25, 0.5, 0.75)]
    return np.array(at, np.float32)


def _largest(differs: NDArray[np.bool_], picture: Luma, fine: NDArray[np.float32], size: int) -> float:
    """Return the share of the picture that the largest thing covers which is not just light on the same things.

    Args:
        differs: bool (H, W).
        picture: uint8 (H, W).
        fine: float32 (H, W), the fine structure of the background.
        size: pixels that count.
    """
    import cv2

    solid = cv2.morphologyEx(differs.view(np.uint8), cv2.MORPH_OPEN, np.ones((SOLID_PX, SOLID_PX), np.uint8))
    if not solid.any():
        return 0.0
    n, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(solid, np.ones((3, 3), np.uint8)), connectivity=8)
    labels *= solid
    areas = np.bincount(labels.ravel(), minlength=n)
    now = picture - cv2.blur(picture.astype(np.float32), FINE_PX)
    for label in sorted(range(1, n), key=lambda one: -areas[one])[:MOST_THINGS]:
        left, top, width, height = stats[label, :4]
        box = np.s_[top : top + height, left : left + width]
        thing = labels[box] == label
        if _likeness(now[box][thing], fine[box][thing]) <= SAME:
            return min(1.0, float(areas[label]) / size)
    return 0.0


def _likeness(now: NDArray[np.float32], before: NDArray[np.float32]) -> float:
    """Return the correlation of the same pixels in two pictures, 0 where one of them has no structure."""
    a, b = now - now.mean(), before - before.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > LEAST_STRUCTURE * len(a) else 0.0


def _least_levels(middle: float) -> float:
    """Return the difference in grey levels that is asked for at least: less in the dark, where a person differs little."""
    return DARK_LEVELS + (BRIGHT_LEVELS - DARK_LEVELS) * min(1.0, middle / BRIGHT_LUMA)
