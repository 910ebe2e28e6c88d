"""Hysteresis, merging, least length and padding: golden cases, and properties that hold for any scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import intervals
from curate.intervals import Rule, Samples, Ticks
from infra.errors import UsageError


def samples(values: Sequence[float | None], length: int = 10) -> Samples:
    """Return scores that each hold for `length` ticks; None is unknown."""
    known = [(i * length, value) for i, value in enumerate(values) if value is not None]
    start = np.array([at for at, _ in known], np.int64)
    return Samples(start, start + length, np.array([value for _, value in known], np.float64))


def find(values: Sequence[float | None], on: float = 0.5, off: float = 0.2, **rule: int) -> list[list[int]]:
    """Return the intervals of such scores, as lists."""
    made = samples(values)
    shape = np.ones(len(made.start))
    found: list[list[int]] = intervals.find(made, shape * on, shape * off, Rule(**rule)).tolist()
    return found


@pytest.mark.parametrize(
    ("values", "rule", "expected"),
    [
        ([], {}, []),
        ([0, 0.4, 0.4, 0], {}, []),  # never reached `on`
        ([0, 0.5, 0.3, 0.2, 0.1, 0.3], {}, [[10, 40]]),  # holds down to `off`, itself included; does not come back by itself
        ([0.3, 0.6], {}, [[10, 20]]),  # before the first that says so, it is off
        ([1, 0, 1], {}, [[0, 10], [20, 30]]),
        ([1, 0, 1], {"merge": 10}, [[0, 30]]),  # a gap as long as `merge` is bridged
        ([1, 0, 1], {"merge": 9}, [[0, 10], [20, 30]]),
        ([1, 0, 1, 0, 0, 1, 1], {"least": 20}, [[50, 70]]),
        ([1, 0, 1, 0, 0, 1], {"merge": 10, "least": 30}, [[0, 30]]),  # the length counts after merging
        ([0, 0, 1, 0, 0], {"pad": 5}, [[15, 35]]),
        ([1, 0, 0, 1], {"pad": 50}, [[0, 40]]),  # within what there is, merged where pads meet
        ([1, 0, 0, 1], {"pad": 10}, [[0, 40]]),  # touching is meeting
        ([0, 1, 0], {"pad": 5, "least": 11}, []),  # padding makes nothing long enough
    ],
)
def test_golden(values: list[float | None], rule: dict[str, int], expected: list[list[int]]) -> None:
    """Scores of 10 ticks each, on at .5, off below .2."""
    assert find(values, **rule) == expected


@pytest.mark.parametrize(
    ("values", "merge", "expected"),
    [
        ([1, None, 1], 0, [[0, 10], [20, 30]]),  # unknown is not on
        ([1, None, 1], 10, [[0, 30]]),  # a short unknown stretch is bridged
        ([1, None, 0.3], 10, [[0, 30]]),  # and the state held across it
        ([1, None, 0.3], 0, [[0, 10]]),  # behind a longer one, `on` has to be reached again
        ([1, None, None, 0.3, 0.6], 10, [[0, 10], [40, 50]]),
        ([None, 1, None], 0, [[10, 20]]),
        ([0, None, 0], 100, []),
    ],
)
def test_unknown_is_neither_on_nor_off(values: list[float | None], merge: int, expected: list[list[int]]) -> None:
    """What was not looked at begins nothing, and lasts no longer than a gap that is bridged."""
    assert find(values, merge=merge) == expected


def test_thresholds_may_differ_from_sample_to_sample() -> None:
    """In the dark (the second half) three times as much is needed."""
    made = samples([0.2, 0.2, 0.2, 0.6])
    on = np.array([0.1, 0.1, 0.3, 0.3])
    assert intervals.find(made, on, on / 2, Rule()).tolist() == [[0, 40]]  # .2 is still above .15: it stays on
    assert intervals.find(made, on, on * 0.9, Rule()).tolist() == [[0, 20], [30, 40]]


def test_pieces_peak_and_what_is_known() -> None:
    """An interval over three clips is cut at their borders; its peak is the first of equals; a hole in it is counted."""
    clips = np.array([[0, 30], [30, 50], [55, 90]], np.int64)
    assert intervals.cut((20, 60), clips) == [(0, 20, 30), (1, 30, 50), (2, 55, 60)]
    assert intervals.cut((30, 50), clips) == [(1, 30, 50)] and intervals.cut((50, 55), clips) == []
    made = samples([0, 0.7, None, 0.9, 0.9, None])
    assert intervals.known((10, 50), made) == (30, True, False)
    assert intervals.known((30, 40), made) == (10, False, True)
    assert intervals.known((12, 18), made) == (6, True, True)
    runs = intervals.runs(made, np.full(4, 0.5), np.full(4, 0.2))
    assert runs.highest(10, 50) == (0.9, 30) and runs.highest(20, 30) is None and runs.highest(35, 50) is None


def test_what_is_refused() -> None:
    """Overlapping samples, NaN, an `off` above `on` and negative ticks are wrong use."""
    ones = np.ones(2)
    with pytest.raises(UsageError, match="overlap"):
        Samples(np.array([0, 5]), np.array([6, 9]), ones)
    with pytest.raises(UsageError, match="NaN"):
        Samples(np.array([0, 5]), np.array([5, 9]), np.array([0, np.nan]))
    with pytest.raises(UsageError, match="off <= on"):
        intervals.find(samples([1, 1]), ones * 0.1, ones * 0.2, Rule())
    with pytest.raises(UsageError, match="merge -1"):
        Rule(merge=-1)


def is_proper(found: Ticks, gap: int = 0) -> bool:
    """Say whether intervals are half-open (none empty), sorted, and more than `gap` apart."""
    return bool((found[:, 1] > found[:, 0]).all() and (found[1:, 0] - found[:-1, 1] > gap).all())


scores = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9])), max_size=40)
ticks = st.integers(0, 45)
pairs = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 30)), max_size=30)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(values=scores, merge=ticks, least=ticks, pad=ticks)
def test_whatever_the_scores(values: list[float | None], merge: int, least: int, pad: int) -> None:
    """Proper and long enough; each holds a score that reached `on`, and every such score that is long enough is in one."""
    made = samples(values)
    shape = np.ones(len(made.start))
    found = intervals.find(made, shape * 0.5, shape * 0.2, Rule(merge=merge, least=least, pad=pad))
    assert is_proper(found) and ((found[:, 1] - found[:, 0]) >= least).all()
    loud = made.start[made.value >= 0.5]
    assert all(((loud >= start) & (loud < end)).any() for start, end in found)
    if least <= 10:
        assert all(((found[:, 0] <= at) & (at < found[:, 1])).any() for at in loud)
    bare = intervals.find(made, shape * 0.5, shape * 0.2, Rule(merge=merge, least=least))
    assert is_proper(bare, gap=merge)
    assert all(((found[:, 0] <= start) & (end <= found[:, 1])).any() for start, end in bare)  # padding only adds


@settings(max_examples=80, deadline=None, derandomize=True)
@given(values=scores, hold=ticks)
def test_switching_is_what_a_switch_does(values: list[float | None], hold: int) -> None:
    """The same as going through the samples one by one with a switch in the hand."""
    made = samples(values)
    shape = np.ones(len(made.start))
    expected: list[bool] = []
    state, before = False, 0
    for start, end, value in zip(made.start.tolist(), made.end.tolist(), made.value.tolist(), strict=True):
        state = state and (not expected or start - before <= hold)
        state = value >= 0.5 or (state and value >= 0.2)
        before = end
        expected.append(state)
    assert intervals.switched(made, shape * 0.5, shape * 0.2, hold).tolist() == expected


@settings(max_examples=80, deadline=None, derandomize=True)
@given(values=scores, cut_at=st.integers(0, 40), merge=ticks, pad=ticks)
def test_runs_say_what_samples_say(values: list[float | None], cut_at: int, merge: int, pad: int) -> None:
    """Put together, also in two parts, they give the same intervals and peaks as the samples one by one."""
    made = samples(values)
    shape = np.ones(len(made.start))
    rule = Rule(merge=merge, pad=pad)
    found = intervals.find(made, shape * 0.5, shape * 0.2, rule)
    halves = []
    for part in (slice(None, cut_at), slice(cut_at, None)):
        half = Samples(made.start[part], made.end[part], made.value[part])
        halves.append(intervals.runs(half, shape[part] * 0.5, shape[part] * 0.2).later(70))
    runs = intervals.joined(halves)
    assert (runs.find(rule) - 70).tolist() == found.tolist()
    for start, end in found.tolist():
        inside = made.value[(made.start >= start) & (made.start < end)]
        highest = runs.highest(start + 70, end + 70)
        assert highest is not None and highest[0] == inside.max()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(made=pairs, gap=ticks, more=ticks)
def test_merging_is_idempotent_and_loses_nothing(made: list[tuple[int, int]], gap: int, more: int) -> None:
    """Twice is once, a wider gap after a narrower is the wider alone, order does not matter, every tick that was in is in."""
    given_ = np.array([(start, start + length) for start, length in made], np.int64).reshape(-1, 2)
    once = intervals.merged(given_, gap)
    assert is_proper(once, gap)
    assert np.array_equal(intervals.merged(once, gap), once)
    assert np.array_equal(intervals.merged(once, gap + more), intervals.merged(given_, gap + more))
    assert np.array_equal(intervals.merged(given_[::-1], gap), once)
    assert all(((once[:, 0] <= start) & (end <= once[:, 1])).any() for start, end in given_)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(made=pairs, borders=st.sets(st.integers(1, 240), max_size=6))
def test_pieces_make_up_the_interval(made: list[tuple[int, int]], borders: set[int]) -> None:
    """Clips without gaps cut an interval into pieces that add up to it, each within its clip."""
    edges = [0, *sorted(borders), 241]
    clips = np.array(list(zip(edges[:-1], edges[1:], strict=True)), np.int64)
    for start, length in made:
        pieces = intervals.cut((start, start + length), clips)
        assert pieces[0][1] == start and pieces[-1][2] == start + length
        assert all(before[2] == after[1] for before, after in zip(pieces, pieces[1:], strict=False))
        assert all(clips[i, 0] <= low < high <= clips[i, 1] for i, low, high in pieces)
