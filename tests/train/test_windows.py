"""Which frames a model sees."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UsageError
from train.windows import RowFrames, WindowSpec, even, most_frames, padded, sliding, windows

MS = Fraction(1, 1000)


@pytest.mark.parametrize("n", range(1, 301))
def test_even_takes_first_last_and_equal_steps(n: int) -> None:
    """Over clips of 1 to 300 frames, 5 frames hold the first and the last, and steps differ by at most 1."""
    for n_frames in (2, 5, 16):
        found = even(n, n_frames)
        steps = [b - a for a, b in itertools.pairwise(found)]
        assert (found[0], found[-1], len(found)) == (0, n - 1, n_frames)
        assert max(steps) - min(steps) <= 1 and min(steps) >= 0


def test_even_of_one_frame_is_the_middle() -> None:
    """A single frame is the middle one; nothing can be taken from nothing."""
    assert even(9, 1) == (4,)
    with pytest.raises(UsageError, match="0"):
        even(0, 3)


def test_sliding_is_the_table_of_seed_001() -> None:
    """60 frames, 6 of them 5 apart, shifted by one: 0 5 .. 25, 1 6 .. 26, until the last ends with the clip."""
    table = sliding(60, 6, step=5)
    assert table[0] == (0, 5, 10, 15, 20, 25) and table[1] == (1, 6, 11, 16, 21, 26)
    assert table[-1] == (34, 39, 44, 49, 54, 59) and len(table) == 35


def test_short_rows_by_policy() -> None:
    """A row with too few frames repeats its last one, loops, or gives nothing."""
    assert padded(3, 5, "repeat") == (0, 1, 2, 2, 2)
    assert padded(3, 5, "loop") == (0, 1, 2, 0, 1)
    assert padded(3, 5, "drop") is None and padded(0, 5, "repeat") is None


@given(n=st.integers(0, 300), n_frames=st.integers(1, 40), stride=st.integers(1, 50), pick=st.sampled_from(["slide", "even"]))
def test_windows_stay_inside_and_reach_the_end(n: int, n_frames: int, stride: int, pick: str) -> None:
    """Every window has the right length and lies in its row; the last frame of a row is seen."""
    spec = WindowSpec(n_frames=n_frames, period_s=0.1, stride=stride, pick=pick)  # type: ignore[arg-type]
    found = windows(n, spec)
    assert bool(found) == (n > 0)
    for window in found:
        assert len(window) == n_frames and list(window) == sorted(window) and window[0] >= 0 and window[-1] < n
    if n >= n_frames > 1:
        assert found[-1][-1] == n - 1


@settings(max_examples=200)
@given(data=st.data())
def test_row_frames_follow_timestamps(data: st.DataObject) -> None:
    """With any frame times, frames lie in the row, are at least half a period apart and never more than promised."""
    steps = data.draw(st.lists(st.integers(1, 400), min_size=1, max_size=120))
    pts = [sum(steps[: i + 1]) for i in range(len(steps))]
    start = data.draw(st.integers(0, pts[-1]))
    end = data.draw(st.integers(start + 1, pts[-1] + 500))
    row = RowFrames(start, end, MS, WindowSpec(n_frames=4, period_s=0.1))
    found = [p for p in pts if row.takes(p)]
    inside = [p for p in pts if start <= p < end]
    assert set(found) <= set(inside) and found[:1] == inside[:1]
    assert len(found) <= most_frames(start, end, MS, WindowSpec(n_frames=4, period_s=0.1))
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert all(gap > 0 for gap in gaps)
    if max(steps) <= 50:
        assert all(50 <= gap <= 200 for gap in gaps)


def test_regular_frames_are_thinned_evenly() -> None:
    """30 frames a second at ten a second: the row's first frame, then every third one from half a period on."""
    thirtieth = Fraction(1, 30)
    row = RowFrames(7, 67, thirtieth, WindowSpec(n_frames=4, period_s=0.1))
    assert [p for p in range(100) if row.takes(p)] == [7, *range(9, 67, 3)]


def test_skips_are_kept_unless_they_eat_the_row() -> None:
    """Head and tail are left out where something remains; else the whole row is used."""
    spec = WindowSpec(n_frames=2, period_s=0.1, skip_head_s=0.2, skip_tail_s=0.3)
    row = RowFrames(0, 1000, MS, spec)
    assert [p for p in range(0, 1000, 100) if row.takes(p)] == [200, 300, 400, 500, 600]
    short = RowFrames(0, 400, MS, spec)
    assert [p for p in range(0, 1000, 100) if short.takes(p)] == [0, 100, 200, 300]


def test_wrong_specifications_are_refused() -> None:
    """A window without frames, a period of zero and an unknown policy are refused with the legal values."""
    for wrong in ({"n_frames": 0}, {"period_s": 0.0}, {"short": "x"}, {"stride": 0}, {"skip_head_s": -1.0}):
        with pytest.raises(UsageError):
            WindowSpec(**{"n_frames": 2, "period_s": 0.1, **wrong})  # type: ignore[arg-type]
