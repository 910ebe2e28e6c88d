"""Frames for the live loop: from files or from a camera's source, all of them or the newest first.

- `from_file`: every frame of a video file, converted only when asked. A file is a recording of its own.
- `from_source`: what the room `ingest` opens (the two are joined by name, in `infra/cli.py`): pictures with sensor times.
- `at_their_pace`: holds frames back until their time, so that a file plays like a camera.
- `newest_first`: a thread takes frames as fast as they come and keeps one; who asks gets the newest. A model that is too
  slow for its camera so sees fewer frames, never old ones. The frames that it did not see are counted.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from infra import video
from infra.clock import Clock
from infra.errors import UsageError
from infra.keys import check_name
from infra.objects import file_sha256
from infra.records import ClockQuality

Rgb = NDArray[np.uint8]
Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Who films and since when: what a sidecar says about a source. `utc_ns` turns a sensor time into UTC, if it can."""

    name: str
    camera_id: str
    host_id: str
    boot_id: str
    recording_id: str
    clock: ClockQuality
    utc_ns: Callable[[int], int | None]
    site: str | None = None
    is_simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFrame:
    """One frame that is not converted yet.

    `rgb(size_px)` gives uint8 (H, W, 3) RGB at (width, height), at its own size for None. `sensor_ns` is the sensor's
    time in nanoseconds of a clock that does not jump, for a file the time since its first frame. `pts` are a file's ticks.
    `arrived_ns` is when `newest_first` got it (None elsewhere), `n_dropped` how many it skipped just before.
    """

    rgb: Callable[[Size | None], Rgb]
    sensor_ns: int
    recording: Recording
    pts: int | None = None
    arrived_ns: int | None = None
    n_dropped: int = 0


class SourceFrame(Protocol):
    """What a camera source yields: uint8 (H, W, 3) RGB and its sensor time."""

    @property
    def rgb(self) -> Rgb: ...

    @property
    def sensor_ns(self) -> int: ...


class Source(Protocol):
    """One recording of a camera as the room `ingest` opens it; only what is needed here."""

    camera_id: str
    host_id: str
    boot_id: str
    recording_id: str
    site: str | None
    clock: ClockQuality

    def utc_ns(self, sensor_ns: int) -> int | None: ...

    def __iter__(self) -> Iterator[SourceFrame]: ...


def from_file(path: Path, *, host_id: str, camera_id: str | None = None) -> Iterator[LiveFrame]:
    """Yield every frame of a video file.

    The same file gives the same recording: its ids are made from the file's hash. Without `camera_id` it is the file's name.

    Raises:
        UsageError: the file's name cannot be a camera's.
        MediaError: it is no video, or damaged.
    """
    seen = video.probe(path)
    sha256 = file_sha256(path)
    try:
        camera_id = check_name(camera_id or path.stem, "camera")
    except UsageError as error:
        raise UsageError(f"{error}; name the camera with --camera ID") from error
    recording = Recording(
        name=str(path), camera_id=camera_id, host_id=host_id, boot_id=f"file-{sha256[:12]}",
        recording_id=sha256[:32], clock="unknown" if seen.start_ns is None else "file", utc_ns=_since(seen.start_ns),
    )  # fmt: skip
    for picture in video.pictures(path, index=seen.index):
        sensor_ns = round((picture.pts - seen.first_pts) * seen.time_base * 1_000_000_000)
        yield LiveFrame(rgb=picture.rgb, sensor_ns=sensor_ns, recording=recording, pts=picture.pts)


def _since(start_ns: int | None) -> Callable[[int], int | None]:
    return lambda sensor_ns: None if start_ns is None else start_ns + sensor_ns


def from_source(source: Source, name: str) -> Iterator[LiveFrame]:
    """Yield the frames of an opened source; arrays that it would reuse must be copied by it."""
    recording = Recording(
        name=name, camera_id=source.camera_id, host_id=source.host_id, boot_id=source.boot_id, site=source.site,
        recording_id=source.recording_id, clock=source.clock, utc_ns=source.utc_ns, is_simulated=name.startswith("sim://"),
    )  # fmt: skip
    for frame in source:
        yield LiveFrame(rgb=_resizer(frame.rgb), sensor_ns=frame.sensor_ns, recording=recording)


def _resizer(rgb: Rgb) -> Callable[[Size | None], Rgb]:
    def convert(size_px: Size | None) -> Rgb:
        same = size_px is None or size_px == (rgb.shape[1], rgb.shape[0])
        return rgb if same or size_px is None else video.resize(rgb, size_px)

    return convert


def at_their_pace(frames: Iterable[LiveFrame], clock: Clock) -> Iterator[LiveFrame]:
    """Yield each frame no earlier than its distance in sensor time from the recording's first frame says."""
    recording: Recording | None = None
    offset_ns = 0
    for frame in frames:
        if frame.recording is not recording:
            recording, offset_ns = frame.recording, clock.mono_ns() - frame.sensor_ns
        early_s = (frame.sensor_ns + offset_ns - clock.mono_ns()) / 1e9
        if early_s > 0:
            clock.sleep_s(early_s)
        yield frame


def newest_first(frames: Iterable[LiveFrame], clock: Clock) -> Iterator[LiveFrame]:
    """Yield the newest frame whenever one is asked for; `n_dropped` counts those skipped just before it.

    Args:
        frames: taken by a thread of its own.
        clock: stamps each frame's arrival.

    Raises:
        CamloopError: whatever taking a frame raised, in the asking thread, after the last good frame.
    """
    box = _Mailbox(clock)
    thread = threading.Thread(target=box.fill, args=(frames,), name="frames", daemon=True)
    thread.start()
    try:
        while (frame := box.take()) is not None:
            yield frame
    finally:
        box.is_closed = True


class _Mailbox:
    """One slot: a frame put in replaces the one that nobody took."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._frame: LiveFrame | None = None
        self._n_dropped = 0
        self._is_over = False
        self._error: Exception | None = None
        self.is_closed = False

    def fill(self, frames: Iterable[LiveFrame]) -> None:
        error: Exception | None = None
        try:
            for frame in frames:
                with self._changed:
                    self._n_dropped += self._frame is not None
                    self._frame = dataclasses.replace(frame, arrived_ns=self._clock.mono_ns())
                    self._changed.notify()
                if self.is_closed:
                    break
        except Exception as caught:  # noqa: BLE001 - carried over to the thread that asks, which raises it
            error = caught
        with self._changed:
            self._is_over, self._error = True, error
            self._changed.notify()

    def take(self) -> LiveFrame | None:
        with self._changed:
            while self._frame is None and not self._is_over:
                self._changed.wait(0.5)  # with a limit, so that Ctrl-C gets through
            frame, n_dropped = self._frame, self._n_dropped
            self._frame, self._n_dropped = None, 0
        if frame is None and self._error is not None:
            raise self._error
        return None if frame is None else dataclasses.replace(frame, n_dropped=n_dropped)
