"""One recording as somebody asked for it: a camera, what is taken of it, what hides and what triggers, how it is written.

    camera -> stop, heartbeat -> privacy -> rate, size, length -> memory -> gate -> Recorder

`open_for` opens the camera so that it gives what the format needs: a stream is kept as it comes for h264 (unless a size, a
rate or privacy needs pictures), pictures for all other formats. `record` leads its frames through the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from infra.clock import Clock
from infra.errors import UsageError
from infra.keys import check_name
from infra.log import Log
from infra.records import Sidecar
from ingest import take, wishes
from ingest.config import RecordingFormat
from ingest.gate import MINUTE_NS
from ingest.recorder import Recorded, Recorder
from ingest.segments import MakeSegment
from ingest.source import Camera, EncodedSource, Frame, Source, open_camera, open_source, pictures
from ingest.spool import Spool
from ingest.uplink import max_segment_bytes, read_uplink
from ingest.watchdog import Heartbeat

if TYPE_CHECKING:
    from ingest.features import Extractor
    from ingest.gate import Event, Gate, Skipped
    from ingest.privacy import PrivacySettings
    from ingest.trigger import TriggerSettings

FORMATS: Final[tuple[RecordingFormat, ...]] = ("h264", "png", "jpeg", "raw", "features")
HOUR_NS: Final = 3_600_000_000_000
_log = Log("ingest.record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be recorded of a camera.

    Attributes:
        kind: how it is written.
        size_px: (width, height) of what is written; None: as the camera gives it.
        fps: frames a second of what is written; None: as they come.
        seconds: of sensor time; None: until the camera ends or somebody stops it.
        n_frames: at most.
        segment_s: a new file every so many seconds.
        max_segment_bytes: and after so many bytes.
        follows_uplink: and small enough for the link that the uploader measured; never for a file, whose clips stay the same.
        label: the class that is being shown.
        recording: the name of the recording, what a split keeps together.
        site: where the camera stands.
        buffer_bytes: film into memory of so many bytes first; None: onto the disk at once.
        extractor: what makes features.
        thumbnail_s: seconds between the thumbnails beside features.
        realtime: play a file at its own speed.
        trigger: decides what is kept; None: everything.
        latitude, longitude: where the host stands, in degrees, for triggers that follow the sun.
        privacy: what is hidden; None: nothing.
    """

    kind: RecordingFormat = "h264"
    size_px: tuple[int, int] | None = None
    fps: float | None = None
    seconds: float | None = None
    n_frames: int | None = None
    segment_s: float = 60.0
    max_segment_bytes: int | None = None
    follows_uplink: bool = False
    label: str | None = None
    recording: str | None = None
    site: str | None = None
    buffer_bytes: int | None = None
    extractor: Extractor | None = None
    thumbnail_s: float = 60.0
    realtime: bool = False
    trigger: TriggerSettings | None = None
    latitude: float | None = None
    longitude: float | None = None
    privacy: PrivacySettings | None = None

    def __post_init__(self) -> None:
        if (self.kind == "features") != (self.extractor is not None):
            raise UsageError("features need an extractor, and only they do: --as features --extractor MODEL.onnx")
        if self.kind == "h264" and self.size_px is not None and any(side % 2 for side in self.size_px):
            raise UsageError(f"size {self.size_px[0]}x{self.size_px[1]}; legal for h264: even sides")
        for name, what in ((self.label, "class"), (self.recording, "recording")):
            if name is not None:
                check_name(name, what)

    @property
    def needs_pictures(self) -> bool:
        """Whether a stream that the camera encoded cannot be kept as it comes."""
        return self.kind != "h264" or self.size_px is not None or self.fps is not None or self.privacy is not None


def open_for(
    wish: Wish,
    url: str,
    *,
    camera_id: str | None,
    host_id: str,
    allow: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Source | EncodedSource:
    """Open a camera for a wish.

    Args:
        wish: what is wanted.
        url: the address, as of `source.open_camera`.
        camera_id: who films; a simulated camera has its own name.
        host_id: the machine that records.
        allow: networks that an address may lead to although they are not public.
        options: more for the source, by kind.

    Raises:
        UsageError: an address that is not understood, or a camera that is not there (the message lists those there are).
        DeviceError: the camera is in use or broken.
        MediaError: a file that is not a video.
    """
    asked, is_pi = dict(options or {}), url.lower().startswith("picam://")
    small_px = None if wish.trigger is None or wish.trigger.kind == "always" else wish.trigger.small
    if is_pi:  # it gives size and rate itself
        asked |= {name: value for name, value in (("size", wish.size_px), ("fps", wish.fps)) if value is not None}
        asked.setdefault("small", 0 if small_px is None else small_px[0])
    is_usb_jpeg = wish.kind == "jpeg" and wish.privacy is None and url.lower().startswith("v4l2://")
    if is_usb_jpeg:
        source: Source | EncodedSource = _jpeg_camera(wish, url, camera_id, host_id, asked)
    elif (is_pi and (wish.kind != "h264" or wish.privacy)) or (not is_pi and wish.needs_pictures):
        source = open_source(url, camera_id=camera_id, host_id=host_id, allow=allow, options=asked)
        if wish.kind == "h264" and not getattr(source, "is_replay", False):
            _log.info("stream_encoded_again", camera_id=source.camera_id, because="privacy" if wish.privacy else "size or rate")
    else:
        source = open_camera(
            url, camera_id=camera_id, host_id=host_id, allow=allow, small_px=small_px, size_px=wish.size_px,
            fps=wish.fps, options=asked,
        )  # fmt: skip
    if wish.site is not None:
        source.site = wish.site
    return source


def _jpeg_camera(
    wish: Wish, url: str, camera_id: str | None, host_id: str, options: Mapping[str, Any]
) -> Source | EncodedSource:
    """Open a USB camera for JPEG files: those that it sends itself where they have the size that is wanted, else pictures."""
    source = open_camera(url, camera_id=camera_id, host_id=host_id, size_px=wish.size_px, fps=wish.fps, options=options)
    kind = getattr(source, "format", None)
    fits = wish.size_px in (None, (source.width_px, source.height_px))
    return source if kind is not None and kind.codec == "mjpeg" and fits else pictures(source)


def record(
    source: Source | EncodedSource,
    spool: Spool,
    wish: Wish,
    *,
    stop: take.Stop,
    clock: Clock,
    heartbeat: Heartbeat | None = None,
    see: Callable[[Frame], None] = lambda frame: None,
    on_clip: Callable[[Sidecar], None] = lambda sidecar: None,
    on_full: Callable[[str], None] = lambda text: None,
    value: Callable[[Sidecar], float] | None = None,
) -> Recorded:
    """Record a camera as wished.

    Args:
        source: from `open_for`.
        spool: where clips go.
        wish: what is wanted.
        stop: says when somebody wants it to end.
        clock: for `realtime`, and for wishes that expire.
        heartbeat: beats for every frame that the camera gives.
        see: is shown every frame that is filmed (a status line).
        on_clip: is told of each clip.
        on_full: is told when the memory buffer ended the filming.
        value: what a clip is worth when the spool is full.

    Raises:
        DeviceError: disk or camera failed; the clips before are safe.
    """
    near: list[take.Step] = [partial(take.paced, clock=clock)] if wish.realtime else []
    heartbeat = heartbeat or Heartbeat(None)
    near += [stop.frames, heartbeat.watch]  # a signal may end the waiting, whatever it waits for
    camera = take.taken(source, *near)
    if wish.privacy is not None:
        from ingest.privacy import private

        camera = private(cast(Source, camera), wish.privacy)
    camera = take.taken(camera, *_steps(wish, is_stream=hasattr(source, "format"), see=see, on_full=on_full))
    make = _segments(wish, camera)

    def most_bytes() -> int | None:
        limits = (wish.max_segment_bytes, max_segment_bytes(read_uplink(spool.folder)) if wish.follows_uplink else None)
        return min((limit for limit in limits if limit is not None), default=None)

    recorder = Recorder(
        camera, spool, segment_s=wish.segment_s, gop_s=min(2.0, wish.segment_s), max_segment_bytes=most_bytes,
        label=wish.label, group=wish.recording, make_segment=make, container="mp4" if make is None else "tar", value=value,
        busy=heartbeat.busy,
    )  # fmt: skip
    if wish.trigger is None or wish.trigger.kind == "always":
        return recorder.record(on_clip=on_clip)
    from ingest.trigger import open_gate

    gate = open_gate(
        wish.trigger, camera, latitude=wish.latitude, longitude=wish.longitude,
        wishes=lambda: wishes.read(spool.folder, clock),
    )  # fmt: skip
    heartbeat.skipped = lambda: gate.n_not_kept
    return recorder.record_events(_events(gate, camera), on_clip=on_clip)


class _Counted:
    """An event that also says, per minute of sensor time, how many frames were not kept before it."""

    def __init__(self, event: Event[Any], skipped: Sequence[Skipped]) -> None:
        self._event, self.trigger, self.n_skipped = event, event.trigger, event.n_skipped
        self._skipped = [[one.minute, one.n_frames] for one in skipped]

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._event)

    def facts(self) -> Mapping[str, Any]:
        return {**self._event.facts(), **({"skipped_per_minute": self._skipped} if self._skipped else {})}


def _events(gate: Gate[Any], frames: Iterable[Frame]) -> Iterator[_Counted]:
    """Yield the events of a camera, each with what was not kept before it; a quiet camera says so once an hour."""
    for event in gate.events(_telling(gate, frames)):
        yield _Counted(event, gate.take_skipped())
    left = gate.take_skipped()
    for one in left[-60:]:
        _log.info("not_kept", minute=one.minute, n_frames=one.n_frames)
    if len(left) > 60:
        _log.info("not_kept_before", minute=left[-60].minute, n_frames=sum(one.n_frames for one in left[:-60]))


def _telling(gate: Gate[Any], frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yield the frames; log at each hour of sensor time how many of it were not kept, whatever becomes of this process."""
    since_ns, n_told = None, 0
    for frame in frames:
        since_ns = frame.sensor_ns if since_ns is None else since_ns
        if frame.sensor_ns - since_ns >= HOUR_NS:
            since_ns, n_now = frame.sensor_ns, gate.n_not_kept
            if n_now > n_told:
                _log.warning("not_kept_in_an_hour", n_frames=n_now - n_told, until_minute=since_ns // MINUTE_NS)
            n_told = n_now
        yield frame


def _steps(wish: Wish, *, is_stream: bool, see: Callable[[Frame], None], on_full: Callable[[str], None]) -> list[take.Step]:
    """Return what lies between the camera and the recorder; a stream that is kept has its size and rate already."""
    steps: list[take.Step] = []
    if wish.fps is not None and (not is_stream or wish.kind == "jpeg"):
        steps.append(partial(take.thinned, fps=wish.fps))
    if wish.size_px is not None and not is_stream:
        steps.append(partial(take.resized, size_px=wish.size_px))
    steps += [partial(take.limited, seconds=wish.seconds, n_frames=wish.n_frames), partial(take.seen_by, see=see)]
    if wish.buffer_bytes is not None:
        from ingest.memory import in_memory

        steps.append(partial(in_memory, max_bytes=wish.buffer_bytes, on_full=on_full))
    return steps


def _segments(wish: Wish, camera: Camera) -> MakeSegment | None:
    """Return what makes the files of a format; None leaves mp4 to the recorder."""
    if wish.kind in ("png", "jpeg"):
        from ingest.frames import images

        return images(camera, ".png" if wish.kind == "png" else ".jpg")
    if wish.kind == "raw":
        from ingest.raw import raw_frames

        return raw_frames(camera)
    if wish.extractor is not None:
        from ingest.features import features

        return features(camera, wish.extractor, wish.thumbnail_s)
    return None
