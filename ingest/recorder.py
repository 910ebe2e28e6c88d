"""The recorder: frames of a camera become segments in the spool, each with a sidecar of its sensor times.

1. A segment gets its sequence number, then a draft of its sidecar (`<file>.start.json`), then its file under a temporary name
   in `spool/recording/`. It is forced to the medium every few seconds, where its kind can be read unfinished.
2. It is closed before the first frame that is `segment_s` or more after its own first one (for encoded frames: the first
   keyframe; also when it grew over `max_segment_bytes`, or when the stream's format changed), and at the end of an event.
3. Checked, hashed, and moved into the spool together with its sidecar. The draft goes last.

Presentation times are sensor times from the segment's first frame on, in ticks of 1/90000 s; the exact nanoseconds stand in
the sidecar. A jump in the sensor's frame numbers is a gap, told with its cause in the sidecar of the later frame.
What a crash leaves under a temporary name is salvaged by the next recorder of that camera (see `salvage.py`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from infra import durable, keys
from infra.errors import DeviceError, MediaError, UsageError
from infra.log import Log
from infra.objects import file_sha256
from infra.records import Gap, Sidecar
from ingest.salvage import FULL_BYTES, discard, draft_path, is_full_disk, salvage, unfinished
from ingest.segments import CONTAINERS, NS_PER_TICK, MakeSegment, SegmentFile, segment_file
from ingest.source import NO_KEYFRAME, SALVAGED, EncodedFrame, EncodedSource, Frame, Source, check_frame
from ingest.spool import Spool

_NS_PER_S = 1_000_000_000
SYNC_NS = 10 * _NS_PER_S  # a pulled plug costs at most this and the last fragment
_log = Log("ingest.record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a recording came to.

    `n_clips` and `n_bytes` are of what the spool took. Beside them: clips that it refused because it was full (each is in the
    ledger), clips that it had already, and clips left by a recorder that died before this one began.
    """

    recording_id: str
    n_clips: int
    n_frames: int
    n_dropped: int
    n_bytes: int
    n_salvaged: int = 0
    n_refused: int = 0
    n_duplicates: int = 0


class Event(Protocol):
    """A run of frames that belong together, and what the trigger said of it (see `gate.py`)."""

    trigger: str
    n_skipped: int

    def __iter__(self) -> Iterator[Frame]: ...

    def facts(self) -> Mapping[str, Any]:
        """Return kind, peak, reason, uncertain, wanted_id, as far as the event has come."""
        ...


class _Always:
    """All frames of a source as one event."""

    n_skipped = 0

    def __init__(self, trigger: str, frames: Iterable[Frame]) -> None:
        self.trigger, self._frames = trigger, frames

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)

    def facts(self) -> Mapping[str, Any]:
        return {}


@dataclass(slots=True)
class _Segment:
    path: Path
    file: SegmentFile
    first: Frame
    draft: Sidecar
    event: Event
    sensor_ns: list[int] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    controls: list[Mapping[str, float]] = field(default_factory=list)
    n_bytes: int = 0
    last_pts: int = -1
    synced_ns: int = 0
    failed: bool = False


class Recorder:
    """Records one camera into a spool.

    Args:
        source: what films: pictures, or frames that the camera encoded.
        spool: where finished segments go.
        segment_s: a new file at least every so many seconds of sensor time (encoded frames: at the next keyframe).
        max_segment_bytes: and after so many bytes, for a link that is too slow for more in one piece; or what says so, asked
            at the start of each file.
        gop_s: seconds between keyframes inside a file that is encoded here.
        label: the class that is being shown, where a person said so at recording.
        group: the name that a person gave to the recording; clips of one name stay together in a split.
        trigger: what started the recording, where no event says it.
        options: of the encoder, such as {"crf": "27"}.
        make_segment: what the frames are written into; None: an mp4 (see `segments.py`).
        container: the suffix of what `make_segment` makes.
        value: what a clip is worth to the spool when it is full, from 0 to 1, by its sidecar.
        busy: called often while a file is counted, hashed or salvaged, for a watchdog that waits for frames.

    Raises:
        UsageError: a segment or GOP length that is not positive.
    """

    def __init__(
        self,
        source: Source | EncodedSource,
        spool: Spool,
        *,
        segment_s: float = 60.0,
        max_segment_bytes: int | Callable[[], int | None] | None = None,
        gop_s: float = 2.0,
        label: str | None = None,
        group: str | None = None,
        trigger: str = "always",
        options: Mapping[str, str] | None = None,
        make_segment: MakeSegment | None = None,
        container: str = "mp4",
        value: Callable[[Sidecar], float] | None = None,
        busy: Callable[[], None] = lambda: None,
    ) -> None:
        if not 0 < gop_s <= segment_s <= 3600:
            raise UsageError(f"segment of {segment_s:g} s, GOP of {gop_s:g} s; legal: 0 < GOP <= segment <= 3600")
        if isinstance(max_segment_bytes, int) and max_segment_bytes < 1:
            raise UsageError(f"segments of {max_segment_bytes} bytes; legal: 1 or more")
        self.source, self.spool = source, spool
        self._segment_ns = round(segment_s * _NS_PER_S)
        self._limit = max_segment_bytes if callable(max_segment_bytes) else lambda: max_segment_bytes
        self._max_bytes = self._limit()
        self._label, self._group, self._trigger, self._value = label, group, trigger, value
        self._make = make_segment or segment_file(source, gop_s=gop_s, options=options)
        self._container, self._busy = container, busy
        self._n_refused = self._n_duplicates = 0
        self._n_clips = self._n_frames = self._n_dropped = self._n_bytes = self._n_salvaged = 0
        self._last_bytes = self._max_bytes or 0

    def record(self, *, max_frames: int | None = None, on_clip: Callable[[Sidecar], None] = lambda sidecar: None) -> Recorded:
        """Record until the source ends, `max_frames` were taken, or Ctrl-C; what was filmed until then is kept.

        Raises:
            DeviceError: the disk is full or broken (the clips before are safe), the sensor's clock went back, or
                another process records this camera into this spool.
        """
        return self.record_events([_Always(self._trigger, self.source)], max_frames=max_frames, on_clip=on_clip)

    def record_events(
        self,
        events: Iterable[Event],
        *,
        max_frames: int | None = None,
        on_clip: Callable[[Sidecar], None] = lambda sidecar: None,
    ) -> Recorded:
        """Record events, one or more segments each; a jump between two of them is the gate's doing, and no gap.

        Raises:
            DeviceError: as `record` does.
        """
        with self.spool.locked(f"record-{self.source.camera_id}"):
            self._salvage_unfinished(on_clip)
            for event in events:
                self._record_event(event, max_frames, on_clip)
                if self._n_frames == max_frames:
                    break
        return Recorded(
            recording_id=self.source.recording_id, n_clips=self._n_clips, n_frames=self._n_frames, n_dropped=self._n_dropped,
            n_bytes=self._n_bytes, n_salvaged=self._n_salvaged, n_refused=self._n_refused, n_duplicates=self._n_duplicates,
        )  # fmt: skip

    def _record_event(self, event: Event, max_frames: int | None, on_clip: Callable[[Sidecar], None]) -> None:
        segment: _Segment | None = None
        before: Frame | None = None
        n_waited = 0
        try:
            for frame in event:
                check_frame(before, frame)
                if segment is not None and self._is_full(segment, frame):
                    full, segment = segment, None
                    self._hand_on(full, on_clip)
                if not _is_decodable(segment, frame):
                    n_waited += 1
                    continue
                if segment is None:
                    segment = self._start(event, frame)
                self._add(segment, before, frame, n_waited)
                before, n_waited = frame, 0
                if self._n_frames == max_frames:
                    break
        finally:  # also on Ctrl-C or when the sensor failed
            if segment is not None and not segment.failed:
                self._hand_on(segment, on_clip)

    def _hand_on(self, segment: _Segment, on_clip: Callable[[Sidecar], None]) -> None:
        if (sidecar := self._finish(segment)) is not None:
            on_clip(sidecar)

    def _salvage_unfinished(self, on_clip: Callable[[Sidecar], None]) -> None:
        n_left = 0
        for path in unfinished(self.spool, self.source.camera_id):
            if getattr(self.source, "is_replay", False):
                discard(self.spool, path, "it is played again")
                continue
            try:
                sidecar = salvage(self.spool, path, self._value, self._busy)
            except DeviceError as error:  # it waits, with its number, for the next recorder; this one films
                _log.error("not_salvaged", path=path, reason=str(error))
                n_left += 1
                continue
            if sidecar is not None:
                self._n_salvaged += 1
                on_clip(sidecar)
        if not n_left:
            self.spool.forfeit_open(self.source.camera_id, SALVAGED)

    def _is_full(self, segment: _Segment, frame: Frame) -> bool:
        """Say whether `frame` begins a new segment.

        30 frames a second are 33.333 ms each: the keyframe of a 4 s segment comes after 3.99996 s. The next one is a whole GOP
        later, so half a frame is not waited for.
        """
        after_ns = frame.sensor_ns - segment.first.sensor_ns
        if isinstance(frame, EncodedFrame):
            if not frame.is_keyframe:
                return False
            after_ns += after_ns // (2 * len(segment.sensor_ns))
        return (
            after_ns >= self._segment_ns
            or (self._max_bytes is not None and segment.n_bytes >= self._max_bytes)
            or _shape(frame) != _shape(segment.first)
        )

    def _start(self, event: Event, frame: Frame) -> _Segment:
        source = self.source
        path = self.spool.recording / f".tmp-{source.camera_id}-{keys.new_id()[:12]}.{self._container}"
        start_ns, self._max_bytes = frame.sensor_ns, self._limit()
        with self._disk(path):
            self.spool.make_room(self._last_bytes)
            seq = self.spool.reserve(source.camera_id, source.boot_id)
        facts = dict(event.facts()) | ({"n_skipped": event.n_skipped} if event.n_skipped else {})
        draft = Sidecar(
            clip_id="", camera_id=source.camera_id, host_id=source.host_id, boot_id=source.boot_id,
            recording_id=source.recording_id, seq=seq, sha256="",
            n_bytes=0, container=self._container, start_ns=source.utc_ns(start_ns), start_mono_ns=start_ns, clock=source.clock,
            trigger=event.trigger, label=self._label, source_group=self._group, site=source.site, event=facts,
        )  # fmt: skip
        with self._disk(path):
            durable.write(draft_path(path), draft.to_json())
            file = self._make(path, frame)
        return _Segment(path, file, frame, draft, event, synced_ns=start_ns)

    def _add(self, segment: _Segment, before: Frame | None, frame: Frame, n_waited: int) -> None:
        n_missing = n_waited if before is None else frame.frame_number - before.frame_number - 1
        if n_missing:
            duration_ns = 0 if before is None else max(0, frame.sensor_ns - before.sensor_ns)
            cause = NO_KEYFRAME if n_missing == n_waited else frame.lost
            segment.gaps.append(
                Gap(before_frame=len(segment.sensor_ns), n_missing=n_missing, duration_ns=duration_ns, cause=cause)
            )
            self._n_dropped += n_missing
        pts = round((frame.sensor_ns - segment.first.sensor_ns) / NS_PER_TICK)
        if not isinstance(frame, EncodedFrame) or frame.decode_ns is None:
            pts = max(segment.last_pts + 1, pts)
        with self._disk(segment.path, segment):
            segment.file.add(frame, pts)
            if segment.file.survives and frame.sensor_ns - segment.synced_ns >= SYNC_NS:
                self._sync(segment, frame.sensor_ns)
            segment.n_bytes += len(frame.data) if isinstance(frame, EncodedFrame) else 0
            if self._max_bytes is not None:
                with suppress(FileNotFoundError):  # an encoder that has not given its first packet yet
                    segment.n_bytes = max(segment.n_bytes, segment.path.stat().st_size)
        segment.last_pts = pts
        segment.sensor_ns.append(frame.sensor_ns)
        segment.controls.append(frame.controls)
        self._n_frames += 1

    def _sync(self, segment: _Segment, now_ns: int) -> None:
        """Force what is written so far to the medium, and what the draft does not know yet."""
        durable.sync(segment.path)
        if len(segment.gaps) != len(segment.draft.gaps):
            segment.draft = replace(segment.draft, gaps=tuple(segment.gaps), event=self._facts(segment))
            durable.write(draft_path(segment.path), segment.draft.to_json())
        segment.synced_ns = now_ns

    def _facts(self, segment: _Segment) -> Mapping[str, Any]:
        return {**segment.draft.event, **segment.event.facts()}

    def _finish(self, segment: _Segment) -> Sidecar | None:
        """Close a segment and give it to the spool; None if that did not take it."""
        n_frames = len(segment.sensor_ns)
        with self._disk(segment.path, segment):
            segment.file.close()
            durable.sync(segment.path)
            n_written = CONTAINERS[self._container].count(segment.path, self._busy)
            if n_written != n_frames:  # a muxer may swallow a write that the disk refused
                disk = os.statvfs(segment.path.parent)
                kind = errno.ENOSPC if disk.f_bavail * disk.f_frsize < FULL_BYTES else errno.EIO
                raise OSError(kind, f"{os.strerror(kind)}: only {n_written} of {n_frames} frames reached the file")
            sha256, n_bytes = file_sha256(segment.path, self._busy), segment.path.stat().st_size
            sidecar = replace(
                segment.draft, clip_id=keys.clip_id(sha256), sha256=sha256, n_bytes=n_bytes,
                sensor_ns=tuple(sorted(segment.sensor_ns)), gaps=tuple(segment.gaps), event=self._facts(segment),
                controls=_by_name(segment.controls),
            )  # fmt: skip
        with self._spool(segment):
            is_taken = self.spool.adopt(segment.path, sidecar, value=None if self._value is None else self._value(sidecar))
            durable.remove(draft_path(segment.path))
            is_refused = not is_taken and self.spool.state(sidecar.clip_id) == "evicted"
        self._last_bytes = n_bytes
        if not is_taken:
            self._n_refused, self._n_duplicates = self._n_refused + is_refused, self._n_duplicates + (not is_refused)
            return None
        self._n_clips, self._n_bytes = self._n_clips + 1, self._n_bytes + n_bytes
        _log.info("recorded", clip_id=sidecar.clip_id, camera_id=sidecar.camera_id, n_frames=n_frames, n_bytes=n_bytes)
        return sidecar

    @contextmanager
    def _disk(self, path: Path, segment: _Segment | None = None) -> Iterator[None]:
        """Turn a disk that fails while a file is written into one line; keep what of the file can be read."""
        try:
            yield
        except (OSError, MediaError, DeviceError) as error:
            if segment is not None:
                segment.failed = True
                with suppress(OSError, EOFError):  # an encoder that was flushed already says EOF
                    segment.file.close()
            reason = getattr(error, "strerror", None) or str(error)
            if not isinstance(error, DeviceError):
                reason = f"{reason} ({path.parent}); free space, or `camloop upload` what waits"
            raise self._stopped(path, reason, 0 if segment is None else len(segment.sensor_ns), error) from error

    @contextmanager
    def _spool(self, segment: _Segment) -> Iterator[None]:
        try:
            yield
        except (DeviceError, OSError) as error:
            segment.failed = True
            n_lost = len(segment.sensor_ns) if segment.path.exists() else 0  # moved in already: the spool will find it
            raise self._stopped(segment.path, str(error), n_lost, error) from error

    def _stopped(self, path: Path, reason: str, n_frames: int, error: BaseException) -> DeviceError:
        """Return what to say; what was filmed goes only if it fills the disk, else it waits for the next recorder."""
        saved: Sidecar | None = None
        with suppress(DeviceError, OSError):
            saved = salvage(self.spool, path, self._value, self._busy)
        if is_full_disk(error, path.parent):
            with suppress(DeviceError, OSError):
                discard(self.spool, path, reason)
        n_left = max(0, n_frames - (0 if saved is None else len(saved.sensor_ns)))
        return DeviceError(
            f"recording of camera {self.source.camera_id} stopped: {reason}; {n_left} frames of the open segment "
            f"{'wait for the next recorder' if path.exists() else 'are lost'}, {self._n_clips} clips before it are safe"
        )


def _is_decodable(segment: _Segment | None, frame: Frame) -> bool:
    """Say whether a frame can be decoded from where its segment begins."""
    if not isinstance(frame, EncodedFrame):
        return True
    return frame.is_keyframe if segment is None else frame.sensor_ns >= segment.first.sensor_ns


def _shape(frame: Frame) -> object:
    return frame.format if isinstance(frame, EncodedFrame) else frame.rgb.shape


def _by_name(controls: list[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    """Return the settings that every frame has, by name: one value where it never changed, else one a frame."""
    names = set(controls[0]).intersection(*controls) if controls else set()
    columns = {name: tuple(settings[name] for settings in controls) for name in sorted(names)}
    return {name: values[:1] if len(set(values)) == 1 else values for name, values in columns.items()}
