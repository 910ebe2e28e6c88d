"""What a person sees while recording: frames, seconds, rate, size an hour, what is dropped. One line, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from infra.clock import Clock
from infra.records import Gap, Sidecar
from ingest.source import Frame

EVERY_S = 0.25
_MB = 1_000_000


@dataclass(slots=True)
class Progress:
    """What a recording has come to so far; times are sensor times, so that a file played fast counts as filmed."""

    n_frames: int = 0
    first_ns: int | None = None
    last_ns: int = 0
    n_bytes: int = 0
    n_missing: int = 0
    gaps: list[tuple[str, Gap]] = field(default_factory=list)
    _number: int | None = None

    def see(self, frame: Frame) -> None:
        """Count a frame."""
        self.first_ns = frame.sensor_ns if self.first_ns is None else self.first_ns
        self.last_ns = max(self.last_ns, frame.sensor_ns)
        if self._number is not None:
            self.n_missing += max(0, frame.frame_number - self._number - 1)
        self._number, self.n_frames = frame.frame_number, self.n_frames + 1

    def add(self, sidecar: Sidecar) -> None:
        """Count a finished clip."""
        self.n_bytes += sidecar.n_bytes
        self.gaps += [(sidecar.clip_id, gap) for gap in sidecar.gaps]

    @property
    def seconds(self) -> float:
        """From the first frame to the end of the last one, which lasts as long as the others do on average."""
        span_s = 0.0 if self.first_ns is None else (self.last_ns - self.first_ns) / 1e9
        return span_s * self.n_frames / (self.n_frames - 1) if self.n_frames > 1 else span_s

    @property
    def fps(self) -> float | None:
        """Frames a second, None before the second frame."""
        return self.n_frames / self.seconds if self.n_frames > 1 and self.seconds else None

    def mb_per_hour(self, n_bytes: int | None = None) -> float | None:
        """Megabytes (10^6) an hour, of what is finished or of `n_bytes`; None before the second frame."""
        return (self.n_bytes if n_bytes is None else n_bytes) / _MB / self.seconds * 3600 if self.seconds else None


class StatusLine:
    """Writes the line, at most four times a second; a stream of None writes nothing.

    Args:
        stream: a terminal, or None.
        clock: says when the next line is due.
        what: the recording's name.
        progress: what it counts.
        open_bytes: returns the size of the file that is being written.
    """

    def __init__(
        self, stream: IO[str] | None, clock: Clock, what: str, progress: Progress, open_bytes: Callable[[], int] = lambda: 0
    ) -> None:
        self._stream, self._clock, self._what, self._progress, self._open_bytes = stream, clock, what, progress, open_bytes
        self._next_ns = 0

    def update(self) -> None:
        """Write the line if it is due."""
        if self._stream is None or self._clock.mono_ns() < self._next_ns:
            return
        self._next_ns = self._clock.mono_ns() + round(EVERY_S * 1e9)
        self._write(self.text(self._progress.n_bytes + self._open_bytes()))

    def text(self, n_bytes: int) -> str:
        """Return the line."""
        seen = self._progress
        rate = "" if seen.fps is None else f"{seen.fps:6.2f} fps  "
        size = "" if (mb := seen.mb_per_hour(n_bytes)) is None else f"{mb:,.0f} MB/h  "
        return f"{self._what}  {seen.n_frames:,} frames  {seen.seconds:,.1f} s  {rate}{size}{seen.n_missing:,} dropped"

    def say(self, text: str) -> None:
        """Write another line in its place (a countdown)."""
        if self._stream is not None:
            self._write(text)

    def close(self) -> None:
        """Take the line away."""
        if self._stream is not None:
            self._write("")

    def _write(self, text: str) -> None:
        assert self._stream is not None
        self._stream.write(f"\r{text}\x1b[K")
        self._stream.flush()
