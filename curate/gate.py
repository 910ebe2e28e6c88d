"""The packet gate: which GOPs of a clip are decoded at all, and with what probability each came to be looked at.

    packets -> stretches -> surprise --+--> 1. falling surprise, until it is small or a run of decoded ones shows no motion
                                       +--> 2. what moves at its edge pulls in its neighbour
                                       +--> 3. of the rest a random sample, each with probability p: the audit
                                       +--> 4. the audit saw motion: the packets of this clip are not believed, all the rest

A *stretch* is the unit: consecutive GOPs of at least `STRETCH_S` in all. Everything here is a pure function of the
clip's packets, its clip_id and what the decoded stretches showed; no other clip, order or generator plays a part.

**Surprise.** A still scene costs its camera the same bytes in every second; what moves costs more. Each packet's size is
divided by the usual one at its place after the keyframe. Of a stretch count the largest mean over `WINDOW_S`, its mean, and
the mean of it and its neighbours (what is hidden in the noise of a second shows in ten), each less what is usual near it (a
low quantile of `NEAR` stretches on either side, which holds while up to three quarters of them move), in robust standard
deviations of the clip; and the change of keyframe sizes, of what came or left between two. The largest of the four.

**When packets say nothing** (`distrust`), everything is decoded: read sequentially, all keyframes (MJPEG, images), hardly
any stretches, or sizes without any spread, which a constant bitrate makes of whatever happens.

**Probabilities.** What 1 and 2 look at is certain: p_keep = 1. Each stretch of the rest is drawn on its own with
probability p (`audit_share`). When the audit finds motion all are decoded, so that a stretch's chance depends on the
other draws; its p_keep is the probability *given the draws of the others*: 1 where another moving stretch was drawn (it
would have been looked at in any case), else p. So the stretch that alone gave the alarm keeps p and stands for those of
other clips that nobody noticed, and sums of y / p_keep over looked-at stretches are unbiased for any y: of footage, of
motion, of what the gate lost. (Set p_keep = 1 for all after an alarm, and every estimate of the loss is 0.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infra import audit, keys
from infra.reader import Packet
from infra.records import Index

VERSION: Final = 2  # of what it gives: raised with every change
STRETCH_S: Final = audit.STRETCH_S
WINDOW_S: Final = 0.4
NEAR: Final = 15  # stretches on either side that the usual size is taken from
USUAL: Final = 25.0  # percentile of their sizes
LEAST_SPREAD: Final = 0.01  # of the usual size: a robust standard deviation is never believed to be smaller
LOUD: Final = 6.0  # standard deviations above which a stretch is decoded whatever the others showed,
QUIET: Final = 4.5  # and below which, but for the first, none is looked at unless one above it moved; one that moves itself
# down here says that the packets hide motion: the clip is not calm
STILL_RUN: Final = 1  # decoded stretches in a row without motion that end the search in a calm clip,
STILL_RUN_BUSY: Final = 1 / 6  # and, as a share of all its stretches, in any other
CALM: Final = 2.0  # times the spread by chance
CALM_SINGLE: Final = 0.1  # spread of single packets, of the usual size: sensor noise alone makes about .05
LEAST_STRETCHES: Final = 4
CONSTANT: Final = 0.002  # spread of the bytes per second, of their median, below which the bitrate is constant
AUDIT_SHARE: Final = 0.02
AUDIT_LEAST: Final = 0.5  # stretches that a clip's audit looks at in expectation, at least,
AUDIT_MOST_S: Final = 100.0  # and seconds, at most: its pictures wait in memory for the verdict
MOVES_SHARE: Final = 0.001  # of the picture: the least size of what counts as motion here, far below any usual threshold
MOVES_S: Final = 0.2  # and how long it must last
EDGE_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The gate's unit: GOPs [first, end) of a clip, and the sizes of their packets."""

    first: int
    end: int
    start_s: float
    key_bytes: int
    other_bytes: tuple[int, ...]
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a decoded stretch showed. `moves` is None where nothing could be judged (the light changed throughout)."""

    moves: bool | None
    at_start: bool = False
    at_end: bool = False


def stretches(gops: Sequence[Sequence[Packet]], tick_s: float) -> list[Stretch]:
    """Cut a clip's GOPs into stretches of at least `STRETCH_S`; a short rest at the end joins the last one.

    Args:
        gops: per GOP its packets, the keyframe first; every packet has a pts.
        tick_s: seconds per tick.
    """
    starts = [min(packet.pts or 0 for packet in gop) * tick_s for gop in gops]
    end_s = max((packet.pts or 0) + packet.duration for packet in gops[-1]) * tick_s if gops else 0.0
    bounds = [0] if gops else []
    for number, start_s in enumerate(starts):
        if start_s - starts[bounds[-1]] >= STRETCH_S - tick_s / 2:
            bounds.append(number)
    if len(bounds) > 1 and end_s - starts[bounds[-1]] < STRETCH_S / 2:
        bounds.pop()
    made = []
    for first, end in zip(bounds, [*bounds[1:], len(gops)], strict=True):
        until_s = starts[end] if end < len(gops) else end_s
        others = tuple(packet.n_bytes for gop in gops[first:end] for packet in gop[1:])
        key_bytes = sum(gop[0].n_bytes for gop in gops[first:end]) // (end - first)
        duration_s = max(until_s - starts[first], tick_s)
        made.append(
            Stretch(first=first, end=end, start_s=starts[first], key_bytes=key_bytes, other_bytes=others, duration_s=duration_s)
        )
    return made


def distrust(found: Sequence[Stretch], index: Index) -> str:
    """Return why the packets of a clip say nothing about motion, empty where they may be asked."""
    if index == "sequential":
        return "read sequentially: its packets have no certain times"
    if len(found) < LEAST_STRETCHES:
        return f"{len(found)} stretches: nothing to compare"
    n_others = sum(len(stretch.other_bytes) for stretch in found)
    if n_others < 3 * sum(stretch.end - stretch.first for stretch in found):
        return "hardly anything but keyframes"
    rates = np.array([(s.key_bytes * (s.end - s.first) + sum(s.other_bytes)) / s.duration_s for s in found[:-1]])
    if _spread(rates) < CONSTANT * float(np.median(rates)):
        return "a constant bitrate"
    return ""


def surprise(found: Sequence[Stretch]) -> NDArray[np.float64]:
    """Return how unusual the packets of each stretch are, in robust standard deviations: float64 (n,)."""
    ratios = _ratios(found)
    rate = sum(len(s.other_bytes) for s in found) / max(1e-9, sum(s.duration_s for s in found))
    width = max(3, round(WINDOW_S * rate))
    means = np.array([ratio.mean() if len(ratio) else 0.0 for ratio in ratios])
    peaks = np.array([_peak(ratio, width) for ratio in ratios])
    wide = np.convolve(np.pad(means, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    by_size = np.max([_standardised(values) for values in (peaks, means, wide)], axis=0)
    change = np.abs(np.diff(np.log([max(1, s.key_bytes) for s in found])))
    scale = max(LEAST_SPREAD, float(np.median(change)) / 0.6745) if len(change) else 1.0
    change[:1] = 0.0  # an encoder that has just begun codes its first keyframe in its own way
    came, left = np.append(change, 0.0), np.insert(change, 0, 0.0)
    made: NDArray[np.float64] = np.maximum(by_size, np.maximum(came, left) / scale)
    return made


def is_calm(found: Sequence[Stretch]) -> bool:
    """Say whether the stretches of a clip differ no more than chance makes them: then those that stand out are few.

    Compares the spread of their mean sizes with what the spread of single packets lets expect, and that with sensor noise.
    Where most stretches move, all differ, none stands out in standard deviations, and the search must go on for longer.
    """
    ratios = [ratio for ratio in _ratios(found) if len(ratio)]
    means = np.array([ratio.mean() for ratio in ratios])
    single = float(np.median(np.abs(np.concatenate([ratio - ratio.mean() for ratio in ratios])))) / 0.6745
    by_chance = max(single / float(np.median([len(ratio) for ratio in ratios])) ** 0.5, LEAST_SPREAD / 2)
    return single <= CALM_SINGLE and bool(_low_spread(means - np.percentile(means, USUAL)) <= CALM * by_chance)


def _ratios(found: Sequence[Stretch]) -> list[NDArray[np.float64]]:
    """Return each stretch's packet sizes divided by what is usual at their place after the keyframe."""
    longest = max((len(s.other_bytes) for s in found), default=0)
    usual = np.ones(longest)
    for place in range(longest):
        sizes = [s.other_bytes[place] for s in found if len(s.other_bytes) > place]
        usual[place] = max(1.0, float(np.median(sizes))) if len(sizes) >= LEAST_STRETCHES else max(1.0, usual[place - 1])
    return [np.array(s.other_bytes, float) / usual[: len(s.other_bytes)] for s in found]


def audit_share(n_rest: int, stretch_s: float) -> float:
    """Return the probability with which each of `n_rest` stretches is looked at although nothing speaks for it, in (0, 1].

    Args:
        n_rest: how many there are.
        stretch_s: how long one is.
    """
    if n_rest <= 0:
        return 1.0
    return min(1.0, max(AUDIT_LEAST / n_rest, min(AUDIT_SHARE, AUDIT_MOST_S / stretch_s / n_rest)))


def seen(scores: Sequence[float | None], times_s: Sequence[float]) -> Seen:
    """Say what the motion scores of a stretch show.

    Args:
        scores: per frame, None where unknown.
        times_s: their times, increasing.
    """
    moving = np.array([score is not None and score >= MOVES_SHARE for score in scores], bool)
    at = np.asarray(times_s, float)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], moving.astype(np.int8), [0]])))
    lasting = np.zeros(len(at), bool)
    period = float(np.median(np.diff(at))) if len(at) > 1 else 0.0
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if at[end - 1] - at[start] + 1.1 * period >= min(MOVES_S, period * len(at)):  # times of a grid are not exact
            lasting[start:end] = True
    if not lasting.any():
        return Seen(moves=None if all(score is None for score in scores) else False)
    return Seen(
        moves=True,
        at_start=bool(lasting[at < at[0] + EDGE_S].any()),
        at_end=bool(lasting[at > at[-1] - EDGE_S].any()),
    )


def open_gate(clip_id: str, found: Sequence[Stretch], index: Index) -> Gate:
    """Return the gate of a clip; one whose packets say nothing asks for everything."""
    if distrust(found, index):
        return Gate(clip_id, [0.0] * len(found), STRETCH_S, is_believed=False)
    stretch_s = float(np.median([stretch.duration_s for stretch in found]))
    return Gate(clip_id, surprise(found).tolist(), stretch_s, is_calm=is_calm(found))


class Gate:
    """Decides, stretch by stretch, what is decoded next; ask `next`, decode, `tell` what it showed.

    Args:
        clip_id: makes the draws.
        surprises: per stretch.
        stretch_s: how long one is.
        is_calm: see the function; else the search begins at the top, and goes on for longer.
        is_believed: False: everything is decoded, in order.
    """

    def __init__(
        self, clip_id: str, surprises: Sequence[float], stretch_s: float, *, is_calm: bool = True, is_believed: bool = True
    ) -> None:
        self._is_calm = is_calm
        self._clip_id, self._surprise, self._stretch_s = clip_id, list(surprises), stretch_s
        self._seen: dict[int, Seen] = {}
        by_surprise = sorted(range(len(self._surprise)), key=lambda number: (-self._surprise[number], number))
        self._searched, self._all = iter(by_surprise), iter(range(len(self._surprise)))
        self._pulled: list[int] = []
        self._still_run, self._has_motion = 0, False
        self._drawn: tuple[int, ...] | None = None  # of the audit, once it has begun
        self._rest: frozenset[int] = frozenset()
        self._p = 1.0
        self._is_believed = is_believed
        self.has_alarm = False

    def next(self) -> int | None:
        """Return the stretch to decode next, None when enough was seen."""
        if not self._is_believed:
            return self._unseen(self._all)
        if self._drawn is None:
            found = self._search()
            if found is not None:
                return found
            self._draw()
        found = self._unseen(self._audit)
        return self._unseen(self._all) if found is None and self.has_alarm else found

    def tell(self, number: int, found: Seen) -> None:
        """Say what the decoded stretch `number` showed."""
        self._seen[number] = found
        if self._drawn is None:
            if found.moves is not None:
                self._still_run = 0 if found.moves else self._still_run + 1
                self._has_motion = self._has_motion or found.moves
                self._is_calm = self._is_calm and not (found.moves and self._surprise[number] < QUIET)
            self._pulled += [number - 1] * found.at_start + [number + 1] * found.at_end
        elif found.moves and number in self._drawn:
            self.has_alarm = True

    def is_certain(self, number: int) -> bool:
        """Say whether `p_keep` of a decoded stretch is final: it was not among the rest, or the whole sample was seen."""
        return self._drawn is None or number not in self._rest or all(drawn in self._seen for drawn in self._drawn)

    def p_keep(self, number: int) -> float:
        """Return the probability with which stretch `number` came to be looked at; final where `is_certain`."""
        if self._drawn is None or number not in self._rest:
            return 1.0
        alarms = [other for other in self._drawn if other != number and self._seen[other].moves]
        return 1.0 if alarms else self._p

    def _unseen(self, numbers: Iterator[int]) -> int | None:
        return next((number for number in numbers if number not in self._seen), None)

    def _search(self) -> int | None:
        while self._pulled:
            number = self._pulled.pop(0)
            if 0 <= number < len(self._surprise) and number not in self._seen:
                return number
        found = self._unseen(self._searched)
        if found is None or self._surprise[found] >= LOUD:
            return found
        if not self._seen:
            return found  # the packets are asked once at least whether they tell the truth
        if not self._is_calm:
            return found if self._still_run < max(3, STILL_RUN_BUSY * len(self._surprise)) else None
        return found if self._still_run < STILL_RUN and (self._surprise[found] >= QUIET or self._has_motion) else None

    def _draw(self) -> None:
        self._rest = frozenset(range(len(self._surprise))) - set(self._seen)
        self._p = audit_share(len(self._rest), self._stretch_s)
        self._drawn = tuple(n for n in sorted(self._rest) if keys.uniform("gate", self._clip_id, n) < self._p)
        self._audit = iter(self._drawn)


def _peak(sizes: NDArray[np.float64], width: int) -> float:
    """Return the largest mean of `width` neighbours; of all where there are fewer."""
    if not len(sizes):
        return 0.0
    total = np.concatenate([[0], np.cumsum(sizes)])
    width = min(width, len(sizes))
    return float((total[width:] - total[:-width]).max() / width)


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each value lies above what is usual near it, in robust standard deviations."""
    usual = np.array([np.percentile(values[max(0, i - NEAR) : i + NEAR + 1], USUAL) for i in range(len(values))])
    over = values - usual
    made: NDArray[np.float64] = (over - np.median(over)) / max(_low_spread(over), LEAST_SPREAD)
    return made


def _low_spread(values: NDArray[np.float64]) -> float:
    """Return the robust standard deviation of the lower half: what moves lies above."""
    below = np.median(values) - values
    return float(np.median(below[below >= 0])) / 0.6745


def _spread(values: NDArray[np.float64]) -> float:
    middle = float(np.median(values))
    return float(np.median(np.abs(values - middle))) / 0.6745
