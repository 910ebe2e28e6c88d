"""What a filter lost: recall with an interval, from a random sample of what it dropped. Pure statistics, no tables.

    units kept    --> all judged --> K positives
    units dropped --> each looked at with its known probability p --> found positives --> how many there are in all
    recall = K / (K + sum of n / p over what was found)

A unit (frame, GOP, clip) is looked at or not by a draw of its own, so that p is known and the order never matters. What was
found is counted exactly; uncertain is only how many positives were *not* looked at. Each found unit stands for n (1 - p) / p
of them. Their number gets gamma bounds with the mean and variance of that sum (Fay and Feuer 1997, doi 10.1002/(SICI)1097-0258
(19970415)16:7<791::AID-SIM500>3.0.CO;2-#), the upper one as if one more unit had been found, the one that would weigh most:
with equal p these are the exact bounds of a Poisson count, with p = 1 nothing is uncertain, and unequal weights only widen
them. Positives of one cluster (an event) count as one finding. When nothing was found, the bound is one-sided: with m looks
at D dropped units it is K / (K + 3 D / m), the rule of three. `tests/bench/audit_coverage.py` simulates the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

CONFIDENCE: Final = 0.95
STRETCH_S: Final = 1.0  # of GOPs that the packet gate draws together: `curate.gate`
SHARE_HIGH: Final = 0.75
"""Of what may be outside, how much above the interval of missed positives, where something was found: the lower end of recall
is the one that counts. With nothing found all of it is; so at most 1.25 x 5 % are outside, whatever the truth: 93.75 %."""
_TERMS: Final = 10_000  # of a series or a continued fraction; both end after about sqrt(shape) terms
_HALVINGS: Final = 100

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval, ends included."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What is known of a filter's loss.

    Attributes:
        n_in: units that reached the filter.
        n_kept: of these, units that it let through.
        n_looked: dropped units that were looked at anyway.
        n_found: of these, units with a positive.
        kept: positives among the kept units; estimated where not all of them were judged.
        missed: positives among the dropped units.
        recall: kept / (kept + missed); None where neither was found. `low` is 0 where no dropped unit had a chance of a look
            and nothing bounds their number.
    """

    n_in: int
    n_kept: int
    n_looked: int
    n_found: int
    kept: Estimate
    missed: Estimate
    recall: float | None
    low: float
    high: float

    @property
    def n_dropped(self) -> int:
        """Units that the filter dropped."""
        return self.n_in - self.n_kept


def total(
    p_look: Sequence[float] | Floats,
    n_positive: Sequence[float] | Floats | None = None,
    cluster: Sequence[object] | None = None,
    *,
    least_p: float,
    most_positive: float = 1.0,
    unseen: float = math.inf,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Estimate how many positives there are in all, from those that a random sample found.

    Args:
        p_look: (n,) probability in (0, 1] with which each found unit came to be looked at.
        n_positive: (n,) positives in each; 1 without.
        cluster: (n,) what belongs together (the event); each unit by itself without.
        least_p: the least probability of any unit that was not looked at; 0 says that some had no chance, 1 that all were.
        most_positive: the most positives that one unit can hold.
        unseen: how many positives the units that were not looked at can hold at most.
        confidence: of the interval; where nothing was found it has an upper end only (see `SHARE_HIGH`).

    Raises:
        ValueError: a probability outside (0, 1].
    """
    p = np.asarray(p_look, np.float64)
    n = np.ones(len(p)) if n_positive is None else np.asarray(n_positive, np.float64)
    if not ((p > 0) & (p <= 1)).all() or not 0 <= least_p <= 1:
        raise ValueError(f"p_look {p.tolist()[:5]}, least_p {least_p}: a probability of a look is above 0 and at most 1")
    seen, unseen_each, spread = float(n.sum()), n * (1 - p) / p, n * np.sqrt(1 - p) / p
    _, groups = np.unique(np.arange(len(p)) if cluster is None else np.array([str(c) for c in cluster]), return_inverse=True)
    mean = float(unseen_each.sum())
    variance = float((np.bincount(groups, weights=spread, minlength=1) ** 2).sum()) if len(p) else 0.0
    outside = 1 - confidence
    low = min(unseen, math.floor(gamma_bound(mean, variance, outside * (1 - SHARE_HIGH))))
    if least_p == 1 or unseen == 0:
        high = 0.0
    elif least_p == 0:
        high = unseen
    else:
        more, more_variance = most_positive * (1 - least_p) / least_p, most_positive**2 * (1 - least_p) / least_p**2
        upper = 1 - outside * (SHARE_HIGH if len(p) else 1)
        high = min(unseen, math.ceil(gamma_bound(mean + more, variance + more_variance, upper)))
    return Estimate(seen + min(mean, unseen), seen + low, seen + max(high, low))


def recall_of(kept: Estimate, missed: Estimate) -> tuple[float | None, float, float]:
    """Return kept / (kept + missed) with the ends that the ends of both give; None, 0, 1 where there was nothing to find."""
    there = kept.value + missed.value
    low = kept.low / (kept.low + missed.high) if kept.low + missed.high > 0 else 0.0
    high = kept.high / (kept.high + missed.low) if kept.high + missed.low > 0 else 1.0
    return (kept.value / there if there > 0 else None), low, high


def audit(units: pl.DataFrame, *, most_positive: float = 1.0, confidence: float = CONFIDENCE) -> Audit:
    """Estimate the recall of one filter.

    Args:
        units: one row per unit that reached the filter: `kept` (bool), `p_look` (the probability of being looked at, 0 where
            there was none), `n_positive` (null where it was not looked at); optional `cluster` (the event of what was
            found, else each unit by itself).
        most_positive: how many positives one draw can bring at most: those of a unit, times the units that share a draw.
        confidence: see `total`. Where kept positives are estimated too, each part takes half of what may be outside.
    """
    import polars as pl

    kept, dropped = units.filter(pl.col("kept")), units.filter(~pl.col("kept"))
    is_sampled = bool((kept["p_look"] < 1).any())
    level = (1 + confidence) / 2 if is_sampled else confidence
    n_kept, n_missed = (_total(part, most_positive, level) for part in (kept, dropped))
    recall, low, high = recall_of(n_kept, n_missed)
    looked = dropped.filter(pl.col("n_positive").is_not_null())
    return Audit(
        n_in=units.height, n_kept=kept.height, n_looked=looked.height, n_found=looked.filter(pl.col("n_positive") > 0).height,
        kept=n_kept, missed=n_missed, recall=recall, low=low, high=high,
    )  # fmt: skip


def _total(units: pl.DataFrame, most_positive: float, confidence: float) -> Estimate:
    import polars as pl

    found = units.filter(pl.col("n_positive") > 0)
    chance = units.filter(pl.col("p_look") < 1)
    return total(
        found["p_look"].to_numpy(),
        found["n_positive"].to_numpy(),
        found["cluster"].to_list() if "cluster" in units.columns else None,
        least_p=float(chance["p_look"].min() or 0.0) if chance.height else 1.0,  # type: ignore[arg-type]
        most_positive=most_positive,
        unseen=float(units["n_positive"].null_count()),
        confidence=confidence,
    )


def looks_needed(
    kept: float, n_dropped: int, wanted: float, *, n_looked: int = 0, n_found: int = 0, confidence: float = CONFIDENCE
) -> int | None:
    """Return how many looks at dropped units, in all, would show a recall of at least `wanted`.

    Args:
        kept: positives that the filter kept (K).
        n_dropped: units that it dropped (D).
        wanted: the recall to be shown, in (0, 1).
        n_looked: looks so far (m).
        n_found: positives that they found; further looks are taken to find as many per look.
        confidence: of the bound.

    Returns:
        With nothing found so far the least m with K / (K + 3 D / m) >= `wanted`, at most D. None where no number of looks
        would show it: nothing was kept, or what was found so far says that the recall is lower.
    """
    if n_dropped == 0:
        return 0
    allowed = kept * (1 - wanted) / wanted
    rate = n_found / n_looked if n_looked else 0.0
    if kept <= 0 or rate * n_dropped > allowed:
        return None
    few, many = 0, n_dropped
    while few + 1 < many:
        middle = (few + many) // 2
        p = middle / n_dropped
        found = round(rate * middle)
        high = total([p] * found, least_p=p, unseen=n_dropped - middle, confidence=confidence).high
        few, many = (few, middle) if high <= allowed else (middle, many)
    return many


def gamma_bound(mean: float, variance: float, probability: float) -> float:
    """Return the quantile of the gamma distribution with this mean and variance; 0 where all but all of it is at 0."""
    shape = round(mean**2 / variance, 12) if mean > 0 else 0.0
    return _quantile(shape, probability) * variance / mean if shape > 0 else 0.0


@lru_cache(maxsize=65_536)
def _quantile(shape: float, probability: float) -> float:
    """Return x with P(shape, x) = probability, by halving on a logarithmic scale (tiny shapes have tiny quantiles)."""
    low, high = -745.0, math.log(shape + 40 * math.sqrt(shape) + 100)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(shape, math.exp(middle)) < probability else (low, middle)
    return math.exp((low + high) / 2)


def _below(shape: float, x: float) -> float:
    """Return the regularised lower incomplete gamma function P(shape, x): a series below the mean, a fraction above it."""
    if x <= 0:
        return 0.0
    scale = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1:
        term = added = 1 / shape
        for n in range(1, _TERMS):
            term *= x / (shape + n)
            added += term
            if term < added * 1e-15:
                break
        return scale * added
    b = x + 1 - shape
    c, d = 1e300, 1 / b
    fraction = d
    for n in range(1, _TERMS):
        a = n * (shape - n)
        b += 2
        d = 1 / (a * d + b or 1e-300)
        c = b + a / c or 1e-300
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return 1 - scale * fraction
