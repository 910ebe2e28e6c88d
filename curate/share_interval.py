"""A share with its 95 % interval, when what is counted comes in groups: frames of one recording resemble each other.

    value = sum of hits / sum of totals, over groups
    m     = (sum of totals)^2 / sum of totals^2            how many equal groups the groups are worth (Kish 1965)
    n_eff = value (1 - value) / variance over groups       how many independent units they are worth
    e     = hits - value x totals, per group;  d = (sum of e^2)^2 / sum of e^4   how many groups that variance comes from

The variance is that of a ratio over groups, linearised, times G / (G - 1) (Cochran, Sampling Techniques, 3rd edition, 1977,
6.3). Two intervals of Wilson's kind (1927), with Student's t in place of the normal quantile:
    measured   n_eff units, t with d degrees: where one bad recording makes all the variance, one group has spoken
    careful    at most m units, t with G - 1 degrees: as if each recording were one observation
With fewer than `FEW` groups the careful one counts, else the narrower; one group says nothing about others: [0, 1].
`tests/bench/tag_intervals.py` simulates the coverage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.errors import UsageError

FEW: Final = 10
LEVEL: Final = 0.95
_Z: Final = NormalDist().inv_cdf((1 + LEVEL) / 2)
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % quantiles for 1 to 9 degrees


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share in [0, 1] with its interval, ends included; `value` is None, and the interval [0, 1], where nothing was counted.

    `n` counts rows (frames), `n_groups` the recordings that they come from.
    """

    value: float | None
    low: float
    high: float
    n: int
    n_groups: int

    def __str__(self) -> str:
        shown = "unknown" if self.value is None else f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"{shown} of {self.n} frames in {self.n_groups} recordings"


def share(hits: ArrayLike, totals: ArrayLike, *, n: int | None = None) -> Share:
    """Return sum(hits) / sum(totals) with its interval.

    Args:
        hits: (G,) per group, in the unit of totals (frames, or seconds of footage).
        totals: (G,) per group; groups with total 0 are left out.
        n: rows counted; default: the sum of totals.

    Raises:
        UsageError: hits outside [0, totals], or arrays that do not belong together.
    """
    h, t = np.asarray(hits, np.float64), np.asarray(totals, np.float64)
    if h.shape != t.shape or h.ndim != 1 or not (np.all(h >= 0) and np.all(h <= t * (1 + 1e-9))):
        raise UsageError(f"hits {h.shape} and totals {t.shape}: give one of each per group, 0 <= hits <= totals")
    h, t = h[t > 0], t[t > 0]
    rows = round(float(t.sum())) if n is None else n
    if not len(t):
        return Share(value=None, low=0.0, high=1.0, n=rows, n_groups=0)
    value = min(float(h.sum() / t.sum()), 1.0)
    if len(t) == 1:
        return Share(value=value, low=0.0, high=1.0, n=rows, n_groups=1)
    low, high = _interval(value, h, t)
    return Share(value=value, low=min(low, value), high=max(high, value), n=rows, n_groups=len(t))


def _interval(value: float, h: NDArray[np.float64], t: NDArray[np.float64]) -> tuple[float, float]:
    """Return the interval of G >= 2 groups; see the module."""
    n_groups, squares = len(t), (h - value * t) ** 2
    worth = float(t.sum() ** 2 / (t**2).sum())
    variance = float(n_groups / (n_groups - 1) * squares.sum() / t.sum() ** 2)
    if variance <= 1e-12:  # all groups agree
        return wilson(value, worth, student_t(n_groups - 1))
    n_eff = max(value * (1 - value) / variance, 1.0)
    careful = wilson(value, min(n_eff, worth), student_t(n_groups - 1))
    if n_groups < FEW:
        return careful
    measured = wilson(value, n_eff, student_t(min(float(squares.sum() ** 2 / (squares**2).sum()), n_groups - 1)))
    return min(measured, careful, key=lambda ends: ends[1] - ends[0])


def wilson(value: float, n: float, quantile: float = _Z) -> tuple[float, float]:
    """Return Wilson's interval of a share found in n units; `n` may be a fraction."""
    square = quantile**2
    centre = (value + square / (2 * n)) / (1 + square / n)
    half = quantile / (1 + square / n) * math.sqrt(max(value * (1 - value) / n + square / (4 * n**2), 0.0))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def student_t(degrees: float) -> float:
    """Return the 97.5 % quantile of Student's t; between whole degrees (at least 1) on a straight line.

    From 10 degrees on the expansion 26.7.5 of Abramowitz and Stegun, Handbook of Mathematical Functions, to three terms
    (off by under 1e-3).
    """
    least = max(int(degrees), 1)
    part = max(degrees - least, 0.0)
    return (1 - part) * _whole_t(least) + part * _whole_t(least + 1)


def _whole_t(degrees: int) -> float:
    if degrees <= len(_T):
        return _T[degrees - 1]
    terms = (
        (_Z**3 + _Z) / 4,
        (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96,
        (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384,
    )
    return float(_Z + sum(term / degrees ** (i + 1) for i, term in enumerate(terms)))
