"""`camloop record`: films into a spool. Sources, or a name and seconds, or a camera of `camloop.toml` (what an agent starts).

    camloop record day1.mp4 --spool spool            each source to its end
    camloop record day1 -1                           the first Pi camera, until Ctrl-C, as recording `day1`
    camloop record day1/light 60 --source v4l2:///dev/video0 --as png --size 128x128
                                                     a minute of class `light` of recording `day1`
    camloop record --camera-table yard               the [[camera]] of that id, with its trigger and privacy
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from infra.console import Context
from infra.errors import DeviceError, MissingExtra, UsageError
from infra.keys import check_name
from infra.log import mask
from infra.records import Gap, Sidecar
from infra.settings import read_table
from ingest.config import DEFAULT_SPOOL

if TYPE_CHECKING:
    from ingest.features import Extractor
    from ingest.privacy import PrivacySettings
    from ingest.recording import Wish
    from ingest.source import EncodedSource, Frame, Source
    from ingest.spool import Spool
    from ingest.take import Stop
    from ingest.watchdog import Heartbeat

COUNTDOWN_S = 3
_SHOWN = 20
_DEVICES = Path("/dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One camera and what is wanted of it."""

    url: str
    camera_id: str | None
    wish: Wish
    table_id: str | None = None
    allow: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def record(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop record`."""
    what = "video files, sim://SEED/CAMERA?.., rtsp://.., v4l2:///dev/.., picam://0; or NAME SECONDS: a recording's name " \
           "(day1, or day1/light with its class) and how long (-1: until Ctrl-C)"  # fmt: skip
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=what)
    parser.add_argument("--source", metavar="URL", help="what films with NAME SECONDS (default: the first Pi camera)")
    parser.add_argument("--camera-table", metavar="ID", help="film the [[camera]] of this id in camloop.toml")
    parser.add_argument("--spool", type=Path, default=DEFAULT_SPOOL, help="finished clips (default: ./camloop-spool)")
    parser.add_argument("--camera", metavar="ID", help="who films (default: the file's name, the host's with a number)")
    parser.add_argument("--label", metavar="CLASS", help="what is being shown, said by the person who films")
    parser.add_argument("--segment-s", type=float, default=60.0, metavar="S", help="a new file every S seconds (default: 60)")
    parser.add_argument("--frames", type=int, metavar="N", help="stop each source after N frames")
    how = parser.add_argument_group("how it is written")
    how.add_argument("--as", dest="kind", default="h264", metavar="FORMAT", help="h264 (default), png, jpeg, raw, features")
    how.add_argument("--size", metavar="WxH", help="pixels, such as 128x128 (default: the camera's own)")
    how.add_argument("--fps", type=float, metavar="N", help="frames a second (default: as they come)")
    how.add_argument("--every-s", type=float, metavar="S", help="a frame every S seconds, instead of --fps")
    how.add_argument("--extractor", type=Path, metavar="ONNX", help="of --as features: takes uint8 (1, H, W, 3)")
    how.add_argument("--thumbnail-s", type=float, default=60.0, metavar="S", help="a picture beside features every S seconds")
    training = "Pi camera: settle, lock exposure and white balance; jitter (default): also vary both from frame to frame"
    how.add_argument("--training-mode", nargs="?", choices=["lock", "jitter"], const="jitter", help=training)
    how.add_argument("--buffer", choices=["ram"], help="film into memory first, write afterwards")
    how.add_argument("--buffer-bytes", type=int, metavar="N", help="cap of that memory (default: half of what is free)")
    how.add_argument("--countdown", type=int, metavar="S", help=f"seconds before NAME SECONDS begins ({COUNTDOWN_S})")
    how.add_argument("--heartbeat-fd", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(run=_record)


def _record(arguments: argparse.Namespace, context: Context) -> int:
    from ingest.policy import SpoolLimits
    from ingest.recording import open_for
    from ingest.spool import Spool
    from ingest.take import Stop
    from ingest.watchdog import Heartbeat

    jobs, countdown_s = _jobs(arguments, context)
    host_id, settings = context.settings.host_id, context.settings
    limits = read_table(SpoolLimits, settings.toml.get("spool", {}), settings.where("spool"))
    stop, heartbeat = Stop(), Heartbeat(arguments.heartbeat_fd, context.clock)
    with stop.on_signals():
        cameras = []
        for job in jobs:
            camera = open_for(job.wish, job.url, camera_id=job.camera_id, host_id=host_id, allow=job.allow, options=job.options)
            camera.camera_id = job.table_id or camera.camera_id
            cameras.append(camera)
        with Spool(arguments.spool, context.clock, limits=limits, host_id=host_id) as spool:
            takes = _Takes(context, spool, stop, heartbeat)
            for job, camera in zip(jobs, cameras, strict=True):
                if takes.count_down(countdown_s, camera.camera_id):
                    takes.film(job.wish, camera)
            takes.report(arguments.spool, spool.counts().get("pending", 0))
    return 0


class _Takes:
    """Films one camera after the other and tells what it came to."""

    def __init__(self, context: Context, spool: Spool, stop: Stop, heartbeat: Heartbeat) -> None:
        self._context, self._spool, self._stop, self._heartbeat = context, spool, stop, heartbeat
        self._terminal = sys.stderr if context.out.bars else None
        self._rows: list[tuple[object, ...]] = []
        self._documents: list[dict[str, Any]] = []
        self._gaps: list[tuple[str, str, Gap]] = []

    def count_down(self, seconds: int, name: str) -> bool:
        """Wait `seconds`, aloud; return whether filming is still wanted."""
        from ingest.status_line import Progress, StatusLine

        line = StatusLine(self._terminal, self._context.clock, name, Progress())
        for left in range(seconds, 0, -1):
            if self._stop.is_asked:
                break
            line.say(f"{name} in {left} ...")
            self._context.clock.sleep_s(1)
        return not self._stop.is_asked

    def film(self, wish: Wish, camera: Source | EncodedSource) -> None:
        """Record one camera, with the status line on a terminal."""
        from ingest.policy import value
        from ingest.recording import record
        from ingest.status_line import Progress, StatusLine

        if wish.extractor is not None and wish.recording is not None:
            from ingest.features import claim

            claim(self._spool.folder, wish.recording, wish.extractor)
        progress = Progress()
        name = "/".join(part for part in (wish.recording, wish.label) if part) or camera.camera_id
        line = StatusLine(self._terminal, self._context.clock, name, progress, self._open_bytes)

        def see(frame: Frame) -> None:
            progress.see(frame)
            line.update()

        def clip_done(sidecar: Sidecar) -> None:
            self._heartbeat.n_clips += 1
            progress.add(sidecar)

        try:
            made = record(
                camera, self._spool, wish, stop=self._stop, clock=self._context.clock, heartbeat=self._heartbeat, see=see,
                on_clip=clip_done, on_full=self._context.out.note, value=value,
            )  # fmt: skip
        finally:
            line.close()
        clips = (made.n_clips, made.n_refused, made.n_duplicates)
        shown = (made.n_frames, made.n_dropped, made.n_bytes, progress.fps, progress.mb_per_hour())
        self._rows.append((camera.camera_id, *clips, *shown))
        self._gaps += [(camera.camera_id, clip_id, gap) for clip_id, gap in progress.gaps]
        gaps = [{"clip_id": clip_id, **dataclasses.asdict(gap)} for clip_id, gap in progress.gaps]
        facts = {"seconds": progress.seconds, "fps": progress.fps, "mb_per_hour": progress.mb_per_hour(), "gaps": gaps}
        self._documents.append({"camera_id": camera.camera_id, **dataclasses.asdict(made), **facts})

    def report(self, folder: Path, n_waiting: int) -> None:
        """Print what was recorded, and the gaps."""
        out = self._context.out
        columns = ["camera", "clips", "refused", "known", "frames", "dropped", "bytes", "frames/s", "MB/h"]
        out.table(f"recorded into {folder}", columns, self._rows)
        for camera_id, clip_id, gap in self._gaps[:_SHOWN]:
            lost = f"{gap.n_missing} frames lost" if gap.n_missing else "a break"
            where = f"before frame {gap.before_frame} of {camera_id} {clip_id[:8]}"
            out.line(f"  gap: {lost} ({gap.duration_ns / 1e9:.3f} s) {where}: {gap.cause}")
        if len(self._gaps) > _SHOWN:
            out.line(f"  and {len(self._gaps) - _SHOWN} more gaps (--json shows all; each stands in its clip's sidecar)")
        out.line(f"{n_waiting} clips wait in {folder}: camloop upload {folder}")
        out.document({"spool": str(folder), "recorded": self._documents, "pending": n_waiting})

    def _open_bytes(self) -> int:
        """Return the size of what is being written."""
        n_bytes = 0
        for path in self._spool.recording.glob(".tmp-*"):
            with suppress(FileNotFoundError):
                n_bytes += path.stat().st_size
        return n_bytes


def _jobs(arguments: argparse.Namespace, context: Context) -> tuple[list[_Job], int]:
    """Return what is to be filmed and how many seconds to count down; refuse what does not fit together."""
    if arguments.frames is not None and arguments.frames < 1:
        raise UsageError(f"--frames {arguments.frames}; legal: 1 or more")
    countdown_s = arguments.countdown
    if countdown_s is not None and not 0 <= countdown_s <= 60:
        raise UsageError(f"--countdown {countdown_s}; legal: 0 to 60 seconds")
    sources = arguments.sources
    if arguments.camera_table is not None:
        if sources or arguments.source:
            raise UsageError("--camera-table ID says what is filmed; leave SOURCE and --source out")
        return [_from_table(arguments, context)], 0
    if not _is_named(sources):
        if arguments.source is not None:
            raise UsageError("--source URL goes with NAME SECONDS, such as: camloop record day1 60 --source picam://0")
        if not sources:
            raise UsageError("nothing to film: give video files or addresses, NAME SECONDS, or --camera-table ID")
        for source in sources:
            if "://" not in source and any(len(os.fsencode(part)) > 255 for part in Path(source).parts):
                raise UsageError(f"source {source[:80]!r}...: no file name has more than 255 bytes")
        wish = _wish(arguments, context)
        return [_of_address(url, wish, arguments, context) for url in sources], 0
    name, seconds = sources
    recording, slash, label = name.partition("/")
    check_name(recording, "recording")
    if slash:
        if arguments.label is not None:
            raise UsageError(f"{name} --label {arguments.label}: the class is said twice")
        check_name(label, "class")
    url = arguments.source if arguments.source is not None else _first_camera()
    wish = _wish(arguments, context, recording=recording, label=label or arguments.label, seconds=_seconds(seconds))
    return [_of_address(url, wish, arguments, context)], COUNTDOWN_S if countdown_s is None else countdown_s


def _is_named(sources: Sequence[str]) -> bool:
    """Say whether these are NAME SECONDS."""
    if len(sources) != 2 or any("://" in source or Path(source[:255]).is_file() for source in sources):
        return False
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", sources[1]) is not None


def _seconds(text: str) -> float | None:
    seconds = float(text)
    if seconds == -1:
        return None
    if not 0 < seconds <= 10_000_000:
        raise UsageError(f"{text[:40]} seconds; legal: more than 0, or -1 for until Ctrl-C")
    return seconds


def _wish(
    arguments: argparse.Namespace,
    context: Context,
    *,
    recording: str | None = None,
    label: str | None = None,
    seconds: float | None = None,
) -> Wish:
    """Return what the command's options ask for."""
    from ingest.recording import FORMATS, Wish

    if arguments.kind not in FORMATS:
        raise UsageError(f"--as {arguments.kind[:40]}; legal: {', '.join(FORMATS)}")
    if arguments.fps is not None and arguments.every_s is not None:
        raise UsageError("--fps and --every-s both say the rate; give one of them")
    fps = arguments.fps if arguments.every_s is None else 1 / arguments.every_s if arguments.every_s > 0 else -1.0
    if fps is not None and not 0 < fps <= 1000:
        raise UsageError("--fps or --every-s is not a rate; legal: more than 0 and at most 1000 frames a second")
    if not 0 < arguments.thumbnail_s <= 86_400:
        raise UsageError(f"--thumbnail-s {arguments.thumbnail_s:g}; legal: more than 0, at most 86400 seconds")
    if arguments.buffer_bytes is not None and arguments.buffer is None:
        raise UsageError("--buffer-bytes is the cap of --buffer ram; say both")
    buffer_bytes = None
    if arguments.buffer is not None:
        from ingest.memory import checked_cap

        buffer_bytes = checked_cap(arguments.buffer_bytes)
    return Wish(
        kind=arguments.kind, size_px=_size(arguments.size), fps=fps, seconds=seconds, n_frames=arguments.frames,
        segment_s=arguments.segment_s, label=label if recording is not None else arguments.label, recording=recording,
        buffer_bytes=buffer_bytes, extractor=_extractor(arguments.kind, arguments.extractor),
        thumbnail_s=arguments.thumbnail_s,
    )  # fmt: skip


def _of_address(url: str, wish: Wish, arguments: argparse.Namespace, context: Context) -> _Job:
    """Return the camera of an address, with what camloop.toml says must be hidden of that device."""
    from ingest.hidden import privacy_of

    holds = privacy_of(url, context.settings, arguments.camera)
    if len(holds) > 1:
        raise UsageError(f"{mask(url)[:80]}: several [[camera]] of this device hide different things; say --camera-table ID")
    wish = dataclasses.replace(wish, privacy=holds[0] if holds else None)
    return _Job(url=url, camera_id=arguments.camera, wish=wish, options=_options(arguments, url))


def _from_table(arguments: argparse.Namespace, context: Context) -> _Job:
    """Return the camera of a `[[camera]]` table."""
    from ingest.config import agent_config, camera_config
    from ingest.recording import Wish
    from ingest.trigger import TriggerSettings

    camera, agent = camera_config(context.settings, arguments.camera_table), agent_config(context.settings)
    url = camera.url.removeprefix("file://")
    options = dict(camera.options) | ({"training": True} if camera.training else {})
    if camera.training and not url.startswith("picam://"):
        raise UsageError(f"[[camera]] {camera.id}: training is a Pi camera's mode; {camera.shown_url} is none")
    wish = Wish(
        kind=camera.format, size_px=camera.size, fps=camera.fps, n_frames=arguments.frames, segment_s=camera.segment_s,
        max_segment_bytes=camera.max_segment_bytes, follows_uplink=not camera.ends, label=camera.label, site=camera.site,
        realtime=camera.realtime,
        extractor=_extractor(camera.format, camera.features),
        trigger=TriggerSettings.from_table(camera.trigger, f"[[camera]] {camera.id}: trigger") if camera.trigger else None,
        privacy=_privacy(camera.privacy, context), latitude=agent.latitude, longitude=agent.longitude,
    )  # fmt: skip
    is_simulated = url.startswith("sim://")
    return _Job(
        url=url, camera_id=None if is_simulated else camera.id, table_id=camera.id, wish=wish, allow=camera.allow,
        options=options,
    )  # fmt: skip


def _privacy(table: object, context: Context) -> PrivacySettings | None:
    """Return what is to be hidden; a table that is there and hides nothing is none."""
    if not table:
        return None
    from ingest.privacy import PrivacySettings

    return read_table(PrivacySettings, cast("Mapping[str, Any]", table), context.settings.where("privacy"))


def _extractor(kind: str, path: Path | None) -> Extractor | None:
    """Open the extractor of features."""
    if kind != "features":
        if path is not None:
            raise UsageError(f"extractor {str(path)[:80]} with {kind}; it goes with the format features only")
        return None
    if path is None:
        raise UsageError("features need an extractor: --as features --extractor MODEL.onnx")
    from ingest.features import Extractor

    return Extractor(path)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None or not all(16 <= int(side) <= 16384 for side in match.groups()):
        raise UsageError(f"--size {text[:40]}; legal: WIDTHxHEIGHT in pixels, each 16 to 16384, such as 128x128")
    return int(match[1]), int(match[2])


def _options(arguments: argparse.Namespace, url: str) -> Mapping[str, Any]:
    if arguments.training_mode is None:
        return {}
    if not url.startswith("picam://"):
        raise UsageError(f"--training-mode locks a Pi camera's exposure; {mask(url)[:80]} is none, leave it out")
    return {"training": arguments.training_mode}


def _first_camera() -> str:
    """Return the address of the first Pi camera.

    Raises:
        UsageError: there is none; the message says what there is.
    """
    from ingest.picam import available_cameras

    try:
        pi_cameras = available_cameras()
        why = "libcamera finds none"
    except (MissingExtra, DeviceError):
        pi_cameras, why = (), "there is no picamera2 here"
    if pi_cameras:
        return "picam://0"
    usb = ", ".join(f"v4l2://{path}" for path in sorted(_DEVICES.glob("video*"))) or "no /dev/video*"
    raise UsageError(
        f"no Pi camera ({why}); there is: {usb}; say --source URL (a file, rtsp://.., v4l2:///dev/video0, sim://..)"
    )
