"""A stream's own times become sensor times: nanoseconds of this machine's CLOCK_MONOTONIC.

A stream counts ticks from a zero of its own, on a crystal of its own; only the arrival of its packets ties it to this machine.
The tie is the earliest arrival of late, since a packet may be late by any amount and early by none: sensor time = the stream's
time + the least (arrival - stream's time) of the last half minute. A better tie is approached by at most `SLEW`, so that
distances of frames stay true; a stream whose time leaps is tied anew. Pure: times in, times out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ingest.packets import StreamPacket

_NS_PER_S: Final = 1_000_000_000
SLEW: Final = 500e-6  # a cheap crystal is off by 100e-6
WINDOW_NS: Final = 30 * _NS_PER_S
LEAP_NS: Final = 2 * _NS_PER_S
_N_STEPS: Final = 31
_MAX_HELD: Final = 32
_USUAL_NS: Final = 40_000_000  # 25 frames a second, where nothing says otherwise


@dataclass(frozen=True, slots=True)
class Tied:
    """A frame on this machine's clock: shown and decoded at, and how many are missing before it by the stream's times."""

    sensor_ns: int
    decode_ns: int
    n_missing: int
    leapt: bool


class StreamClock:
    """Ties one stream to CLOCK_MONOTONIC; one for the whole life of a camera, `reopened` in between."""

    def __init__(self) -> None:
        self._offset_ns: int | None = None
        self._least: deque[tuple[int, int]] = deque()  # (arrival, arrival - stream time), the latter growing
        self._tied_ns = self._slewed_ns = 0
        self._last_stream_ns = 0
        self._last_ns: int | None = None
        self._steps: deque[int] = deque(maxlen=_N_STEPS)
        self._is_new = True

    @property
    def period_ns(self) -> int | None:
        """The usual distance of two frames; None while nobody knows, or for a stream of variable rate."""
        if len(self._steps) < 5:
            return None
        usual = median(self._steps)
        n_usual = sum(abs(step - usual) <= usual / 4 for step in self._steps)
        return round(usual) if n_usual >= 0.8 * len(self._steps) else None

    def reopened(self) -> None:
        """Say that the next frame is the first of a new connection: its stream counts from a new zero."""
        self._is_new = True

    def tie(self, pts_ns: int, dts_ns: int, arrival_ns: int) -> Tied:
        """Return a frame's times on this machine's clock; they grow strictly in the order of decoding.

        Args:
            pts_ns: when it is shown, on the stream's own clock.
            dts_ns: when it is decoded, at most `pts_ns`; it grows within a stream.
            arrival_ns: when it arrived, on CLOCK_MONOTONIC.
        """
        was_new, leapt = self._is_new, False
        delay_ns = arrival_ns - dts_ns
        if self._offset_ns is None or self._is_new or self._leaps(dts_ns, delay_ns):
            leapt = not self._is_new
            self._offset_ns, self._is_new = delay_ns, False
            self._least.clear()
            self._tied_ns = self._slewed_ns = arrival_ns
        self._slew(delay_ns, arrival_ns)
        decode_ns = dts_ns + self._offset_ns
        before_ns = self._last_ns
        if before_ns is not None and decode_ns <= before_ns:
            decode_ns = before_ns + 1
        n_missing = 0 if leapt or before_ns is None else self._missing(decode_ns - before_ns, was_new)
        if not (was_new or leapt or n_missing or before_ns is None):
            self._steps.append(decode_ns - before_ns)
        self._last_stream_ns, self._last_ns = dts_ns, decode_ns
        return Tied(decode_ns + max(0, pts_ns - dts_ns), decode_ns, n_missing, leapt)

    def _leaps(self, dts_ns: int, delay_ns: int) -> bool:
        """Say whether the stream's time went back, or ahead of what can have happened, or stood still for half a minute."""
        assert self._offset_ns is not None
        late_for_long = bool(self._least) and self._least[0][1] - self._offset_ns > LEAP_NS and self._window_is_full()
        return dts_ns < self._last_stream_ns or delay_ns < self._offset_ns - LEAP_NS or late_for_long

    def _window_is_full(self) -> bool:
        return self._least[-1][0] - self._tied_ns >= WINDOW_NS

    def _slew(self, delay_ns: int, arrival_ns: int) -> None:
        assert self._offset_ns is not None
        while self._least and self._least[-1][1] >= delay_ns:
            self._least.pop()
        self._least.append((arrival_ns, delay_ns))
        while self._least[0][0] < arrival_ns - WINDOW_NS:
            self._least.popleft()
        wanted = self._least[0][1] - self._offset_ns
        most = round(SLEW * max(0, arrival_ns - self._slewed_ns))
        self._offset_ns += max(-most, min(most, wanted))
        self._slewed_ns = arrival_ns

    def _missing(self, step_ns: int, was_new: bool) -> int:
        """Return how many frames are missing in a step, by the usual distance; a new connection misses at least one."""
        period_ns = self.period_ns
        n_missing = 0 if period_ns is None or step_ns < 1.75 * period_ns else round(step_ns / period_ns) - 1
        return max(1, n_missing) if was_new else n_missing


def settled(packets: Iterable[StreamPacket], period_ns: int | None) -> Iterator[tuple[StreamPacket, int, int]]:
    """Yield (packet, pts_ns, dts_ns) with times for all: FFmpeg gives none to the first packet of an RTSP stream.

    The first packets wait until one of them has both times. A first packet without a time is the stream's zero.
    """
    held: list[StreamPacket] = []
    last_pts = last_dts = 0
    for packet in packets:
        if held is not None:
            held.append(packet)
            if (packet.pts_ns is None or packet.dts_ns is None) and len(held) < _MAX_HELD:
                continue
            times = _filled(held, period_ns)
            yield from ((one, pts, dts) for one, (pts, dts) in zip(held, times, strict=True))
            last_pts, last_dts = times[-1]
            held = None  # type: ignore[assignment]
            continue
        step = period_ns or _USUAL_NS
        last_pts = last_pts + step if packet.pts_ns is None else packet.pts_ns
        last_dts = min(last_pts, last_dts + step if packet.dts_ns is None else packet.dts_ns)
        yield packet, last_pts, last_dts


def _filled(held: Sequence[StreamPacket], period_ns: int | None) -> list[tuple[int, int]]:
    """Return (pts_ns, dts_ns) of the first packets, of which only the last is sure to have both."""
    known = sorted(packet.pts_ns for packet in held if packet.pts_ns is not None)
    gaps = [b - a for a, b in zip(known, known[1:], strict=False) if b > a]
    step = min(gaps) if gaps else period_ns or _USUAL_NS
    pts: list[int] = []
    for number, packet in enumerate(held):
        if packet.pts_ns is not None:
            pts.append(packet.pts_ns)
        elif number:
            pts.append(pts[-1] + step)
        else:
            least = known[0] if known else step
            pts.append(0 if 0 < least <= 5_000_000_000 else least - step)
    if all(packet.dts_ns in (None, packet.pts_ns) for packet in held) and pts == sorted(pts):
        return [(at, at) for at in pts]
    dts = [held[-1].dts_ns if held[-1].dts_ns is not None else min(pts)]
    for at in reversed(pts[:-1]):
        dts.append(min(at, dts[-1] - step))
    return list(zip(pts, reversed(dts), strict=True))
