"""Demuxing, seeking and decoding of one clip, distrusting it: what `video.py` is built on. Use `infra.video` instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av

from infra.errors import MediaError
from infra.images import MAX_PIXELS, decode_image, is_roll, read_images, read_roll
from infra.picture import Converter, Picture
from infra.records import Index

MAX_FRAMES: Final = 500_000  # 4.6 hours at 30 frames a second; a clip is minutes
MAX_STREAMS: Final = 16
CONTAINERS: Final = {"mov": "mp4", "matroska": "mkv", "avi": "avi", "mpegts": "ts"}
"""FFmpeg's demuxer -> the container's name, which is also the suffix of a clip's key. Beside these: "tar"."""

_OPTIONS: Final = {
    "format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file",
    "max_streams": str(MAX_STREAMS), "max_pixels": str(MAX_PIXELS),
}
_Timed = tuple[int | None, Fraction, Any]
"""(pts, seconds per tick, av.VideoFrame)"""
SEEK_BACK_S: Final = (0, 2, 16, None)  # how far before the wanted time to seek, tried in turn; None: from the start


@dataclass(frozen=True, slots=True)
class Packet:
    """One coded picture, in the order of the file. pts, dts and duration are ticks, None (0) where there is none."""

    pts: int | None
    dts: int | None
    n_bytes: int
    is_keyframe: bool
    duration: int = 0
    is_corrupt: bool = False
    is_discard: bool = False


@contextmanager
def opened(path: Path, threads: int = 1, *, is_known: bool = False) -> Iterator[tuple[Any, Any]]:
    """Open a clip behind the whitelists and limits, and yield (container, its video stream).

    Args:
        path: the clip.
        threads: of the decoder.
        is_known: it was probed before, so that no picture need be decoded to find out what it is (20 ms at 1080p); what only
            a picture tells, such as the pixel format, is unknown until the first one.

    Raises:
        MediaError: not a clip, or over a limit; also for whatever FFmpeg raises inside the block.
    """
    try:
        unread: Any = [{"skip_frame": "all"}] * MAX_STREAMS if is_known else None  # while it looks for streams only
        with av.open(f"file:{path}", options=dict(_OPTIONS), stream_options=unread, metadata_errors="replace") as container:
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise MediaError(f"{path.name}: holds no video stream")
            stream = streams[0]
            if stream.codec_context is None:
                raise MediaError(f"{path.name}: its codec cannot be decoded here")
            width, height = stream.codec_context.width, stream.codec_context.height
            if not 0 < width * height <= MAX_PIXELS:
                raise MediaError(f"{path.name}: pictures of {width}x{height} px; legal: 1 to {MAX_PIXELS} pixels")
            stream.codec_context.thread_count = threads
            stream.codec_context.thread_type = "FRAME" if threads > 1 else "SLICE"
            yield container, stream
    except (av.error.FFmpegError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{path.name}: cannot be read as a clip ({', '.join(CONTAINERS.values())}, tar): {reason}") from error


def demux(container: Any, stream: Any, path: Path) -> Iterator[Packet]:
    """Yield the stream's packets that hold anything, in the order of the file."""
    n_found = 0
    for packet in container.demux(stream):
        if packet.size:
            n_found += 1
            if n_found > MAX_FRAMES:
                raise MediaError(f"{path.name}: more than {MAX_FRAMES} frames; cut it into clips")
            yield Packet(
                packet.pts, packet.dts, packet.size, packet.is_keyframe, packet.duration or 0,
                bool(packet.is_corrupt), bool(packet.is_discard),
            )


def decoded(container: Any, stream: Any, path: Path, n_packets: int | None = None) -> Iterator[Any]:
    """Yield av.VideoFrames in the decoder's output order, of the first `n_packets` packets or of all.

    Packets before the first frame that cannot be decoded are passed over: a recording may begin between keyframes.
    """
    n_fed = n_frames = 0
    context = stream.codec_context
    for packet in container.demux(stream):
        if n_packets is not None and n_fed == n_packets:
            break
        if not packet.size:
            continue
        n_fed += 1
        try:
            frames = context.decode(packet)
        except av.error.InvalidDataError:
            if n_frames:
                raise
            continue
        for frame in frames:
            n_frames += 1
            if n_frames > MAX_FRAMES:
                raise MediaError(f"{path.name}: more than {MAX_FRAMES} frames; cut it into clips")
            yield frame
    yield from context.decode(None)


def step_ticks(stream: Any) -> int:
    """Return the ticks of one frame at the rate that the container states, at least 1."""
    rate = stream.average_rate or stream.guessed_rate
    return max(1, round(1 / (rate * stream.time_base))) if rate else 1


def next_pts(previous: int | None, found: int | None, step: int) -> int:
    """Return the pts of a frame of a sequential clip: the decoded one if it is later than the last, else one step on."""
    if previous is None:
        return found or 0
    return found if found is not None and found > previous else previous + step


def pictures(
    path: Path | str, *, start_pts: int | None = None, end_pts: int | None = None, index: Index = "packets", threads: int = 1,
) -> Iterator[Picture]:
    """Yield the pictures with start_pts <= pts < end_pts in presentation order, each converted only when asked.

    Args:
        path: the clip.
        start_pts: ticks; with `index="packets"` it is sought, else decoding begins at the clip's start.
        end_pts: ticks; None: to the end.
        index: what `probe` found.
        threads: of the decoder; 0 leaves it to FFmpeg.

    Raises:
        MediaError: not a clip, damaged, its size changes midway, or its times are not what "packets" promises.
    """
    path = Path(path)
    converter, previous, size = Converter(), None, None
    found = _roll_pictures(path, start_pts) if is_roll(path) else _stream_pictures(path, start_pts, index, threads)
    for pts, time_base, frame in found:
        if pts is None or (previous is not None and pts <= previous):
            raise MediaError(f"{path.name}: pts {pts} after {previous}: decode it with index='sequential' (probe it again)")
        previous = pts
        if start_pts is not None and pts < start_pts:
            continue
        if end_pts is not None and pts >= end_pts:
            return
        picture = Picture(pts, time_base, frame, rotation_deg(frame, path), converter)
        if size is not None and picture.size_px != size:
            raise MediaError(f"{path.name}: changes from {size} to {picture.size_px} px at pts {pts}; a clip has one size")
        size = picture.size_px
        yield picture


def rotation_deg(frame: Any, path: Path) -> int:
    """Return how far to turn a frame counter-clockwise for showing it: 0, 90, 180 or 270.

    Raises:
        MediaError: another angle.
    """
    angle: int = round(frame.rotation) % 360
    if angle % 90:
        raise MediaError(f"{path.name}: turned by {angle} degrees; legal: 0, 90, 180, 270")
    return angle


def keyframe_times(path: Path) -> tuple[list[int], Fraction]:
    """Return (times of the keyframes that the container's own index names, sorted; seconds per tick). It may have none."""
    if is_roll(path):
        roll = read_roll(path)
        return [image.pts for image in roll.images], roll.time_base
    with opened(path) as (_, stream):
        return sorted(entry.timestamp for entry in stream.index_entries if entry.is_keyframe), stream.time_base


def _stream_pictures(path: Path, start_pts: int | None, index: Index, threads: int) -> Iterator[_Timed]:
    if index == "packets" and start_pts is not None:
        yield from _sought(path, start_pts, threads)
        return
    with opened(path, threads) as (container, stream):
        step, time_base, previous = step_ticks(stream), stream.time_base, None
        for frame in decoded(container, stream, path):
            pts = frame.pts
            if index == "sequential":
                pts = previous = next_pts(previous, pts, step)
            yield pts, time_base, frame


def _sought(path: Path, start_pts: int, threads: int) -> Iterator[_Timed]:
    """Yield frames from one at or before `start_pts` on (or from the first frame, when there is none).

    Demuxers seek by decode time and land late now and then; then it is tried from further back, at last from the start.
    """
    for back_s in SEEK_BACK_S:
        with opened(path, threads) as (container, stream):
            time_base = stream.time_base
            is_from_start = back_s is None or (stream.start_time is not None and start_pts <= stream.start_time)
            if not is_from_start:
                try:
                    container.seek(start_pts - round((back_s or 0) / time_base), stream=stream)
                except av.error.FFmpegError:
                    continue
            frames = decoded(container, stream, path)
            first = next(frames, None)
            if is_from_start or (first is not None and first.pts is not None and first.pts <= start_pts):
                if first is not None:
                    yield first.pts, time_base, first
                for frame in frames:
                    yield frame.pts, time_base, frame
                return


def _roll_pictures(path: Path, start_pts: int | None) -> Iterator[_Timed]:
    roll = read_roll(path)
    for image, data in read_images(path, [i for i in roll.images if start_pts is None or i.pts >= start_pts]):
        yield image.pts, roll.time_base, decode_image(data, f"{path.name}/{image.name}")
