"""How much of a picture moves: a share of pixels that differ from a running background. Classical, small and fast.

Works on small luma pictures (`SIDE_PX`), where sensor noise is averaged away. Before comparing, the background is given
the brightness and contrast of the frame (median and quartiles), so that clouds, exposure and gain do not count as motion;
a switched lamp still does for a moment, after which the background starts anew. No threshold is applied to the score.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SIDE_PX = 160  # longer side of the pictures compared
LEVELS = 18  # grey levels of 255 by which a pixel must differ; noise at this size is about 2 to 4
BACKGROUND_S = 2.0  # time constant of the background: what stands still for some seconds becomes part of it
RESTART_SHARE = 0.6  # more than this at once is a switched lamp or another scene, not things that move
MOST_GAIN = 3.0  # contrast may be adapted by this factor up or down

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
