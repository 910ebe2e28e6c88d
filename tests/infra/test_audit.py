"""The statistics of an audit: exact where they can be computed by hand, honest where nothing was found or looked at."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infra import audit
from infra.audit import Estimate, looks_needed, recall_of, total


def binomial(n: int, p: float) -> np.ndarray:
    """Return the n + 1 probabilities of 0 ... n hits."""
    k = np.arange(n + 1)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k]
    return np.exp(np.array(logs) + k * math.log(p) + (n - k) * math.log1p(-p))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_a_count_is_covered_whatever_it_is(p: float) -> None:
    """For every number of missed positives the interval holds it in at least 93.5 % of all draws (summed exactly)."""
    for there in sorted({round(expected / p) for expected in np.linspace(0.2, 12, 40)}):
        ways = binomial(there, p)
        bounds = [total([p] * x, least_p=p) if ways[x] > 1e-9 else None for x in range(there + 1)]
        covered = sum(ways[x] for x, made in enumerate(bounds) if made and made.low <= there <= made.high)
        assert covered >= 0.935, (there, covered)


def test_the_bounds_are_those_of_the_tables() -> None:
    """Quantiles of the gamma distribution, as Garwood's exact bounds of a Poisson count have them."""
    known = {(1, 0.025): 0.0253, (1, 0.975): 3.6889, (3, 0.025): 0.6187, (3, 0.975): 7.2247, (10, 0.975): 17.0848}
    for (k, probability), value in known.items():
        assert audit.gamma_bound(k, k, probability) == pytest.approx(value, abs=1e-4)
    assert audit.gamma_bound(400, 400, 0.5) == pytest.approx(400 - 1 / 3, abs=0.01)


def test_nothing_found_is_the_rule_of_three() -> None:
    """No miss in m of D: at most 3 D / m missed, so a recall of at least K / (K + 3 D / m); 1 is never excluded."""
    made = total([], least_p=1_000 / 90_000, unseen=89_000)
    assert (made.value, made.low) == (0, 0) and made.high == pytest.approx(3 * 90, rel=0.01)
    recall, low, high = recall_of(Estimate(950, 950, 950), made)
    assert (recall, high) == (1, 1) and low == pytest.approx(950 / (950 + 270), rel=0.01)


def test_everything_looked_at_leaves_no_doubt() -> None:
    """With p = 1 the interval is the count itself; with no chance of a look it is everything that may hide there."""
    assert total([1.0] * 7, least_p=1) == Estimate(7, 7, 7)
    assert total([], least_p=0, unseen=50) == Estimate(0, 0, 50)
    with pytest.raises(ValueError, match="above 0"):
        total([0.0], least_p=0.5)


def test_clusters_and_unequal_weights_only_widen() -> None:
    """Ten findings of one event say less than ten of ten; a unit that might weigh more raises the upper end."""
    alone = total([0.1] * 10, least_p=0.1)
    event = total([0.1] * 10, cluster=["a"] * 10, least_p=0.1)
    assert alone.value == event.value == 100 and event.low < alone.low and event.high > alone.high
    assert total([0.1] * 10, least_p=0.01).high > alone.high
    assert total([], least_p=0.1, most_positive=12).high == pytest.approx(12 * total([], least_p=0.1).high, rel=0.05)


def test_an_audit_of_rows() -> None:
    """Eight kept positives, four dropped looked at with p = .5 of which one is positive: 8 of 10, and what stands beside it."""
    units = pl.DataFrame(
        {
            "kept": [True] * 10 + [False] * 10,
            "p_look": [1.0] * 10 + [0.5] * 10,
            "n_positive": [1] * 8 + [0] * 2 + [1, 0, 0, 0] + [None] * 6,
        }
    )
    found = audit.audit(units)
    assert (found.n_in, found.n_kept, found.n_dropped, found.n_looked, found.n_found) == (20, 10, 10, 4, 1)
    assert found.recall == pytest.approx(0.8) and found.low == 8 / 15 and found.high == 8 / 9
    nothing = audit.audit(units.filter(pl.col("p_look") < 0))
    assert (nothing.recall, nothing.low, nothing.high) == (None, 0, 1)
    dark = audit.audit(units.with_columns(p_look=pl.when("kept").then(1.0).otherwise(0.0), n_positive=pl.lit(None, pl.Int64)))
    assert dark.n_looked == 0 and dark.low == 0


def test_kept_units_may_be_a_sample_too() -> None:
    """Where kept frames stand for others, both sides are estimated, and the interval is wider."""
    n_positive = [1] * 40 + [None] * 40 + [0] * 39 + [1] + [None] * 40
    rows = {"kept": [True] * 80 + [False] * 80, "n_positive": n_positive, "p_look": [0.5] * 160}
    sampled = audit.audit(pl.DataFrame(rows))
    assert sampled.kept.value == 80 and sampled.recall == pytest.approx(80 / 82)
    assert 40 < sampled.kept.low < 80 == sampled.kept.high  # there are only 80 units
    whole = audit.audit(pl.DataFrame({**rows, "n_positive": [1] * 80 + n_positive[80:], "p_look": [1.0] * 80 + [0.5] * 80}))
    assert whole.kept == Estimate(80, 80, 80) and whole.low > sampled.low


def test_how_many_looks_show_a_recall() -> None:
    """By the rule of three: 3 D r / (K (1 - r)) looks; all of them at most; none where it is hopeless."""
    needed = looks_needed(950, 90_000, 0.95)
    assert needed is not None and needed == pytest.approx(3 * 90_000 * 0.95 / (950 * 0.05), rel=0.05)
    assert 85_500 <= (looks_needed(10, 90_000, 0.99) or 0) <= 90_000 and looks_needed(950, 0, 0.95) == 0
    assert looks_needed(0, 100, 0.95) is None
    assert looks_needed(950, 90_000, 0.95, n_looked=1_000, n_found=10) is None
    with_misses = looks_needed(950, 9_000, 0.95, n_looked=1_000, n_found=3)
    assert with_misses is not None and with_misses > (looks_needed(950, 9_000, 0.95) or 0)


@given(
    p=st.lists(st.floats(0.01, 1), max_size=30),
    least_p=st.floats(0.01, 1),
    most=st.floats(1, 20),
    unseen=st.integers(0, 100_000),
)
@example(p=[1 - 2**-53], least_p=1.0, most=1.0, unseen=1)  # a look that was all but certain leaves all but nothing open
def test_an_interval_is_one(p: list[float], least_p: float, most: float, unseen: int) -> None:
    """It holds its estimate, between what was found and what can be, and grows with what one more unit may weigh."""
    least_p = min([least_p, *p])
    made = total(p, least_p=least_p, most_positive=most, unseen=unseen)
    assert len(p) <= made.low <= made.high <= len(p) + unseen
    assert made.low - 1 <= made.value <= made.high + 1
    assert total(p, least_p=least_p, most_positive=most + 1, unseen=unseen).high >= made.high
    assert total(p, least_p=least_p / 2, most_positive=most, unseen=unseen).high >= made.high
