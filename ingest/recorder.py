"""The recorder: frames of a source become H.264 segments in the spool, each with a sidecar of its sensor times.

A segment is written under a temporary name in `spool/recording/`, closed before the first frame that is `segment_s` or
more after its own first one (the next file starts with a keyframe), checked, hashed, and moved into the spool together
with its sidecar. Presentation times are sensor times from the segment's first frame on, in ticks of 1/90000 s; the exact
nanoseconds stand in the sidecar. A jump in the sensor's frame numbers is a gap, told in the sidecar of the later frame.

What a crash leaves under a temporary name was never a clip; the next recorder of that camera counts it and takes it away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from infra import durable, keys
from infra.errors import DeviceError, MediaError, UsageError
from infra.log import Log
from infra.objects import file_sha256
from infra.records import Gap, Sidecar
from infra.video import Writer, packets
from ingest.source import Source, SourceFrame, check_frame
from ingest.spool import Spool

TIME_BASE = Fraction(1, 90_000)
_TICKS_PER_NS = 1 / (TIME_BASE * 1_000_000_000)
_NS_PER_S = 1_000_000_000
_log = Log("ingest.record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a recording came to."""

    recording_id: str
    n_clips: int
    n_frames: int
    n_dropped: int
    n_bytes: int


@dataclass(slots=True)
class _Segment:
    path: Path
    writer: Writer
    first: SourceFrame
    sensor_ns: list[int] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    last_pts: int = -1
    failed: bool = False


class Recorder:
    """Records one source into a spool.

    Args:
        source: what films.
        spool: where finished segments go.
        segment_s: a new file at least every so many seconds of sensor time.
        gop_s: seconds between keyframes inside a file.
        label: the class that is being shown, where a person said so at recording.
        trigger: what started the recording.
        options: of the encoder, such as {"crf": "27"}.

    Raises:
        UsageError: a segment or GOP length that is not positive.
    """

    def __init__(
        self,
        source: Source,
        spool: Spool,
        *,
        segment_s: float = 60.0,
        gop_s: float = 2.0,
        label: str | None = None,
        trigger: str = "always",
        options: Mapping[str, str] | None = None,
    ) -> None:
        if not 0 < gop_s <= segment_s <= 3600:
            raise UsageError(f"segment of {segment_s:g} s, GOP of {gop_s:g} s; legal: 0 < GOP <= segment <= 3600")
        self.source, self.spool = source, spool
        self._segment_ns = round(segment_s * _NS_PER_S)
        self._gop_s, self._label, self._trigger, self._options = gop_s, label, trigger, options
        self._n_clips = self._n_frames = self._n_dropped = self._n_bytes = 0

    def record(self, *, max_frames: int | None = None, on_clip: Callable[[Sidecar], None] = lambda sidecar: None) -> Recorded:
        """Record until the source ends, `max_frames` were taken, or Ctrl-C; what was filmed until then is kept.

        Raises:
            DeviceError: the disk is full or broken (the clips before are safe), the sensor's clock went back, or
                another process records this camera into this spool.
        """
        with self.spool.locked(f"record-{self.source.camera_id}"):
            self._clear_unfinished()
            segment: _Segment | None = None
            before: SourceFrame | None = None
            try:
                for frame in self.source:
                    check_frame(before, frame)
                    if segment is not None and frame.sensor_ns - segment.first.sensor_ns >= self._segment_ns:
                        full, segment = segment, None
                        on_clip(self._finish(full))
                    if segment is None:
                        segment = self._start(frame)
                    self._add(segment, before, frame)
                    before = frame
                    if self._n_frames == max_frames:
                        break
            finally:  # also on Ctrl-C or when the sensor failed
                if segment is not None and not segment.failed:
                    on_clip(self._finish(segment))
        return Recorded(
            recording_id=self.source.recording_id,
            n_clips=self._n_clips,
            n_frames=self._n_frames,
            n_dropped=self._n_dropped,
            n_bytes=self._n_bytes,
        )

    def _mine(self) -> str:
        return f".tmp-{self.source.camera_id}-"

    def _clear_unfinished(self) -> None:
        for path in self.spool.recording.glob(f"{self._mine()}*"):
            _log.warning("unfinished_segment_removed", camera_id=self.source.camera_id, n_bytes=path.stat().st_size)
            durable.remove(path)

    def _start(self, frame: SourceFrame) -> _Segment:
        path = self.spool.recording / f"{self._mine()}{keys.new_id()[:12]}.mp4"
        size = (self.source.width_px, self.source.height_px)
        with self._disk(path):
            writer = Writer(path, *size, TIME_BASE, gop_s=self._gop_s, options=self._options)
        return _Segment(path, writer, frame)

    def _add(self, segment: _Segment, before: SourceFrame | None, frame: SourceFrame) -> None:
        n_missing = 0 if before is None else frame.frame_number - before.frame_number - 1
        if before is not None and n_missing:
            duration_ns = frame.sensor_ns - before.sensor_ns
            at = len(segment.sensor_ns)
            segment.gaps.append(Gap(before_frame=at, n_missing=n_missing, duration_ns=duration_ns, cause="source dropped"))
            self._n_dropped += n_missing
        pts = max(segment.last_pts + 1, round((frame.sensor_ns - segment.first.sensor_ns) * _TICKS_PER_NS))
        with self._disk(segment.path, segment):
            segment.writer.add(frame.rgb, pts)
        segment.last_pts = pts
        segment.sensor_ns.append(frame.sensor_ns)
        self._n_frames += 1

    def _finish(self, segment: _Segment) -> Sidecar:
        n_frames = len(segment.sensor_ns)
        with self._disk(segment.path, segment):
            segment.writer.close()
            durable.sync(segment.path)
            n_written = sum(1 for _ in packets(segment.path))
            if n_written != n_frames:  # a muxer may swallow a write that the disk refused
                raise OSError(f"only {n_written} of {n_frames} frames reached the file")
            sha256, n_bytes = file_sha256(segment.path), segment.path.stat().st_size
            start_ns = segment.first.sensor_ns
            sidecar = Sidecar(
                clip_id=keys.clip_id(sha256), camera_id=self.source.camera_id, host_id=self.source.host_id,
                boot_id=self.source.boot_id, recording_id=self.source.recording_id,
                seq=start_ns // 1_000_000,  # milliseconds of the boot: in order, and the same when it is played again
                sha256=sha256, n_bytes=n_bytes, container="mp4", start_ns=self.source.utc_ns(start_ns),
                start_mono_ns=start_ns, clock=self.source.clock, sensor_ns=tuple(segment.sensor_ns),
                gaps=tuple(segment.gaps), trigger=self._trigger, label=self._label, site=self.source.site,
            )  # fmt: skip
        with self._spool(segment):
            self.spool.adopt(segment.path, sidecar)
        self._n_clips, self._n_bytes = self._n_clips + 1, self._n_bytes + n_bytes
        _log.info("recorded", clip_id=sidecar.clip_id, camera_id=sidecar.camera_id, n_frames=n_frames, n_bytes=n_bytes)
        return sidecar

    @contextmanager
    def _disk(self, path: Path, segment: _Segment | None = None) -> Iterator[None]:
        """Turn a disk that fails while a file is written into one line, and leave nothing torn behind."""
        try:
            yield
        except (OSError, MediaError, DeviceError) as error:
            if segment is not None:
                segment.failed = True
                with suppress(OSError, EOFError):  # an encoder that was flushed already says EOF
                    segment.writer.close()
            reason = f"{getattr(error, 'strerror', None) or error} ({path.parent}); free space, or `camloop upload` what waits"
            raise self._stopped(path, reason, 0 if segment is None else len(segment.sensor_ns)) from error

    @contextmanager
    def _spool(self, segment: _Segment) -> Iterator[None]:
        try:
            yield
        except DeviceError as error:
            segment.failed = True
            n_lost = len(segment.sensor_ns) if segment.path.exists() else 0  # moved in already: the spool will find it
            raise self._stopped(segment.path, str(error), n_lost) from error

    def _stopped(self, path: Path, reason: str, n_lost: int) -> DeviceError:
        with suppress(OSError):
            durable.remove(path)
        return DeviceError(
            f"recording of camera {self.source.camera_id} stopped: {reason}; {n_lost} frames of the open segment are lost, "
            f"{self._n_clips} clips before it are safe"
        )
