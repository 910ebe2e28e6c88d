"""The gate: which frames are recorded. A trigger looks at small pictures; the gate keeps what was before and after.

    gate = Gate(trigger, small=lambda frame: frame.small, pre_roll_s=5, post_roll_s=5)
    for event in gate.events(source):        # like itertools.groupby: an event is an iterator of frames
        for frame in event: ...              # pre-roll, what the trigger saw, post-roll
        event.facts()                        # trigger, peak score, reason, uncertain, wanted_id

1. While nothing happens, frames wait in a buffer that is bounded in seconds and in bytes. It always starts with a
   keyframe, so that an event of encoded frames can be decoded from its first frame; a picture is its own keyframe. The
   buffer reaches back to the last keyframe at or before `pre_roll_s`, as far as its bytes allow.
2. When the trigger says *on*, an event begins with what waits. If no keyframe is left in the buffer (a group of pictures
   larger than the buffer), the event begins with the next keyframe.
3. The event goes on until the trigger has been *off* for `post_roll_s`; what comes on again before that is the same event.
   An encoded event ends for good only with the next keyframe: frames after the post-roll wait, and if the trigger comes
   on before a keyframe does, they belong to the event, because nothing could be decoded without its beginning.
4. A frame that is not kept is counted under its minute of sensor time (`take_skipped`).

A trigger `always` makes one endless event, without buffer, without looking. Frames are never copied; those in the buffer
give up their small picture, which would weigh more than their data. Nothing here waits, decodes or knows a clock: times
are those of the frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from infra.errors import UsageError
from ingest.source import EncodedFrame, SourceFrame

if TYPE_CHECKING:
    from infra.picture import Rgb

MAX_BUFFER_BYTES = 32 << 20  # 11 pictures of 1280x720, or a minute of H.264 at 4 Mbit/s
MINUTE_NS = 60_000_000_000
MAX_MINUTES = 1440  # of frames that were not kept, told apart; those before are summed
Frame = TypeVar("Frame", SourceFrame, EncodedFrame)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a trigger says of one small picture.

    `score` is its evidence, 0 to 1, in the trigger's own measure; `on` is its verdict. `uncertain` marks what a model could
    not tell: it is kept, for the training bank. `wanted_id` names the wish that the picture meets. `label` and `prob` are
    what a model said, where one looked.
    """

    on: bool
    score: float
    reason: str
    uncertain: bool = False
    wanted_id: str | None = None
    label: str | None = None
    prob: float | None = None


class Trigger(Protocol):
    """What decides whether something happens; one object per camera, fed in order."""

    @property
    def name(self) -> str:
        """Its kind: `always`, `motion`, `model`, ..."""
        ...

    @property
    def small_px(self) -> tuple[int, int] | None:
        """The (width, height) in pixels of the pictures it wants; None: it does not look."""
        ...

    def see(self, small: Rgb, sensor_ns: int, utc_ns: int | None) -> Seen:
        """Look at one picture: uint8 (h, w, 3) RGB, its sensor time, and UTC where it is known."""
        ...


@dataclass(frozen=True, slots=True)
class Skipped:
    """`n_frames` were not kept in minute `minute` (minutes of sensor time since the boot).

    The first of `MAX_MINUTES` rows may also count the minutes before it: a quiet camera's memory does not grow.
    """

    minute: int
    n_frames: int


class Event(Generic[Frame]):
    """A run of frames that belong together; iterate it once, to its end. What it knows grows while it runs.

    `n_skipped` is how many frames were not kept between the event before and this one's first frame.
    """

    def __init__(self, number: int, trigger: str, n_skipped: int) -> None:
        self.number, self.trigger, self.n_skipped = number, trigger, n_skipped
        self.peak = 0.0
        self.reason = ""
        self.uncertain = False
        self.wanted_id: str | None = None
        self._frames: Iterator[Frame] = iter(())

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def feed(self, frames: Iterator[Frame]) -> None:
        """Say where its frames come from (the gate does)."""
        self._frames = frames

    def saw(self, seen: Seen) -> None:
        """Take what the trigger said when it was on; the same again changes nothing."""
        if seen.score >= self.peak or not self.reason:
            self.peak, self.reason = max(self.peak, seen.score), seen.reason
        self.uncertain |= seen.uncertain
        self.wanted_id = self.wanted_id or seen.wanted_id

    def facts(self) -> Mapping[str, str | float | bool | None]:
        """Return what the spool values a clip by: kind, peak, reason, uncertain, wanted_id."""
        return {
            "kind": self.trigger, "peak": round(self.peak, 6), "reason": self.reason, "uncertain": self.uncertain,
            "wanted_id": self.wanted_id,
        }  # fmt: skip


class Gate(Generic[Frame]):
    """Cuts a stream of frames into events.

    Args:
        trigger: what looks.
        small: gives the picture that the trigger looks at, None for frames that have none (the last verdict holds on).
        pre_roll_s: seconds to keep from before the trigger came on.
        post_roll_s: seconds to keep after it was last on; events closer than this are one.
        max_buffer_bytes: how much may wait in memory.
        utc_ns: UTC of a sensor time, where the source knows it.

    Raises:
        UsageError: a negative or absurd length.
    """

    def __init__(
        self,
        trigger: Trigger,
        *,
        small: Callable[[Frame], Rgb | None],
        pre_roll_s: float = 5.0,
        post_roll_s: float = 5.0,
        max_buffer_bytes: int = MAX_BUFFER_BYTES,
        utc_ns: Callable[[int], int | None] = lambda sensor_ns: None,
    ) -> None:
        if not (0 <= pre_roll_s <= 600 and 0 <= post_roll_s <= 3600 and max_buffer_bytes > 0):
            raise UsageError(
                f"pre-roll {pre_roll_s:g} s, post-roll {post_roll_s:g} s, buffer {max_buffer_bytes} bytes; "
                "legal: [0, 600], [0, 3600], more than 0"
            )
        self.trigger = trigger
        self._small: Callable[[Frame], Rgb | None] = small
        self._utc_ns = utc_ns
        self._post_ns = round(post_roll_s * 1e9)
        self._buffer: _Buffer[Frame] = _Buffer(round(pre_roll_s * 1e9), max_buffer_bytes)
        self._event: Event[Frame] | None = None
        self._n_events = self._n_skipped = 0
        self._last_on: Seen | None = None
        self._last_on_ns = self._now_ns = 0
        self._skipped: dict[int, int] = {}
        self.n_not_kept = 0  # since the start

    @property
    def event(self) -> Event[Frame] | None:
        """The event that is under way."""
        return self._event

    def take_skipped(self) -> tuple[Skipped, ...]:
        """Return what was not kept since the last call, per minute of sensor time."""
        taken = tuple(Skipped(minute, n) for minute, n in sorted(self._skipped.items()))
        self._skipped.clear()
        return taken

    def events(self, frames: Iterable[Frame]) -> Iterator[Event[Frame]]:
        """Yield the events. Frames of one that its reader left early are not kept, and counted.

        Whatever the source raises comes out of the event that is read. Frames that still wait then were not kept.
        """
        if self.trigger.small_px is None:
            event = self._event = self._begin()
            event.feed(iter(frames))
            yield event
            return
        run = self._run(iter(frames))
        for first in run:  # the first frame of an event, or None between two
            if first is None or self._event is None:
                continue
            event = self._event
            event.feed(_until_none(first, run))
            yield event
            for frame in event:
                self._skip(frame)
        self._buffer.clear(self._skip)

    def _begin(self) -> Event[Frame]:
        event: Event[Frame] = Event(self._n_events, self.trigger.name, self._n_skipped)
        self._n_events += 1
        self._n_skipped = 0
        return event

    def _run(self, frames: Iterator[Frame]) -> Iterator[Frame | None]:
        """Yield the frames to be kept, and None after the last one of each event."""
        for frame in frames:
            seen = self._look(frame)
            self._now_ns = max(self._now_ns, order_ns(frame))
            if seen is not None and seen.on:
                self._last_on, self._last_on_ns = seen, self._now_ns
            wanted = self._last_on is not None and self._now_ns - self._last_on_ns <= self._post_ns
            if self._event is not None and not wanted and self._over(frame):
                self._event = None
                yield None
            if not wanted:
                self._wait(frame)
                continue
            if self._event is None:
                self._buffer.trim(self._now_ns, self._skip)
                if not self._startable(frame):
                    continue
                self._event = self._begin()
            if self._last_on is not None:
                self._event.saw(self._last_on)
            yield from self._buffer.drain()
            yield frame

    def _look(self, frame: Frame) -> Seen | None:
        small = self._small(frame)
        return None if small is None else self.trigger.see(small, order_ns(frame), self._utc_ns(frame.sensor_ns))

    def _over(self, frame: Frame) -> bool:
        """Say whether the event ends before this frame: it is a keyframe, or too much waits for one."""
        if _is_keyframe(frame) or self._buffer.is_full(frame):
            self._buffer.clear(self._skip)
            return True
        return False

    def _wait(self, frame: Frame) -> None:
        if self._event is not None:  # they may belong to it still, and need no keyframe of their own
            self._buffer.add(frame, self._now_ns)
        elif self._startable(frame):
            self._buffer.add(frame, self._now_ns)
            self._buffer.trim(self._now_ns, self._skip)

    def _startable(self, frame: Frame) -> bool:
        if len(self._buffer) or _is_keyframe(frame):
            return True
        self._skip(frame)  # nothing to decode it from
        return False

    def _skip(self, frame: Frame) -> None:
        minute = frame.sensor_ns // MINUTE_NS
        self._skipped[minute] = self._skipped.get(minute, 0) + 1
        if len(self._skipped) > MAX_MINUTES:
            first, second = sorted(self._skipped)[:2]
            self._skipped[second] += self._skipped.pop(first)
        self._n_skipped += 1
        self.n_not_kept += 1


def order_ns(frame: SourceFrame | EncodedFrame) -> int:
    """Return a time that grows from frame to frame as they come: with B-frames that is the time of decoding."""
    if isinstance(frame, EncodedFrame) and frame.decode_ns is not None:
        return frame.decode_ns
    return frame.sensor_ns


class _Buffer(Generic[Frame]):
    """Whole groups of pictures, the oldest first; bounded in bytes, and in seconds before the newest frame."""

    def __init__(self, span_ns: int, max_bytes: int) -> None:
        self._span_ns, self._max_bytes = span_ns, max_bytes
        self._frames: deque[Frame] = deque()
        self._keyframes_ns: deque[int] = deque()
        self._n_bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def is_full(self, frame: Frame) -> bool:
        """Say whether `frame` would not fit any more."""
        return self._n_bytes + _n_bytes(frame) > self._max_bytes

    def add(self, frame: Frame, now_ns: int) -> None:
        """Take the newest frame."""
        if _is_keyframe(frame):
            self._keyframes_ns.append(now_ns)
        self._frames.append(_without_small(frame))
        self._n_bytes += _n_bytes(frame)

    def trim(self, now_ns: int, skip: Callable[[Frame], None]) -> None:
        """Give what is too old or too much to `skip`, whole groups at a time."""
        while len(self._keyframes_ns) > 1 and self._keyframes_ns[1] <= now_ns - self._span_ns:
            self._drop_group(skip)
        while self._n_bytes > self._max_bytes:
            self._drop_group(skip)

    def drain(self) -> Iterator[Frame]:
        """Yield what waits, and forget it."""
        while self._frames:
            yield self._frames.popleft()
        self._keyframes_ns.clear()
        self._n_bytes = 0

    def clear(self, skip: Callable[[Frame], None]) -> None:
        for frame in self.drain():
            skip(frame)

    def _drop_group(self, skip: Callable[[Frame], None]) -> None:
        first = True
        while self._frames and (first or not _is_keyframe(self._frames[0])):
            frame = self._frames.popleft()
            self._n_bytes -= _n_bytes(frame)
            skip(frame)
            first = False
        self._keyframes_ns.popleft()


def _until_none(first: Frame, run: Iterator[Frame | None]) -> Iterator[Frame]:
    yield first
    for frame in run:
        if frame is None:
            return
        yield frame


def _is_keyframe(frame: SourceFrame | EncodedFrame) -> bool:
    return isinstance(frame, SourceFrame) or frame.is_keyframe


def _n_bytes(frame: SourceFrame | EncodedFrame) -> int:
    return frame.rgb.nbytes if isinstance(frame, SourceFrame) else len(frame.data)


def _without_small(frame: Frame) -> Frame:
    if isinstance(frame, EncodedFrame) and frame.small is not None:
        return replace(frame, small=None)
    return frame
