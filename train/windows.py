"""Which frames a model sees: a pure index of windows over the frames of one labelled row.

    row [start_pts, end_pts) of a clip
      -> RowFrames     the frames in the row, less skip_head_s and skip_tail_s, one per period: the rule of the predictor
      -> windows()     T positions in that series each, sliding or evenly spread, short rows by a stated policy

Nothing here decodes. Without `context_s` no window holds a frame of another row; with it, frames of the same clip around
the row, so none ever crosses the border of a clip or, as splits keep clips whole, of a split. Variable frame rates need
no care: only timestamps count.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from infra.errors import UsageError
from infra.predictor import Grid

Short = Literal["repeat", "loop", "drop"]
Pick = Literal["slide", "even"]

_NEVER_RESETS = 1e9  # periods: a row is one stretch, however large its holes


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSpec:
    """How windows are taken from a row.

    `pick`: "slide" gives windows of `n_frames` neighbouring frames of the resampled series, `stride` apart (the last
    one ends with the row); "even" gives one window spread over the whole row, first and last frame included.
    `short` says what a row with fewer frames gives: its last frame repeated, the row looped, or nothing.
    `context_s` of the same clip before and after the row may be in its windows: a model that carries a state meets the
    borders between actions there. Such frames count for learning by the row that covers them, or not at all.
    """

    n_frames: int
    period_s: float
    stride: int = 1
    pick: Pick = "slide"
    short: Short = "repeat"
    skip_head_s: float = 0.0
    skip_tail_s: float = 0.0
    context_s: float = 0.0

    def __post_init__(self) -> None:
        least = min(self.skip_head_s, self.skip_tail_s, self.context_s)
        if self.n_frames < 1 or self.stride < 1 or self.period_s <= 0 or least < 0:
            raise UsageError(f"{self}: n_frames and stride are at least 1, period_s above 0, skips and context not negative")
        if self.pick not in ("slide", "even") or self.short not in ("repeat", "loop", "drop"):
            raise UsageError(f"pick {self.pick!r}, short {self.short!r}; legal: slide, even; repeat, loop, drop")


class RowFrames:
    """Says which frames of a clip, met in order, belong to a row: those in it and in its context, one per period.

    The rule of `infra.predictor.Grid`, begun at the row's first frame. Skips that would eat up the whole row are left out.

    Args:
        start_pts: first tick of the row.
        end_pts: the tick after its last.
        time_base: seconds per tick.
        spec: period and skips.
    """

    def __init__(self, start_pts: int, end_pts: int, time_base: Fraction, spec: WindowSpec) -> None:
        head = start_pts + round(Fraction(spec.skip_head_s) / time_base)
        tail = end_pts - round(Fraction(spec.skip_tail_s) / time_base)
        first, last = (head, tail) if head < tail else (start_pts, end_pts)
        context = round(Fraction(spec.context_s) / time_base)
        self.start_pts, self.end_pts = first - context, last + context
        self._time_base = time_base
        self._grid = Grid(spec.period_s, _NEVER_RESETS)

    def takes(self, pts: int) -> bool:
        """Say whether the frame at `pts` is used, and note it."""
        if not self.start_pts <= pts < self.end_pts:
            return False
        time_ns = round(pts * self._time_base * 1_000_000_000)
        if not self._grid.wants(time_ns):
            return False
        self._grid.take(time_ns)
        return True


def most_frames(start_pts: int, end_pts: int, time_base: Fraction, spec: WindowSpec) -> int:
    """Return an upper bound of the frames that `RowFrames` takes from a row."""
    seconds = (end_pts - start_pts) * time_base + 2 * Fraction(spec.context_s)
    return int(seconds / Fraction(spec.period_s)) + 2


def even(n: int, n_frames: int) -> tuple[int, ...]:
    """Return `n_frames` positions spread evenly over 0..n-1, the first and the last included.

    Neighbours differ by floor or ceil of the exact spacing. With n < n_frames positions repeat in order.

    Raises:
        UsageError: n is 0.
    """
    if n < 1 or n_frames < 1:
        raise UsageError(f"{n_frames} frames of {n}: both must be at least 1")
    if n_frames == 1:
        return (n // 2,)
    return tuple((2 * i * (n - 1) + n_frames - 1) // (2 * (n_frames - 1)) for i in range(n_frames))


def sliding(n: int, n_frames: int, step: int = 1, shift: int = 1) -> tuple[tuple[int, ...], ...]:
    """Return every window of `n_frames` positions `step` apart, each begun `shift` after the one before.

    The table of seed 001: sliding(60, 6, step=5) is (0, 5, .. 25), (1, 6, .. 26), .. (34, 39, .. 59).
    """
    span = (n_frames - 1) * step
    return tuple(tuple(range(start, start + span + 1, step)) for start in range(0, n - span, shift))


def padded(n: int, n_frames: int, short: Short) -> tuple[int, ...] | None:
    """Return `n_frames` positions from a row of `n` < `n_frames` frames by policy; None when it drops such rows."""
    if n == 0 or short == "drop":
        return None
    if short == "loop":
        return tuple(i % n for i in range(n_frames))
    return tuple(min(i, n - 1) for i in range(n_frames))


def windows(n: int, spec: WindowSpec) -> tuple[tuple[int, ...], ...]:
    """Return the windows of a row whose resampled series has `n` frames, as positions in that series."""
    if n < spec.n_frames:
        window = padded(n, spec.n_frames, spec.short)
        return () if window is None else (window,)
    if spec.pick == "even":
        return (even(n, spec.n_frames),)
    found = sliding(n, spec.n_frames, shift=spec.stride)
    last = tuple(range(n - spec.n_frames, n))
    return found if found[-1] == last else (*found, last)
