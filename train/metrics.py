"""Figures and their intervals: pure functions of confusion matrices, one per group.

Every metric is a function of a confusion matrix, and matrices of groups add up. So one kind of interval serves all:
frames of one group (a recording, a source video) resemble each other, therefore whole groups are resampled, never frames.

    fewer than 10 groups   no interval: the verdict is unknown
    10 to 40 groups        t interval over groups (below), its coverage simulated and reported
    more than 40           cluster bootstrap: 2000 resamples of groups, percentiles 2.5 and 97.5

**The t interval.** Percentiles of few groups are too narrow, and a dozen faultless groups would give [1, 1]. So one
imagined group of average size, half of it right, joins the others (as Agresti and Coull add imagined trials to a
binomial, The American Statistician 52, 1998, 119-126); value and standard error of the G + 1 groups come from the
jackknife, the quantile from Student's t with G degrees of freedom. The point value that is shown stays the plain one.
**Simulated coverage**: G groups are drawn with replacement from the G + 1, 1000 times; the share of the intervals that
hold the value of all G + 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from infra.errors import UsageError

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""(..., K) sums over groups -> (...) values, NaN where undefined."""

LEAST_GROUPS = 10
SMALL_SAMPLE = 40
N_RESAMPLES = 2000
N_SIMULATED = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95 % interval; `method` says how, `coverage` what a simulation found (t interval only)."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_groups: int
    method: str
    coverage: float | None = None


def confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], n_labels: int) -> Array:
    """Return counts (C, C): row = truth, column = prediction."""
    counts = np.bincount(truth * n_labels + predicted, minlength=n_labels * n_labels)
    return counts.reshape(n_labels, n_labels).astype(np.float64)


def by_group(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], groups: Sequence[str | None], n_labels: int
) -> tuple[tuple[str | None, ...], Array]:
    """Return the groups, sorted, and one confusion matrix for each, (G, C, C)."""
    names = sorted(set(groups), key=lambda name: (name is None, name or ""))
    number = {name: i for i, name in enumerate(names)}
    which = np.array([number[name] for name in groups], np.int64)
    cell = (which * n_labels + truth) * n_labels + predicted
    counts = np.bincount(cell, minlength=len(names) * n_labels * n_labels)
    return tuple(names), counts.reshape(len(names), n_labels, n_labels).astype(np.float64)


def accuracy(counts: Array) -> Array:
    """Return the share on the diagonal of (..., C, C)."""
    return _share(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)))


def recall(counts: Array) -> Array:
    """Return per class the share of its frames that were called so, (..., C); NaN for a class without frames."""
    return _share(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1))


def precision(counts: Array) -> Array:
    """Return per class the share of frames called so that are, (..., C); NaN for a class never called."""
    return _share(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-2))


def macro_recall(counts: Array) -> Array:
    """Return the mean recall over the classes that occur as truth (...,): one answer for everything is worth 1 / C."""
    occurs = counts.sum(-1) > 0
    return _share(np.where(occurs, np.nan_to_num(recall(counts)), 0.0).sum(-1), occurs.sum(-1))


def macro_f1(counts: Array) -> Array:
    """Return the mean F1 over the classes that occur as truth (..., ); a class never called counts 0."""
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    f1 = _share(2 * right, counts.sum(-1) + counts.sum(-2))
    occurs = counts.sum(-1) > 0
    return _share(np.where(occurs, np.nan_to_num(f1), 0.0).sum(-1), occurs.sum(-1))


def _share(part: Array, whole: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(whole > 0, part / whole, np.nan), np.float64)


def find(metric: str, labels: Sequence[str]) -> tuple[Statistic, int | None]:
    """Return a metric by name, as a function of flattened confusion matrices, and the class it is about.

    Raises:
        UsageError: the name is none of accuracy, macro_recall, macro_f1, recall:LABEL, precision:LABEL.
    """
    name, _, label = metric.partition(":")
    c = len(labels)
    whole = {"accuracy": accuracy, "macro_recall": macro_recall, "macro_f1": macro_f1}
    per_class = {"recall": recall, "precision": precision}
    if name in whole and not label:
        return (lambda sums: whole[name](sums.reshape(*sums.shape[:-1], c, c))), None
    if name in per_class and label in labels:
        number = list(labels).index(label)
        return (lambda sums: per_class[name](sums.reshape(*sums.shape[:-1], c, c))[..., number]), number
    legal = ", ".join([*whole, *(f"{each}:LABEL" for each in per_class)])
    raise UsageError(f"metric {metric!r}; legal: {legal} with {', '.join(labels)}")


def metric_interval(counts: Array, metric: str, labels: Sequence[str], seed: int) -> Interval:
    """Return a metric over the groups (G, C, C) with its interval; groups without a frame that matters are left out."""
    statistic, number = find(metric, labels)
    matters = counts.sum((1, 2)) if number is None or metric.startswith("precision") else counts[:, number].sum(-1)
    kept = counts[matters > 0]
    flat = kept.reshape(len(kept), len(labels) ** 2)
    return cluster_interval(flat, statistic, _half_right, n=int(matters.sum()), seed=seed, bounds=(0.0, 1.0))


def difference_interval(first: Array, second: Array, n: Array, seed: int) -> Interval:
    """Return the paired difference of two accuracies on the same frames, first minus second.

    Args:
        first: float64 (G,), right answers of the first model per group.
        second: the same of the second model.
        n: frames per group.
        seed: for resampling.
    """
    kept = n > 0
    sums = np.stack([first - second, n], 1)[kept]
    statistic: Statistic = lambda s: _share(s[..., 0], s[..., 1])  # noqa: E731
    return cluster_interval(sums, statistic, _no_difference, n=int(n.sum()), seed=seed, bounds=(-1.0, 1.0))


def cluster_interval(
    sums: Array,
    statistic: Statistic,
    imagined: Callable[[Array], Array],
    *,
    n: int,
    seed: int,
    bounds: tuple[float, float],
) -> Interval:
    """Return a statistic of summed groups with its interval; see the module's docstring.

    Args:
        sums: float64 (G, K), what is added up, one row per group.
        statistic: (..., K) -> (...).
        imagined: mean group (..., K) -> the imagined group (..., K) of the t interval.
        n: frames, for the record.
        seed: for resampling and simulation.
        bounds: what the statistic cannot leave.
    """
    n_groups = len(sums)
    value = float(statistic(sums.sum(0))) if n_groups else math.nan
    if math.isnan(value):
        return Interval(value=None, low=None, high=None, n=n, n_groups=n_groups, method="no figure")
    if n_groups < LEAST_GROUPS:
        return Interval(value=value, low=None, high=None, n=n, n_groups=n_groups, method=f"under {LEAST_GROUPS} groups")
    rng = np.random.default_rng(seed)
    if n_groups > SMALL_SAMPLE:
        weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), N_RESAMPLES).astype(np.float64)
        tail = (1 - LEVEL) / 2 * 100
        low, high = np.nanpercentile(statistic(weights @ sums), [tail, 100 - tail])
        if low < high:
            method = f"cluster bootstrap, {N_RESAMPLES} resamples"
            return Interval(value=value, low=float(low), high=float(high), n=n, n_groups=n_groups, method=method)
    low, high = (float(edge) for edge in _t_interval(sums, statistic, imagined, bounds))
    coverage = _simulated_coverage(sums, statistic, imagined, bounds, rng)
    low, high = min(low, value), max(high, value)
    method = "t over groups"
    return Interval(value=value, low=low, high=high, n=n, n_groups=n_groups, method=method, coverage=coverage)


def _t_interval(sums: Array, statistic: Statistic, imagined: Callable[[Array], Array], bounds: tuple[float, float]) -> Array:
    """Return low and high, (2, ...), for sums (..., G, K)."""
    n_groups = sums.shape[-2]
    everything = np.concatenate([sums, imagined(sums.mean(-2))[..., None, :]], -2)
    total = everything.sum(-2)
    value = statistic(total)
    without = statistic(total[..., None, :] - everything)
    known = ~np.isnan(without)  # a rare class may be gone with its only group
    mean = np.where(known, without, 0.0).sum(-1, keepdims=True) / np.maximum(known.sum(-1, keepdims=True), 1)
    error = np.sqrt(n_groups / (n_groups + 1) * np.where(known, (without - mean) ** 2, 0.0).sum(-1))
    half = student_t(n_groups) * error
    return np.asarray(np.clip(np.stack([value - half, value + half]), *bounds), np.float64)


def _simulated_coverage(
    sums: Array, statistic: Statistic, imagined: Callable[[Array], Array], bounds: tuple[float, float], rng: np.random.Generator
) -> float:
    """Return how often the interval of G groups, drawn from these and the imagined one, holds the value of them all."""
    population = np.concatenate([sums, imagined(sums.mean(0))[None]])
    true = float(statistic(population.sum(0)))
    drawn = population[rng.integers(0, len(population), (N_SIMULATED, len(sums)))]
    low, high = _t_interval(drawn, statistic, imagined, bounds)
    known = ~(np.isnan(low) | np.isnan(high))
    held = (low[known] <= true) & (true <= high[known])
    return float(held.mean()) if known.any() else 0.0


def _half_right(mean: Array) -> Array:
    """Return a group of average size and class mix (..., C * C), half of each class right, the rest spread evenly."""
    c = math.isqrt(mean.shape[-1])
    per_class = mean.reshape(*mean.shape[:-1], c, c).sum(-1)
    share = np.full((c, c), 0.5 / max(c - 1, 1))
    np.fill_diagonal(share, 0.5)
    return np.asarray((per_class[..., None] * share).reshape(mean.shape), np.float64)


def _no_difference(mean: Array) -> Array:
    """Return a group of average size in which both models are equally good."""
    return np.asarray(mean * np.array([0.0, 1.0]), np.float64)


def student_t(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t.

    Expansion in 1/degrees (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5); off by under 1e-3 from
    9 degrees on.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(z + sum(term / degrees ** (i + 1) for i, term in enumerate(terms)))
