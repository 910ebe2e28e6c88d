"""Figures, their intervals and the verdicts drawn from them."""

from __future__ import annotations

import numpy as np
import pytest

from infra.errors import UsageError
from infra.records import Slice
from train import metrics
from train.metrics import Interval, by_group, cluster_interval, confusion, difference_interval, metric_interval, student_t
from train.slices import judge, read_slices, single_class

LABELS = ("a", "b", "c")
COUNTS = np.array([[8.0, 2.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 0.0]])  # c never occurs


def test_metrics_by_hand() -> None:
    """Accuracy, recall, precision and macro F1 of a matrix worked out by hand; a class that never occurs has none."""
    assert metrics.accuracy(COUNTS) == pytest.approx(12 / 15)
    assert metrics.recall(COUNTS)[:2] == pytest.approx([0.8, 0.8]) and np.isnan(metrics.recall(COUNTS)[2])
    assert metrics.precision(COUNTS)[:2] == pytest.approx([8 / 9, 4 / 6])
    assert metrics.macro_f1(COUNTS) == pytest.approx((16 / 19 + 8 / 11) / 2)


def test_confusion_counts() -> None:
    """Rows are truths, columns predictions; groups come sorted, each with its own matrix."""
    truth, said = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    assert confusion(truth, said, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    names, counts = by_group(truth, said, ["y", "x", "y", "x"], 3)
    assert names == ("x", "y") and counts.sum(0).tolist() == confusion(truth, said, 3).tolist()
    assert counts[0].tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize(("degrees", "quantile"), [(9, 2.262157), (12, 2.178813), (20, 2.085963), (40, 2.021075)])
def test_student_t(degrees: int, quantile: float) -> None:
    """The expansion meets the quantiles of the printed tables (Abramowitz and Stegun, table 26.10)."""
    assert student_t(degrees) == pytest.approx(quantile, abs=1e-3)


def groups_of(n_groups: int, rng: np.random.Generator, mean: float = 0.8, spread: float = 8.0) -> np.ndarray:
    """Draw confusion matrices of two classes, each group with its own accuracy (beta) and its own size."""
    found = []
    for right in rng.beta(mean * spread, (1 - mean) * spread, n_groups):
        n = int(rng.integers(20, 60))
        hits = rng.binomial(n, right, 2)
        found.append([[hits[0], n - hits[0]], [n - hits[1], hits[1]]])
    return np.array(found, np.float64)


@pytest.mark.parametrize(("n_groups", "method"), [(9, "under 10"), (10, "t over"), (40, "t over"), (41, "cluster bootstrap")])
def test_the_number_of_groups_chooses_the_interval(n_groups: int, method: str) -> None:
    """Under 10 groups no interval, to 40 the t interval with its simulated coverage, above it the bootstrap."""
    found = metric_interval(groups_of(n_groups, np.random.default_rng(0)), "accuracy", ("a", "b"), 7)
    assert method in found.method and found.n_groups == n_groups
    assert (found.coverage is not None) == method.startswith("t")
    if n_groups < 10:
        assert found.low is None and found.high is None and found.value is not None
    else:
        assert found.low is not None and found.high is not None and found.value is not None
        assert 0 <= found.low < found.value < found.high <= 1
    assert found == metric_interval(groups_of(n_groups, np.random.default_rng(0)), "accuracy", ("a", "b"), 7)


@pytest.mark.parametrize(("n_groups", "mean"), [(12, 0.8), (12, 0.95), (25, 0.9), (60, 0.8)])
def test_intervals_hold_the_truth(n_groups: int, mean: float) -> None:
    """Over 200 worlds with a known accuracy, the 95 % interval holds it in at least 90 % and is no mere [0, 1]."""
    rng = np.random.default_rng(11)
    held, widths = 0, []
    for _ in range(200):
        found = metric_interval(groups_of(n_groups, rng, mean), "accuracy", ("a", "b"), 7)
        assert found.low is not None and found.high is not None
        held += found.low <= mean <= found.high
        widths.append(found.high - found.low)
    assert held / 200 >= 0.9 and np.mean(widths) < 0.3


def test_a_faultless_dozen_is_no_certainty() -> None:
    """Twelve groups without an error give a lower bound well under 1; sixty give a higher one."""
    perfect = np.tile(np.diag([20.0, 20.0]), (12, 1, 1))
    few = metric_interval(perfect, "accuracy", ("a", "b"), 7)
    many = metric_interval(np.tile(perfect[:1], (60, 1, 1)), "accuracy", ("a", "b"), 7)
    assert few.value == many.value == 1.0 and few.low is not None and many.low is not None
    assert 0.8 < few.low < 0.92 < many.low < 1.0


def test_only_groups_that_hold_the_class_count() -> None:
    """Recall of a class that 5 of 30 groups hold rests on 5 groups, and has no interval."""
    counts = np.tile(np.diag([10.0, 0.0]), (30, 1, 1))
    counts[:5, 1] = [2, 8]
    found = metric_interval(counts, "recall:b", ("a", "b"), 7)
    assert (found.n_groups, found.n, found.low) == (5, 50, None) and found.value == pytest.approx(0.8)
    assert metric_interval(counts, "recall:a", ("a", "b"), 7).n_groups == 30


def test_nothing_gives_no_figure() -> None:
    """Without a group there is no value, and no exception either."""
    found = metric_interval(np.zeros((0, 2, 2)), "accuracy", ("a", "b"), 7)
    assert (found.value, found.low, found.n, found.n_groups) == (None, None, 0, 0)


def test_paired_differences() -> None:
    """A model that is right wherever the other is, and more, has an interval above zero; the reverse lies below."""
    rng = np.random.default_rng(2)
    n = rng.integers(30, 60, 20).astype(np.float64)
    first, second = n * 0.9, n * 0.7
    found = difference_interval(first, second, n, 7)
    assert found.value == pytest.approx(0.2) and found.low is not None and 0 < found.low < 0.2
    back = difference_interval(second, first, n, 7)
    assert back.high is not None and back.high < 0 and back.value == pytest.approx(-0.2)
    same = difference_interval(first, first, n, 7)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_bootstrap_leaves_undefined_resamples_out() -> None:
    """A metric that some resamples cannot have (a rare class) still gets its interval from the others."""
    sums = np.array([[1.0, 2.0]] * 2 + [[0.0, 0.0]] * 60)
    found = cluster_interval(sums, lambda s: metrics._share(s[..., 0], s[..., 1]), lambda m: m, n=4, seed=1, bounds=(0, 1))
    assert found.value == 0.5 and found.low is not None


def test_unknown_metrics_are_refused() -> None:
    """A metric or class that does not exist is refused with the legal ones."""
    for name in ("auc", "recall", "recall:z", "accuracy:a"):
        with pytest.raises(UsageError, match="legal: accuracy"):
            metrics.find(name, LABELS)


def interval(value: float, low: float | None, high: float | None, n_groups: int = 20) -> Interval:
    return Interval(value=value, low=low, high=high, n=100, n_groups=n_groups, method="t over groups")


@pytest.mark.parametrize(
    ("low", "high", "n_groups", "rarest", "how", "verdict"),
    [
        (0.82, 0.95, 20, None, "lower", "passed"),
        (0.75, 0.95, 20, None, "lower", "unknown"),
        (0.55, 0.79, 20, None, "lower", "failed"),
        (0.80, 0.95, 20, None, "lower", "passed"),
        (0.75, 0.95, 20, None, "point", "passed"),
        (0.82, 0.95, 9, None, "lower", "unknown"),
        (0.82, 0.95, 20, 4, "lower", "unknown"),
        (0.10, 0.20, 20, 4, "lower", "unknown"),
        (0.82, 0.95, 40, 12, "lower", "passed"),
    ],
)
def test_verdicts(low: float, high: float, n_groups: int, rarest: int | None, how: str, verdict: str) -> None:
    """Lower bound at the threshold passes, upper bound under it fails, everything else is unknown and says why."""
    s = Slice(name="night", where="hour > 20", threshold=0.8, judge=how)  # type: ignore[arg-type]
    cell = judge(s, interval(0.85, low, high, n_groups), rarest, 3)
    assert cell.verdict == verdict and "3 predictions unknown" in cell.why
    assert ("each of its groups holds one class" in cell.why) == (rarest is not None)
    assert judge(Slice(name="all", where=""), interval(0.85, low, high), None, 0).verdict == "not gated"


def test_a_gate_may_ask_for_more_groups_but_not_for_fewer() -> None:
    """min_groups raises the bar of ten and cannot lower it."""
    strict = judge(Slice(name="x", where="", threshold=0.5, min_groups=30), interval(0.9, 0.8, 1.0, 20), None, 0)
    lax = judge(Slice(name="x", where="", threshold=0.5, min_groups=2), interval(0.9, 0.8, 1.0, 8), None, 0)
    assert (strict.verdict, lax.verdict) == ("unknown", "unknown") and "30 are needed" in strict.why


def test_groups_of_one_class() -> None:
    """Groups of one class each are noticed with the rarest class's count; mixed groups and one-class data are not."""
    nested = np.zeros((5, 3, 3))
    for group, label in enumerate((0, 0, 0, 1, 1)):
        nested[group, label, 2] = 4
    assert single_class(nested) == 2
    mixed = nested.copy()
    mixed[0, 1, 1] = 1
    assert single_class(mixed) is None
    assert single_class(nested[:3]) is None and single_class(nested[:0]) is None


def test_gate_files_are_read_strictly() -> None:
    """An unknown key, a missing name, no slice, a doubled slice and a wrong judge are refused."""
    good = {"name": "a", "where": "", "threshold": 0.5}
    assert read_slices([good])[0].threshold == 0.5
    for wrong in ([], [good, good], [{**good, "treshold": 1}], [{"where": ""}], [{**good, "judge": "upper"}]):
        with pytest.raises(UsageError, match="gate file"):
            read_slices(wrong)
