"""Is a camera alive? The recorder process beats, the supervisor in another process watches the age of the last frame.

A camera that hangs raises nothing (picamera2#1392, a frozen RTSP stream), so nothing here waits for an exception: the
recorder writes a few bytes into a pipe for its frames (`Heartbeat`), at most twice a second, and the supervisor decides
from their times alone (`Watch`) when the process is killed with its whole group and when it is started again.

Only the standard library: the watching side must live on a host whose other processes are out of memory.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from infra.clock import Clock, SystemClock
from infra.errors import DeviceError

BEAT_PERIOD_S = 0.5
FIRST_PAUSE_S = 1.0
GOOD_RUN_S = 60.0  # after so long a run the next failure is a first one again
_BEAT = struct.Struct("<4sqqqqqq")  # 52 bytes: far below PIPE_BUF, so that a write is whole or not at all
_MAGIC, _BUSY = b"beat", b"busy"
_ANY_MAGIC = re.compile(b"beat|busy")
_RATE_OVER_S = 10.0
_KEPT_SHAPES = 50


class Framed(Protocol):
    """What beats: any frame."""

    sensor_ns: int
    frame_number: int


_F = TypeVar("_F", bound=Framed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a recorder process says about itself; the counts are since its start.

    `is_busy`: no new frame, but it works (it hashes, it salvages).
    """

    frame_number: int
    sensor_ns: int
    n_frames: int
    n_dropped: int
    n_skipped: int
    n_clips: int
    is_busy: bool = False


class Heartbeat:
    """The recorder's end of the pipe; cheap enough to be called for every frame.

    Args:
        fd: the pipe's writing end, as `--heartbeat-fd` names it; None beats nowhere.
        clock: tells when the last beat was.

    `skipped` (says how many frames the trigger did not keep) and `n_clips` are set by the recorder and go along; a clip is
    told at once.
    """

    def __init__(self, fd: int | None, clock: Clock | None = None) -> None:
        self._fd, self._clock = fd, clock or SystemClock()
        self._n_frames = self._n_dropped = 0
        self._last_number, self._last_sensor_ns = -1, 0
        self._next_ns: int | None = None
        self._next_busy_ns: int | None = None
        self._n_clips = 0
        self.skipped: Callable[[], int] = lambda: 0
        if fd is not None:
            try:
                os.set_blocking(fd, False)
                os.set_inheritable(fd, False)
            except OSError as error:
                raise DeviceError(f"heartbeat descriptor {fd}: {error.strerror}; legal: the writing end of a pipe") from error

    def beat(self, frame_number: int, sensor_ns: int) -> None:
        """Count a frame and, at most twice a second, tell the supervisor.

        Raises:
            DeviceError: the supervisor is gone; who records for it stops and keeps what it has.
        """
        if self._n_frames and frame_number > self._last_number + 1:
            self._n_dropped += frame_number - self._last_number - 1
        self._last_number, self._last_sensor_ns = frame_number, sensor_ns
        self._n_frames += 1
        if self._fd is None:
            return
        now_ns = self._clock.mono_ns()
        if self._next_ns is None or now_ns >= self._next_ns:
            self._next_ns = now_ns + round(BEAT_PERIOD_S * 1e9)
            self._tell()

    def busy(self) -> None:
        """Say, at most twice a second, that work goes on between two frames: call it in each turn of a long loop.

        A supervisor that is gone is met at the next frame: what is being finished is finished.
        """
        now_ns = self._clock.mono_ns()
        if self._next_busy_ns is None or now_ns >= self._next_busy_ns:
            self._next_busy_ns = now_ns + round(BEAT_PERIOD_S * 1e9)
            with contextlib.suppress(DeviceError):
                self._tell(_BUSY)

    @property
    def n_clips(self) -> int:
        """Clips made since the start."""
        return self._n_clips

    @n_clips.setter
    def n_clips(self, n_clips: int) -> None:
        self._n_clips = n_clips
        if self._n_frames:
            self._tell()

    def _tell(self, magic: bytes = _MAGIC) -> None:
        if self._fd is None:
            return
        counts = (self._n_frames, self._n_dropped, self.skipped(), self._n_clips)
        try:
            os.write(self._fd, _BEAT.pack(magic, self._last_number, self._last_sensor_ns, *counts))
        except BlockingIOError:
            pass  # a supervisor that does not read: it has its own watchdog
        except OSError as error:
            raise DeviceError("the agent that started this recorder is gone; it stops here") from error

    def watch(self, frames: Iterable[_F]) -> Iterator[_F]:
        """Yield the frames, one beat each: put it next to the camera, before the trigger."""
        for frame in frames:
            self.beat(frame.frame_number, frame.sensor_ns)
            yield frame


def read_beats(data: bytes) -> tuple[list[Beat], bytes]:
    """Return the whole beats in what a pipe gave, and the rest; garbage is skipped to the next beat."""
    beats = []
    while len(data) >= _BEAT.size:
        if not data.startswith((_MAGIC, _BUSY)):
            found = _ANY_MAGIC.search(data, 1)
            data = data[found.start() :] if found else b""
            continue
        magic, number, sensor_ns, *counts = _BEAT.unpack_from(data)
        n_frames, n_dropped, n_skipped, n_clips = counts
        beats.append(
            Beat(
                frame_number=number, sensor_ns=sensor_ns, n_frames=n_frames, n_dropped=n_dropped, n_skipped=n_skipped,
                n_clips=n_clips, is_busy=magic == _BUSY,
            )
        )  # fmt: skip
        data = data[_BEAT.size :]
    return beats, data


State = Literal["starting", "running", "stalled", "waiting", "ended", "stopping", "stopped"]


@dataclass(slots=True, kw_only=True)
class Watch:
    """The life of one child process as times and counts; it touches no process itself.

    The supervisor calls `started`, `beats` and `exited` for what happens and asks `is_stalled` and `may_start`.

    Args:
        clock: the monotonic one counts.
        stall_s: longest time without a new frame or a word that it is busy; None for a child that does not beat.
        start_s: the same until the first frame.
        films: whether there are frames to wait for; the uploader is at work as soon as it was started.
        longest_pause_s: longest pause before the next start.
        rng: draws the jitter, so that ten cameras on one dead switch do not come back in step.
    """

    clock: Clock
    stall_s: float | None = 8.0
    start_s: float = 25.0
    films: bool = True
    longest_pause_s: float = 16.0
    rng: random.Random = field(default_factory=random.Random)
    state: State = "waiting"
    since_ns: int = 0
    n_restarts: int = 0
    n_stalls: int = 0
    last: Beat | None = None
    last_frame_ns: int | None = None
    last_error: str | None = None
    _pause_s: float = 0.0
    _start_at_ns: int = 0
    _started_ns: int = 0
    _busy_ns: int = 0
    _frames: deque[tuple[int, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.since_ns = self._start_at_ns = self.clock.mono_ns()

    def _become(self, state: State) -> None:
        if state != self.state:
            self.state, self.since_ns = state, self.clock.mono_ns()

    def may_start(self) -> bool:
        """Say whether the child should be started now."""
        return self.state == "waiting" and self.clock.mono_ns() >= self._start_at_ns

    def started(self) -> None:
        """The process was started."""
        self._started_ns = self._busy_ns = self.clock.mono_ns()
        self.last, self._frames = None, deque()
        self._become("starting" if self.stall_s is not None and self.films else "running")

    def beats(self, beats: Iterable[Beat]) -> None:
        """Frames came. A frame number that does not grow is no new frame."""
        for beat in beats:
            if beat.is_busy:
                self._busy_ns = self.clock.mono_ns()
                continue
            if self.last is not None and beat.n_frames <= self.last.n_frames:
                self.last = beat if beat.n_frames == self.last.n_frames else self.last
                continue
            self.last, self.last_frame_ns = beat, self.clock.mono_ns()
            self._frames.append((self.last_frame_ns, beat.n_frames))
            while len(self._frames) > 2 and self.last_frame_ns - self._frames[1][0] > _RATE_OVER_S * 1e9:
                self._frames.popleft()
            if self.state in ("starting", "running"):
                self._become("running")

    def is_stalled(self) -> bool:
        """Say whether the child must be killed: no frame and not busy for `stall_s`, or `start_s` where none came yet."""
        if self.stall_s is None or self.state not in ("starting", "running"):
            return False
        limit_s = self.start_s if self.state == "starting" else self.stall_s
        return self.clock.mono_ns() - max(self.last_frame_ns or 0, self._busy_ns) > limit_s * 1e9

    def stalled(self) -> None:
        """The child was found stalled and is being killed."""
        self.n_stalls += 1
        where = "no frame" if self.last is None else f"no frame after number {self.last.frame_number}"
        where = where if self.films else "no sign of life"
        limit_s = self.start_s if self.state == "starting" else self.stall_s
        self.last_error = f"{where} for {limit_s:g} s; killed and started again"
        self._become("stalled")

    def exited(self, ended: bool, reason: str | None = None) -> None:
        """The process is gone; `ended`: because the source has no more frames. Else it is started again after a pause."""
        if self.state == "stopping" or ended:
            self._become("ended" if ended else "stopped")
            return
        if reason is not None and self.state != "stalled":
            self.last_error = reason
        now_ns = self.clock.mono_ns()
        was_good = self.last_frame_ns is not None and self.last_frame_ns - self._started_ns > GOOD_RUN_S * 1e9
        self._pause_s = FIRST_PAUSE_S if was_good or not self._pause_s else min(2 * self._pause_s, self.longest_pause_s)
        self._start_at_ns = now_ns + round(self._pause_s * (0.5 + 0.5 * self.rng.random()) * 1e9)
        self.n_restarts += 1
        self._become("waiting")

    def stopping(self) -> None:
        """The child was told to end; it is not started again."""
        if self.state != "ended":
            self._become("stopping" if self.state in ("starting", "running", "stalled") else "stopped")

    def age_s(self) -> float:
        """Return the seconds since the last frame, or since the start where none came."""
        return (self.clock.mono_ns() - (self.last_frame_ns or self._started_ns)) / 1e9

    def fps(self) -> float | None:
        """Return the frames per second over the last ten seconds or so; None before it can be known."""
        if self.state != "running" or len(self._frames) < 2 or self.age_s() > _RATE_OVER_S:
            return None
        (first_ns, first), (last_ns, last) = self._frames[0], self._frames[-1]
        return (last - first) / ((last_ns - first_ns) / 1e9) if last_ns > first_ns else None


class Repeats:
    """What was said lately: the same line again, but for its numbers, is no news for ten minutes. Bounded memory."""

    def __init__(self, clock: Clock, quiet_s: float = 600.0) -> None:
        self._clock, self._quiet_ns = clock, round(quiet_s * 1e9)
        self._said: OrderedDict[str, int] = OrderedDict()

    def is_news(self, text: str) -> bool:
        """Say whether `text` should be passed on, and remember it."""
        shape, now_ns = shape_of(text), self._clock.mono_ns()
        said_ns = self._said.get(shape)
        if said_ns is not None and now_ns - said_ns < self._quiet_ns:
            return False
        self._said[shape] = now_ns
        self._said.move_to_end(shape)
        if len(self._said) > _KEPT_SHAPES:
            self._said.popitem(last=False)
        return True


def shape_of(text: str) -> str:
    """Return a message without its numbers and times: two of one shape say the same thing."""
    return re.sub(r"\d+", "#", text)[:300]
