"""How a recording is taken from a camera: at which size and rate, for how long, until somebody says stop.

    stop = Stop()
    with stop.on_signals():
        source = taken(camera, stop.frames, lambda frames: limited(frames, seconds=60))
        Recorder(source, spool).record()

Each step is a generator over frames; `taken` puts them between a camera and a recorder and keeps who films. No step waits
for wall-clock time, except `paced`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from math import floor
from types import FrameType
from typing import Any, cast, overload

from infra.clock import Clock
from infra.errors import UsageError
from infra.records import ClockQuality
from ingest.source import Camera, EncodedSource, Frame, Source, SourceFrame

_NS_PER_S = 1_000_000_000
Step = Callable[[Iterable[Any]], Iterator[Any]]


@overload
def taken(source: Source, *steps: Step) -> Source: ...
@overload
def taken(source: Source | EncodedSource, *steps: Step) -> Source | EncodedSource: ...
def taken(source: Source | EncodedSource, *steps: Step) -> Source | EncodedSource:
    """Return the camera with its frames led through `steps`, the first one next to the camera."""
    return cast(Source, _Taken(source, steps))


class _Taken:
    """A camera whose frames come through some steps."""

    def __init__(self, source: Camera, steps: tuple[Step, ...]) -> None:
        self._source, self._steps = source, steps
        self.camera_id, self.host_id, self.boot_id = source.camera_id, source.host_id, source.boot_id
        self.recording_id, self.site = source.recording_id, source.site
        self.width_px, self.height_px = source.width_px, source.height_px
        self.is_replay = bool(getattr(source, "is_replay", False))

    @property
    def clock(self) -> ClockQuality:
        return self._source.clock

    @property
    def format(self) -> Any:
        return cast(Any, self._source).format

    def utc_ns(self, sensor_ns: int) -> int | None:
        return self._source.utc_ns(sensor_ns)

    def __iter__(self) -> Iterator[Frame]:
        frames: Iterable[Frame] = cast("Iterable[Frame]", self._source)
        for step in self._steps:
            frames = step(frames)
        return iter(frames)


class Stop:
    """Ctrl-C or SIGTERM ends a recording exactly: with the frame that is being written, not in its middle.

    While the camera is waited for, the signal interrupts the waiting. A second signal interrupts whatever is going on.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._is_waiting = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM while the block runs (main thread)."""
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again, self.is_asked = self.is_asked, True
        if self._is_waiting or again:
            raise KeyboardInterrupt

    def frames(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yield the frames until somebody said stop."""
        waiting = iter(frames)
        while not self.is_asked:
            self._is_waiting = True
            try:
                frame = next(waiting, None)
            except KeyboardInterrupt:
                return
            finally:
                self._is_waiting = False
            if frame is None:
                return
            yield frame


def limited(frames: Iterable[Frame], *, seconds: float | None = None, n_frames: int | None = None) -> Iterator[Frame]:
    """Yield the frames of the first `seconds` of sensor time, at most `n_frames`."""
    first_ns = None
    for number, frame in enumerate(frames, 1):
        first_ns = frame.sensor_ns if first_ns is None else first_ns
        if seconds is not None and frame.sensor_ns - first_ns >= seconds * _NS_PER_S:
            return
        yield frame
        if number == n_frames:
            return


def thinned(frames: Iterable[Frame], fps: float) -> Iterator[Frame]:
    """Yield `fps` frames a second: for each tick of the rate the first frame that is not more than a quarter tick early.

    Frames are numbered by their tick, so that a tick without a frame is a gap like any other; the first frame is tick 0.
    Encoded frames must be keyframes all (a camera's JPEG).

    Raises:
        UsageError: a rate that is not positive.
    """
    if not 0 < fps <= 1000:
        raise UsageError(f"{fps:g} frames a second; legal: more than 0, at most 1000")
    per_ns = Fraction(fps).limit_denominator(1_000_000) / _NS_PER_S
    first_ns, last = None, -1
    for frame in frames:
        first_ns = frame.sensor_ns if first_ns is None else first_ns
        tick = floor((frame.sensor_ns - first_ns) * per_ns + Fraction(1, 4))
        if tick > last:
            last = tick
            yield replace(frame, frame_number=tick)


def resized(frames: Iterable[SourceFrame], size_px: tuple[int, int]) -> Iterator[SourceFrame]:
    """Yield the frames at (width, height) pixels, as a camera that is asked for that size would give them."""
    from infra.picture import resize

    for frame in frames:
        same = frame.rgb.shape[1::-1] == size_px
        yield frame if same else replace(frame, rgb=resize(frame.rgb, size_px))


def paced(frames: Iterable[Frame], clock: Clock) -> Iterator[Frame]:
    """Yield the frames not before they would have come from a camera: a file at its own speed."""
    first_ns: int | None = None
    start_ns = 0
    for frame in frames:
        if first_ns is None:
            first_ns, start_ns = frame.sensor_ns, clock.mono_ns()
        ahead_ns = frame.sensor_ns - first_ns - (clock.mono_ns() - start_ns)
        if ahead_ns > 0:
            clock.sleep_s(ahead_ns / _NS_PER_S)
        yield frame


def seen_by(frames: Iterable[Frame], see: Callable[[Frame], None]) -> Iterator[Frame]:
    """Yield the frames, each shown to `see` first: a status line, a heartbeat."""
    for frame in frames:
        see(frame)
        yield frame
