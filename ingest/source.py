"""Where frames come from: a `Source` yields pictures with the sensor's own time of each, an `EncodedSource` what it sends.

`open_camera` knows a video file, played as if a camera were filming it, `sim://SEED/CAMERA`, a camera of the simulated world,
`rtsp://` (`stream.py`) and `v4l2://` (`usb.py`) streams, and `picam://` (`picam.py`); `open_source` gives the pictures of any.
A sensor time is nanoseconds on a clock that only grows within one `boot_id`; only the source knows how it relates to UTC, and
how well (`clock`). Nothing here is written to disk; files and simulated cameras wait for no wall-clock time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast
from urllib.parse import parse_qsl, urlsplit

from infra.errors import DeviceError, UsageError
from infra.keys import check_name
from infra.log import mask
from infra.objects import file_sha256
from infra.records import ClockQuality

if TYPE_CHECKING:
    from infra.demo.world import RecordingPlan
    from infra.picture import Rgb

_NS_PER_S = 1_000_000_000
SOURCE_DROPPED: Final = "source dropped"
RECORDER_SLOW: Final = "recorder too slow"
REOPENED: Final = "stream reopened"
PRIVACY: Final = "privacy"
NO_KEYFRAME: Final = "no keyframe yet"
DAMAGED: Final = "damaged frame"
SALVAGED: Final = "recorder died"
CAUSES: Final = (SOURCE_DROPPED, RECORDER_SLOW, REOPENED, PRIVACY, NO_KEYFRAME, DAMAGED, SALVAGED)
"""Whose fault a gap is: what stands in `Gap.cause`."""
SCHEMES: Final = ("sim://SEED/CAMERA", "rtsp://HOST/PATH", "rtsps://HOST/PATH", "v4l2:///dev/video0", "picam://0")
SIM_OPTIONS = ("recording", "batch", "lighting", "seconds", "counter")


@dataclass(frozen=True, slots=True, eq=False)
class SourceFrame:
    """One picture as it came: uint8 (H, W, 3) RGB, sensor time, and the sensor's running number (a jump is a loss).

    `controls` are what the sensor was set to for this frame (`exposure_us`, `gain`, ...), empty where nobody knows.
    `lost` says whose fault it is, as far as known, when frame numbers jump before this frame (see `CAUSES`).
    """

    rgb: Rgb
    sensor_ns: int
    frame_number: int
    controls: Mapping[str, float] = field(default_factory=dict)
    lost: str = SOURCE_DROPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFormat:
    """How an encoded stream is to be read: codec, stored size, and the codec's own header (SPS and PPS for h264)."""

    codec: Literal["h264", "hevc", "mjpeg"]
    width_px: int
    height_px: int
    extradata: bytes


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EncodedFrame:
    """One frame as the camera encoded it, kept as it came.

    `sensor_ns` is its presentation time. Frames come in the order in which they are decoded; with B-frames that is not
    the order of presentation, and `decode_ns` says when it is to be decoded (None: when it is shown). `small` is a small
    picture of it, uint8 (h, w, 3) RGB, for the trigger and the preview, on those frames where the source made one.
    """

    data: bytes
    is_keyframe: bool
    sensor_ns: int
    frame_number: int
    format: StreamFormat
    decode_ns: int | None = None
    small: Rgb | None = None
    controls: Mapping[str, float] = field(default_factory=dict)
    lost: str = SOURCE_DROPPED


Frame = SourceFrame | EncodedFrame


class Camera(Protocol):
    """One recording of one camera: who films and how good its clock is.

    `recording_id` joins all clips made of it; `clock` says how good `utc_ns` is. A camera whose frames can be had again, the
    same ones (a file, the simulated world), has `is_replay = True`; one without that attribute films what happens once.
    """

    camera_id: str
    host_id: str
    boot_id: str
    recording_id: str
    site: str | None
    width_px: int
    height_px: int
    clock: ClockQuality

    def utc_ns(self, sensor_ns: int) -> int | None:
        """Return the UTC nanoseconds of a sensor time, None when nobody knows."""
        ...


class Source(Camera, Protocol):
    """A camera that gives pictures, from the recording's first frame to its last."""

    def __iter__(self) -> Iterator[SourceFrame]:
        """Yield the frames; sensor times and frame numbers grow strictly."""
        ...


class EncodedSource(Camera, Protocol):
    """A camera that gives frames as it encoded them; `format` is that of the next frame."""

    format: StreamFormat

    def __iter__(self) -> Iterator[EncodedFrame]:
        """Yield the frames in the order in which they are decoded; frame numbers grow strictly."""
        ...


class FileSource:
    """Plays a video file. The same file gives the same recording: its ids are made from the file's hash.

    Args:
        path: the file.
        camera_id: who filmed it; default: the file's name without its suffix.
        host_id: the machine that plays it.

    Raises:
        UsageError: no such file, or a name that cannot be a camera's.
        MediaError: not a video.
    """

    is_replay = True

    def __init__(self, path: Path, *, camera_id: str | None = None, host_id: str = "host") -> None:
        from infra.video import probe

        if not path.is_file():
            raise UsageError(f"source {str(path)!r}: no such file; give a video file or sim://SEED/CAMERA")
        try:
            self.camera_id = check_name(camera_id or path.stem, "camera")
        except UsageError as error:
            raise UsageError(f"{error}; name the camera with --camera ID") from error
        self._path = path
        self._probe = probe(path)
        sha256 = file_sha256(path)
        self.host_id = host_id
        self.boot_id = f"file-{sha256[:12]}"
        self.recording_id = sha256[:32]
        self.site: str | None = None
        self.width_px, self.height_px = self._probe.width_px, self._probe.height_px
        self.clock: ClockQuality = "unknown" if self._probe.start_ns is None else "file"

    def utc_ns(self, sensor_ns: int) -> int | None:
        return None if self._probe.start_ns is None else self._probe.start_ns + sensor_ns

    def __iter__(self) -> Iterator[SourceFrame]:
        from infra.video import decode

        number = 0
        for frames in decode(self._path, index=self._probe.index):
            for rgb, pts in zip(frames.rgb, frames.pts, strict=True):
                sensor_ns = round((int(pts) - self._probe.first_pts) * self._probe.time_base * _NS_PER_S)
                yield SourceFrame(rgb, sensor_ns, number)
                number += 1


class SimulatedSource:
    """A camera of the simulated world filming one recording, with exact sensor times."""

    is_replay = True

    def __init__(self, plan: RecordingPlan) -> None:
        from infra.demo.film import SimulatedCamera

        self.plan = plan
        self._camera = SimulatedCamera(plan)
        self.camera_id = plan.camera.camera_id
        self.site: str | None = plan.camera.site
        self.host_id, self.boot_id = self._camera.host_id, self._camera.boot_id
        self.recording_id = plan.recording_id
        self.width_px, self.height_px = self._camera.width_px, self._camera.height_px
        self.clock: ClockQuality = "sensor"

    def utc_ns(self, sensor_ns: int) -> int | None:
        return self.plan.start_ns + sensor_ns - self.plan.start_mono_ns

    def __iter__(self) -> Iterator[SourceFrame]:
        for frame in self._camera:
            yield SourceFrame(frame.rgb, frame.sensor_ns, frame.frame_number)


def open_camera(
    url: str,
    *,
    camera_id: str | None = None,
    host_id: str = "host",
    site: str | None = None,
    allow: Sequence[str] = (),
    small_px: tuple[int, int] | None = None,
    size_px: tuple[int, int] | None = None,
    fps: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Source | EncodedSource:
    """Return the camera that `url` names, as it sends: encoded frames where it encodes, else pictures.

    Args:
        url: a video file, or `sim://SEED/CAMERA[?recording=0&batch=NAME&lighting=night&seconds=12&counter=1]`,
            `rtsp://[USER:PASSWORD@]HOST/PATH` or `rtsps://`, `v4l2:///dev/video0`, `picam://0`.
        camera_id: who films; a simulated camera has its own name.
        host_id: the machine that records.
        site: where it stands; a simulated camera has its own.
        allow: networks that an rtsp address may lead to although they are not public (see `address.py`).
        small_px: (width, height) of the trigger's pictures; None: it does not look, and nothing is decoded.
        size_px: (width, height) to ask a USB camera for.
        fps: frames a second to ask a USB camera for.
        options: more, by kind. Streams: `small` ("auto", "keyframes" or "all": what is decoded for the trigger), `small_fps`,
            `verify_tls`, `stall_s`, `reopen_s`. Pi cameras: see `picam.open_picam`.

    Raises:
        UsageError: none of these, a camera that is not there (the message says which are), an address that must not be used.
        MediaError: a file that is not a video.
        DeviceError: the camera does not answer.
    """
    scheme, found, rest = url.partition("://")
    scheme = scheme.lower()
    given = dict(options or {})
    if not found:
        return FileSource(Path(url), camera_id=camera_id, host_id=host_id)
    if scheme == "sim":
        if camera_id is not None:
            raise UsageError(f"source {url!r} is the camera it names; leave --camera {camera_id!r} out")
        return SimulatedSource(_plan(url))
    if scheme == "picam":
        from ingest.picam import open_picam

        return cast(EncodedSource, open_picam(url, camera_id=camera_id, host_id=host_id, options=given))
    if scheme not in ("rtsp", "rtsps", "v4l2"):
        raise UsageError(f"source {mask(url)[:80]!r} is not understood; legal: a video file, {', '.join(SCHEMES)}")
    from ingest.stream import open_rtsp, stream_options

    common = {"camera_id": camera_id, "host_id": host_id, "site": site, **stream_options(given, small_px, scheme)}
    if scheme == "v4l2":
        from ingest.usb import open_v4l2

        return open_v4l2(rest, size_px=size_px, fps=fps, **common)
    return open_rtsp(url, allow=allow, **common)


def open_source(
    url: str,
    *,
    camera_id: str | None = None,
    host_id: str = "host",
    allow: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Source:
    """Return the pictures of the camera that `url` names; an encoded stream is decoded.

    Args:
        url: as of `open_camera`.
        camera_id: who films; a simulated camera has its own name.
        host_id: the machine that records.
        allow: networks that an rtsp address may lead to although they are not public.
        options: more, by kind.

    Raises:
        UsageError: as `open_camera`.
        MediaError: a file that is not a video.
        DeviceError: the camera does not answer.
    """
    if url.lower().startswith("picam://"):
        from ingest.picam import open_picam

        return cast(Source, open_picam(url, camera_id=camera_id, host_id=host_id, pictures=True, options=options))
    return pictures(open_camera(url, camera_id=camera_id, host_id=host_id, allow=allow, options=options))


def pictures(source: Source | EncodedSource) -> Source:
    """Return the pictures of a camera: what sends encoded frames is decoded, all of it."""
    if not hasattr(source, "format"):
        return source
    from ingest.decoding import Pictures

    return Pictures(cast(EncodedSource, source))


def _plan(url: str) -> RecordingPlan:
    from infra.demo.truth import LIGHTINGS
    from infra.demo.world import PARTS, World

    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    name = parts.path.strip("/")
    unknown = sorted(set(options) - set(SIM_OPTIONS))
    if not re.fullmatch(r"\d+", parts.netloc) or not name or unknown:
        what = f"option {unknown[0]!r}" if unknown else "address"
        raise UsageError(f"source {url!r}: {what} is not understood; legal: sim://SEED/CAMERA?{'=..&'.join(SIM_OPTIONS)}=..")
    lighting = options.get("lighting")
    if lighting is not None and lighting not in LIGHTINGS:
        raise UsageError(f"source {url!r}: lighting {lighting!r}; legal: {', '.join(LIGHTINGS)}")
    try:
        number, seconds = int(options.get("recording", "0")), float(options.get("seconds", "12"))
    except ValueError as error:
        raise UsageError(f"source {url!r}: recording and seconds are numbers: {error}") from error
    if number < 0 or not 0 < seconds <= 3600:
        raise UsageError(f"source {url!r}: recording {number}, seconds {seconds:g}; legal: 0 or more, and (0, 3600]")
    world = World(int(parts.netloc))
    site = re.sub(r"\d+$", "", name.partition("-")[0])
    first: list[str] = []
    for part in PARTS:
        cameras = world.cameras(part, n_sites=8)
        first += [camera.camera_id for camera in cameras[:4]]
        if not cameras[0].site.startswith(site):
            continue
        for camera in cameras:
            if camera.camera_id == name:
                lightings = LIGHTINGS if lighting is None else (lighting,)
                return world.plan(
                    part, number + 1, batch=options.get("batch", "first"), cameras=(camera,), lightings=lightings,
                    duration_s=(seconds, seconds), counter=options.get("counter", "0") == "1",
                )[number]  # fmt: skip
    raise UsageError(f"source {url!r}: world {parts.netloc} has no camera {name!r}; it has {', '.join(first)}, ...")


def check_frame(before: Frame | None, frame: Frame) -> None:
    """Refuse a frame that does not come after the one before (encoded frames: in the order of decoding).

    Raises:
        DeviceError: time or number of the sensor stood still or went back.
    """
    if before is not None and (_order_ns(frame) <= _order_ns(before) or frame.frame_number <= before.frame_number):
        raise DeviceError(
            f"sensor time {frame.sensor_ns} ns of frame {frame.frame_number} does not come after "
            f"{before.sensor_ns} ns of frame {before.frame_number}; restart the camera"
        )


def _order_ns(frame: Frame) -> int:
    decode_ns = None if isinstance(frame, SourceFrame) else frame.decode_ns
    return frame.sensor_ns if decode_ns is None else decode_ns
