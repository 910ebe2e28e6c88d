"""Quotas by hand-computed cases, and what every draw must keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.sample import Cell, Quotas, balanced, draw, largest_remainder, quotas, undersample
from infra.errors import QueryError

BY = ["lighting"]
COUNTS: dict[Cell, int] = {("day",): 100, ("dusk",): 20, ("night",): 5}


def test_balanced_gives_equal_parts_and_reports_the_cell_that_is_short() -> None:
    """Each cell gets a third; night has 5 of 20, and nobody fills in for it."""
    made = quotas(COUNTS, 60, BY, "balanced")
    assert made.per_cell == {("day",): 20, ("dusk",): 20, ("night",): 5}
    [short] = made.shortages
    assert (short.cell, short.wanted, short.found) == ("lighting=night", 20, 5)


def test_balanced_odd_ones_go_to_the_largest_cells() -> None:
    """14 over three cells of enough rows is 5, 5, 4, the extra ones where there is most."""
    made = balanced({("a",): 10, ("b",): 30, ("c",): 20}, 14, ["x"])
    assert made.per_cell == {("a",): 4, ("b",): 5, ("c",): 5}
    assert made.shortages == ()


def test_balanced_without_a_number_takes_what_the_smallest_cell_has() -> None:
    """`all` means as many of each as the smallest can give."""
    assert quotas(COUNTS, None, BY, "balanced").per_cell == {("day",): 5, ("dusk",): 5, ("night",): 5}


def test_undersampling_makes_the_next_class_the_minority() -> None:
    """5 nights are taken whole, then 20 dusks, and day gives the remaining 35 of 60 (S2-20)."""
    made = undersample(COUNTS, 60, BY)
    assert made.per_cell == {("day",): 35, ("dusk",): 20, ("night",): 5}
    assert [(short.cell, short.wanted, short.found) for short in made.shortages] == [
        ("lighting=night", 20, 5),
        ("lighting=dusk", 27, 20),
    ]


def test_undersampling_says_when_even_everything_is_too_little() -> None:
    """125 rows exist; asked for 200, all are taken and the last cell is reported too."""
    made = undersample(COUNTS, 200, BY)
    assert made.per_cell == COUNTS
    assert made.shortages[-1].cell == "lighting=day" and "no more" in made.shortages[-1].why


def test_shares_are_exact_and_the_rest_goes_to_the_other_values() -> None:
    """A quarter night; the other three quarters go to day and dusk as they are found, 100 to 20."""
    made = quotas({("day",): 100, ("dusk",): 20, ("night",): 50}, 80, BY, "shares", {"night": 0.25})
    assert made.per_cell == {("day",): 50, ("dusk",): 10, ("night",): 20}


def test_a_share_of_a_value_that_nobody_has_is_a_shortage() -> None:
    """Snow was asked for and never seen: the others keep their shares, and it is reported."""
    made = quotas(COUNTS, 10, BY, "shares", {"snow": 0.5, "day": 0.5})
    assert made.per_cell == {("snow",): 0, ("day",): 5, ("dusk",): 0, ("night",): 0}
    assert [(short.cell, short.wanted, short.found) for short in made.shortages] == [("lighting=snow", 5, 0)]


@pytest.mark.parametrize(
    ("wanted", "by"), [({"night": 0.7, "day": 0.6}, BY), ({"night": -0.1}, BY), ({"night": 0.4}, ["lighting", "camera_id"])]
)
def test_shares_that_cannot_be_are_refused(wanted: dict[str, float], by: list[str]) -> None:
    """More than one, less than nothing, or over several columns: one line with what is legal."""
    with pytest.raises(QueryError):
        quotas({("day",) * len(by): 3}, 10, by, "shares", wanted)


def test_unknown_values_are_never_drawn_and_are_reported() -> None:
    """A frame whose lighting nobody knows balances nothing."""
    made = quotas({("day",): 3, (None,): 7}, 2, BY, "balanced")
    assert made.per_cell == {("day",): 2}
    assert (made.shortages[0].cell, made.shortages[0].found) == ("lighting=unknown", 7)
    with pytest.raises(QueryError, match="unknown in every row"):
        quotas({(None,): 7}, 2, BY, "balanced")


def test_a_wrong_strategy_names_the_legal_ones() -> None:
    """The message lists what is legal."""
    with pytest.raises(QueryError, match="balanced, undersample, shares, random"):
        quotas(COUNTS, 3, BY, "stratified")  # type: ignore[arg-type]


cells = st.dictionaries(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3)), st.integers(1, 50), min_size=1, max_size=12)


@given(counts=cells, n=st.integers(0, 300))
def test_quotas_keep_their_promises(counts: dict[Cell, int], n: int) -> None:
    """Never more than found; balanced cells that are not short differ by at most one; undersampling takes all it can."""
    even = quotas(counts, n, ["a", "b"], "balanced")
    assert all(even.per_cell[cell] <= found for cell, found in counts.items())
    full = [quota for cell, quota in even.per_cell.items() if quota < counts[cell]]
    assert not full or max(full) - min(full) <= 1
    cut = quotas(counts, n, ["a", "b"], "undersample")
    assert sum(cut.per_cell.values()) == min(n, sum(counts.values()))
    level = [quota for cell, quota in cut.per_cell.items() if quota < counts[cell]]
    assert not level or max(level) - min(level) <= 1
    assert sum(even.per_cell.values()) + sum(short.wanted - short.found for short in even.shortages) == n


@given(weights=st.dictionaries(st.text(max_size=3), st.floats(0.001, 1000), min_size=1, max_size=8), total=st.integers(0, 1000))
def test_largest_remainder_adds_up(weights: dict[str, float], total: int) -> None:
    """The parts add up exactly, and each is its exact share rounded down or up."""
    parts = largest_remainder(weights, total)
    assert sum(parts.values()) == total
    mass = sum(weights.values())
    assert all(abs(parts[name] - total * weight / mass) < 1 + 1e-6 for name, weight in weights.items())


@given(order=st.permutations(range(30)), seed=st.integers(0, 5))
def test_a_draw_does_not_depend_on_the_order_of_rows(order: list[int], seed: int) -> None:
    """The same rows are drawn, in the same order, whatever order they arrive in; p_select is drawn / found."""
    rows = [(f"row{i:02}", ("a",) if i % 3 else ("b",)) for i in range(30)]
    quota = Quotas({("a",): 4, ("b",): 10})
    straight = draw(rows, quota, seed)
    shuffled = [rows[i] for i in order]
    again = draw(shuffled, quota, seed)
    assert [rows[pick.index] for pick in straight] == [shuffled[pick.index] for pick in again]
    assert {pick.p_select for pick in straight if pick.cell == ("a",)} == {4 / 20}
    assert sum(pick.cell == ("b",) for pick in straight) == 10


def test_another_seed_draws_others() -> None:
    """Two seeds agree on few of 10 out of 1000."""
    rows = [(str(i), ()) for i in range(1000)]
    first, second = ({pick.index for pick in draw(rows, Quotas({(): 10}), seed)} for seed in (1, 2))
    assert len(first & second) < 5
