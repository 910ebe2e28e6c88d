"""Motion on small pictures: how large is the largest thing that moves, and has it moved for long enough?

Per picture, in numpy only:

1. **Grid.** Grey pictures of at most `GRID_PX` on the longer side, by averaging whole blocks of pixels: noise falls with
   the square root of their number.
2. **Light.** The background m is given the picture's brightness and contrast: m' = (m - median m) g + median, with g the
   ratio of their quartile ranges, 1/2 to 2. Clouds, exposure and gain change all pixels alike and do not count.
3. **Noise.** A pixel differs when |grey - m'| > max(l, K sqrt(v + n^2)) / sensitivity: v is the running variance of the
   pixel (a waving tree has a large one, at most `MOST_SD`^2), n the noise of this very picture, the median of |grey - grey
   before| / .954 (for Gaussian noise the median of the difference of two pictures is .6745 sqrt(2) sd). So what is asked for
   rises with the noise when the sensor's gain does, in the dark (frigate#23246). l is the least difference in grey levels:
   LEVELS in light, down to LEVELS_DARK in full darkness, where a person differs from the wall by a few levels only.
4. **Things.** Of blocks of 4 x 4 grid pixels those count of which at least half differ; what the masks cover never does.
   Blocks that touch, corners too, are one thing. `share` is the largest thing's share of the picture that is not masked.
5. **Score** = share / (share + least_share): 0 nothing, .5 exactly the least size, 1 everything.
6. **Shadow and light.** When picture and background correlate by more than `SAME` within the thing, the same things stand
   there in another light: no motion. (A patch of sun with a hard edge across a flat wall does look like a thing.)
7. **Duration.** It is motion when the score has been .5 or more for `least_duration_s`, holes up to `HOLE_S` forgiven: an
   insect in front of the infrared lamp is large, and gone (frigate#14818).
8. **Sudden light.** When more than `SUDDEN_SHARE` of the picture differs at once, or more than `JUMP_SHARE` of it got
   brighter (or darker) from one picture to the next, a lamp was switched, the exposure stepped, or the camera went to
   infrared. The background starts anew, and nothing counts until the picture has stood still again, `SETTLE_S` at least,
   `SETTLE_MOST_S` at most.

The background forgets by time, not by frames: with time constant `BACKGROUND_S` where nothing differs, `OBJECT_S` where
something does (what stands still for about that long becomes part of it). The first pictures count alike, as in a plain
mean, against a first guess of the variance that weighs `PRIOR_FRAMES`. Nothing learned crosses a gap of `GAP_S`.

The constants were chosen on one set of clips and judged on another (tests/bench/trigger.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.picture import Rgb
from infra.regions import Region, covered

GRID_PX = 160  # longer side of the pictures compared, as in curate/motion.py
BLOCK = 4  # grid pixels on the side of a block
LEVELS = 12.0  # grey levels of 255
K = 3.5  # standard deviations
MOST_SD = 12.0  # of a pixel's own changes, in grey levels: what waves more is still seen when something larger comes
LEVELS_DARK = 3.0
BRIGHT_LUMA = 60.0  # mean grey level from which a picture is bright
PRIOR_FRAMES = 15  # what the first guess of the variance, 4, weighs
BACKGROUND_S = 4.0
OBJECT_S = 20.0
HOLE_S = 0.35
SUDDEN_SHARE = 0.5
JUMP_SHARE = 0.3  # of the picture, brighter (or darker) by JUMP_LEVELS than the one before
JUMP_LEVELS = 6.0
SAME = 0.97
SETTLE_S = 1.0
SETTLE_MOST_S = 8.0
STILL_SHARE = 0.02  # of grid pixels that differ from one picture to the next, when the light has settled
GAP_S = 60.0
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_MEDIAN_TO_SD = 0.6745 * math.sqrt(2)

Grey = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What counts as motion: sensitivity (1 is usual, 2 halves the differences asked for), least size and duration."""

    sensitivity: float = 1.0
    least_share: float = 0.004
    least_duration_s: float = 0.4


@dataclass(frozen=True, slots=True)
class Moved:
    """What was seen in one picture: the score of point 5, the largest thing's share; `lasted` means motion; why."""

    score: float
    share: float
    lasted: bool
    reason: str


class Motion:
    """Watches one camera; feed its small pictures in order.

    Args:
        masks: regions that never count.
    """

    def __init__(self, masks: Sequence[Region] = ()) -> None:
        self._masks = tuple(masks)
        self._open: NDArray[np.bool_] | None = None  # what the masks leave, per grid pixel
        self._mean: Grey | None = None
        self._last: Grey
        self._variance: Grey
        self._last_ns = 0
        self._n_learned = 0
        self._since_ns: int | None = None  # when the motion under way began
        self._seen_ns = 0  # when it was last seen
        self._settling_ns: int | None = None  # when the light last jumped
        self._still_ns = 0  # since when the picture has stood still after that

    def see(self, small: Rgb, sensor_ns: int, thresholds: Thresholds) -> Moved:
        """Look at one picture and learn from it.

        Args:
            small: uint8 (h, w, 3) RGB, always of one size.
            sensor_ns: its time, increasing.
            thresholds: what counts now.
        """
        grey = grey_grid(small)
        dt_s = (sensor_ns - self._last_ns) / 1e9
        if self._mean is None or grey.shape != self._mean.shape or not 0 < dt_s <= GAP_S:
            self._start(grey, sensor_ns)
            return Moved(0.0, 0.0, False, "first picture")
        change = grey - self._last
        step = np.abs(change)
        noise = float(np.median(step)) / _MEDIAN_TO_SD
        difference = np.abs(grey - lit_like(self._mean, grey))
        limit = np.sqrt(self._variance + noise * noise)
        limit *= K
        np.maximum(limit, least_levels(float(grey.mean())), out=limit)
        limit /= thresholds.sensitivity
        differs = difference > limit
        self._last_ns, self._last = sensor_ns, grey
        if np.count_nonzero(differs) > SUDDEN_SHARE * differs.size or light_jumped(change):
            self._start(grey, sensor_ns)
            self._settling_ns = self._still_ns = sensor_ns
            return Moved(0.0, 0.0, False, "sudden light")
        if self._settling_ns is not None and self._settles(step, limit, sensor_ns):
            self._learn(grey, differs & False, dt_s, faster=8.0)
            return Moved(0.0, 0.0, False, "light settles")
        self._learn(grey, differs, dt_s)
        hole_ns = round(max(HOLE_S, 1.5 * dt_s) * 1e9)  # a camera may give one picture a second
        return self._judge(grey, differs, sensor_ns, hole_ns, thresholds)

    def _start(self, grey: Grey, sensor_ns: int) -> None:
        self._mean, self._last, self._last_ns = grey.copy(), grey, sensor_ns
        if self._open is None or self._open.shape != grey.shape:
            self._open = ~covered(self._masks, (grey.shape[1], grey.shape[0]))
            self._variance = np.full(grey.shape, 4.0, np.float32)
            self._n_learned = 1
        self._since_ns = self._settling_ns = None

    def _settles(self, step: Grey, limit: Grey, sensor_ns: int) -> bool:
        """Say whether the light still settles; ends the settling when it does not."""
        assert self._settling_ns is not None
        if np.count_nonzero(step > limit) > STILL_SHARE * step.size:
            self._still_ns = sensor_ns
        if sensor_ns - self._still_ns >= SETTLE_S * 1e9 or sensor_ns - self._settling_ns >= SETTLE_MOST_S * 1e9:
            self._settling_ns = None
        return self._settling_ns is not None

    def _learn(self, grey: Grey, differs: NDArray[np.bool_], dt_s: float, faster: float = 1.0) -> None:
        assert self._mean is not None
        self._n_learned += 1  # the first seconds count alike: a running mean
        background = np.float32(max(1 / self._n_learned, 1 - math.exp(-faster * dt_s / BACKGROUND_S)))
        object_ = np.float32(max(1 / (self._n_learned + PRIOR_FRAMES), 1 - math.exp(-faster * dt_s / OBJECT_S)))
        change = grey - self._mean
        weight = np.where(differs, object_, background)
        square = np.minimum(change * change, np.float32(MOST_SD * MOST_SD))
        self._mean += weight * change
        self._variance += object_ * (square - self._variance)

    def _judge(self, grey: Grey, differs: NDArray[np.bool_], sensor_ns: int, hole_ns: int, thresholds: Thresholds) -> Moved:
        assert self._open is not None and self._mean is not None
        thing = largest_thing(differs & self._open)
        share = len(thing) * BLOCK * BLOCK / max(1, int(np.count_nonzero(self._open)))
        score = share / (share + thresholds.least_share)
        if score < 0.5:
            return Moved(score, share, False, "too small" if share else "still")
        if likeness(grey, self._mean, thing) > SAME:
            return Moved(score, share, False, "light on the same things")
        if self._since_ns is None or sensor_ns - self._seen_ns > hole_ns:
            self._since_ns = sensor_ns
        self._seen_ns = sensor_ns
        lasted = sensor_ns - self._since_ns >= thresholds.least_duration_s * 1e9
        return Moved(score, share, lasted, f"motion in {share:.1%} of the picture" if lasted else "not for long enough")


def grey_grid(small: Rgb) -> Grey:
    """Return the mean grey level of whole blocks of pixels: float32, at most about `GRID_PX` on the longer side.

    Args:
        small: uint8 (h, w, 3) RGB; up to a block's width at the right and lower edge is left out.
    """
    n = max(1, round(max(small.shape[:2]) / GRID_PX))
    height, width = small.shape[0] // n, small.shape[1] // n
    rows = small[: height * n : n, : width * n].astype(np.uint16)
    for offset in range(1, n):
        rows += small[offset : height * n : n, : width * n]
    weights = np.tile(_GREY / (n * n), n)
    grey: Grey = (rows.reshape(height * width, 3 * n).astype(np.float32) @ weights).reshape(height, width)
    return grey


def lit_like(mean: Grey, grey: Grey) -> Grey:
    """Return the background with the brightness and contrast of `grey` (point 2)."""
    low, middle, high = _quartiles(grey)
    low_m, middle_m, high_m = _quartiles(mean)
    gain = min(2.0, max(0.5, (high - low + 2) / (high_m - low_m + 2)))
    return (mean - np.float32(middle_m)) * np.float32(gain) + np.float32(middle)


def light_jumped(change: Grey) -> bool:
    """Say whether most of a picture got brighter at once, or darker: a lamp, not a thing (point 8).

    Args:
        change: float32 (h, w), grey levels against the picture before.
    """
    n_up, n_down = np.count_nonzero(change > JUMP_LEVELS), np.count_nonzero(change < -JUMP_LEVELS)
    return bool(max(n_up, n_down) > JUMP_SHARE * change.size and min(n_up, n_down) < 0.1 * max(n_up, n_down))


def least_levels(luma: float) -> float:
    """Return the difference in grey levels that is asked for at least, however little noise there is (point 3)."""
    return LEVELS_DARK + (LEVELS - LEVELS_DARK) * min(1.0, luma / BRIGHT_LUMA)


def largest_thing(differs: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the blocks of the largest connected run of busy ones: (n, 2), row and column.

    Args:
        differs: bool (h, w).
    """
    counts = _per_block(differs.view(np.uint8)).sum(axis=(1, 3), dtype=np.uint8)
    busy = {(y, x) for y, x in np.argwhere(counts >= BLOCK * BLOCK // 2).tolist()}
    largest: list[tuple[int, int]] = []
    while len(busy) > len(largest):
        thing = [busy.pop()]
        for y, x in thing:  # grows while it is read
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & busy
            busy -= near
            thing += near
        largest = max(largest, thing, key=len)
    return np.array(largest, np.intp).reshape(-1, 2)


def likeness(grey: Grey, mean: Grey, thing: NDArray[np.intp]) -> float:
    """Return the correlation of picture and background within the thing's blocks, 0 where one of them has no structure."""
    now, before = (_per_block(picture)[thing[:, 0], :, thing[:, 1]].ravel() for picture in (grey, mean))
    now, before = now - now.mean(), before - before.mean()
    scale = math.sqrt(float(now @ now) * float(before @ before))
    return float(now @ before) / scale if scale > LEVELS_DARK**2 * len(now) else 0.0


def _per_block(picture: NDArray[Any]) -> NDArray[Any]:
    """Return a view (rows of blocks, BLOCK, columns of blocks, BLOCK), without what is left over at the edges."""
    height, width = picture.shape[0] // BLOCK, picture.shape[1] // BLOCK
    return picture[: height * BLOCK, : width * BLOCK].reshape(height, BLOCK, width, BLOCK)


def _quartiles(grey: Grey) -> tuple[float, float, float]:
    counts = np.cumsum(np.bincount(grey.astype(np.uint8).ravel(), minlength=256))
    low, middle, high = np.searchsorted(counts, (counts[-1] * 0.25, counts[-1] * 0.5, counts[-1] * 0.75))
    return float(low), float(middle), float(high)
