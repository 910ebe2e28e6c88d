"""Clips in and frames out: the only decoder and the only resizer, for training and for the Pi alike.

Workflow: `probe` once when a clip arrives (its truth goes into the table `clips`), then `decode` with the `index` that
probe found. av and numpy only. The parts stand beside this file and are re-exported here: demuxing, seeking and limits in
`reader.py`, chosen GOPs in `gops.py`, pictures and resizing in `picture.py`, clips made of images in `images.py`, cut files
in `boxes.py`, the encoder in `writer.py`.

**Timestamps.** Containers lie: wrong counts, decode order sold as presentation order, packets without pictures. `probe`
therefore demuxes every packet, and believes the packets' times only if
  * the container stores presentation times (mp4, mkv), every packet has one, none comes twice, none is marked as
    damaged or to be discarded, the first is a keyframe, and
  * the first 32 packets, decoded, give exactly these times.
Otherwise (always for avi and ts) the whole clip is decoded. If the decoded times then equal the packets' times, the clip
is `index="packets"`: frames are found by seeking. If not it is `index="sequential"`: always decoded from its start, and
frame k gets its decoded pts where that is later than the pts of frame k-1, else the pts of frame k-1 plus one step
(a step = ticks of one frame at the container's rate, at least 1; a first frame without pts gets 0). The rule only looks
back, so that a stream needs no second pass. The order of the pictures is always the decoder's.

**Untrusted input.** Only four demuxers and the file protocol may be used, so a playlist named .mp4 reaches nothing.
Sizes, streams and counts have limits. A decoder can still crash or hang: untrusted clips go through `decoder.py`.
"""

from __future__ import annotations

import bisect
import datetime
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from statistics import median_low
from typing import Final

import numpy as np
import numpy.typing as npt

from infra.boxes import complete_bytes, missing_bytes
from infra.errors import MediaError, UsageError
from infra.gops import Gops, open_gops
from infra.images import CODECS, RAW_CODEC, decode_image, is_roll, pack_images, read_images, read_roll, read_vectors
from infra.picture import Frames, Picture, Rgb, fit, letterbox, place, resize, within
from infra.reader import (
    CONTAINERS,
    Packet,
    decoded,
    demux,
    keyframe_times,
    next_pts,
    opened,
    pictures,
    rotation_deg,
    step_ticks,
)
from infra.records import Index
from infra.writer import Writer

__all__ = [
    "CONTAINERS", "Frames", "Gops", "Grid", "Packet", "Picture", "Probe", "Rgb", "Writer", "complete_bytes", "decode", "fit",
    "letterbox", "open_gops", "pack_images", "packets", "pictures", "place", "probe", "recorded_pts", "resize",
    "within",
]

SPOT_PACKETS: Final = 32  # decoded by probe to check the packets' word
JUMP_S: Final = 1.0  # wanted frames further apart than this, with a keyframe between them, are worth a new seek


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The truth about a clip. [first_pts, end_pts) is half-open, in ticks of `time_base` seconds.

    `width_px` and `height_px` are those of a decoded frame, after the rotation; `rotation_deg` is counter-clockwise.
    `end_pts` is the last pts plus the last packet's duration, or plus the median distance of frames where it has none.
    `start_ns` is the container's creation time (UTC), None if absent; many cameras write the end of a recording there.
    `average_rate` is counted, not read: frames a second over the distances of frames, None for a single frame.
    """

    container: str
    codec: str
    width_px: int
    height_px: int
    rotation_deg: int
    time_base: Fraction
    n_frames: int
    first_pts: int
    end_pts: int
    index: Index
    has_b_frames: bool
    start_ns: int | None
    average_rate: Fraction | None


def packets(path: Path | str) -> Iterator[Packet]:
    """Yield the packets of the clip's video stream in decode order, without decoding; empty ones are left out.

    Raises:
        MediaError: not a clip, or over a limit.
    """
    path = Path(path)
    if is_roll(path):
        yield from (Packet(i.pts, i.pts, i.n_bytes, True, i.duration) for i in read_roll(path).images)
        return
    with opened(path) as (container, stream):
        yield from demux(container, stream, path)


def probe(path: Path | str) -> Probe:
    """Return the truth about a clip: demuxes all of it, decodes as much as it takes (see the module's docstring).

    Raises:
        MediaError: not a clip, cut off, without pictures, or over a limit.
    """
    path = Path(path)
    if is_roll(path):
        return _probe_roll(path)
    with opened(path) as (container, stream):
        kind = CONTAINERS[container.format.name.split(",")[0]]
        found = list(demux(container, stream, path))
        time_base: Fraction = stream.time_base
        codec, step = stream.codec_context.name, step_ticks(stream)
        start_ns = _utc_ns(stream.metadata.get("creation_time") or container.metadata.get("creation_time"))
    n_missing = missing_bytes(path)
    if n_missing or (kind != "ts" and any(p.is_corrupt for p in found)):
        raise MediaError(f"{path.name}: cut off after {len(found)} packets ({n_missing} bytes missing); fetch it again")
    with opened(path) as (container, stream):
        frames = decoded(container, stream, path, SPOT_PACKETS)
        spot = [(frame.pts, Picture(0, time_base, frame, rotation_deg(frame, path))) for frame in frames]
    if not spot:
        raise MediaError(f"{path.name}: none of its first packets ({len(found)} in all) can be decoded")
    times, index = _times(path, kind, found, [pts for pts, _ in spot], step)
    deltas = [b - a for a, b in itertools.pairwise(times)]
    duration = max((p.duration for p in found if p.pts == times[-1]), default=0) if index == "packets" else step
    first = spot[0][1]
    in_file = [p.pts for p in found if p.pts is not None]
    return Probe(
        container=kind, codec=codec, width_px=first.size_px[0], height_px=first.size_px[1], rotation_deg=first.rotation_deg,
        time_base=time_base, n_frames=len(times), first_pts=times[0],
        end_pts=times[-1] + (duration or (median_low(deltas) if deltas else step)), index=index,
        has_b_frames=in_file != sorted(in_file), start_ns=start_ns,
        average_rate=Fraction(len(deltas)) / ((times[-1] - times[0]) * time_base) if deltas else None,
    )


def recorded_pts(path: Path | str, busy: Callable[[], None] = lambda: None) -> list[int]:
    """Return the pts of what was recorded, in order: of the frames, or of the vectors of a clip of features.

    `busy` is called often while a clip of images is read.

    Raises:
        MediaError: not a clip, or damaged.
    """
    path = Path(path)
    if is_roll(path):
        roll = read_roll(path, busy)
        if roll.kind == "features":
            return [at for pts, _ in read_vectors(path, roll) for at in pts]
        return sorted(image.pts for image in roll.images)
    return sorted(packet.pts for packet in packets(path) if packet.pts is not None)


def decode(
    path: Path | str, *, start_pts: int | None = None, end_pts: int | None = None, size_px: tuple[int, int] | None = None,
    every_s: float | None = None, pts: Sequence[int] | None = None, index: Index = "packets", batch: int = 32, threads: int = 1,
) -> Iterator[Frames]:
    """Yield the clip's frames in presentation order, `batch` at a time, turned as the container says.

    Args:
        path: the clip.
        start_pts: first tick wanted; None: from the start.
        end_pts: first tick no longer wanted; None: to the end.
        size_px: (width, height) to resize to, after the rotation; None: as stored.
        every_s: keep only the first frame at or after each multiple of so many seconds (see `Grid`).
        pts: keep exactly these frames, whatever their order here; not together with the three above.
        index: what `probe` found; "packets" lets it seek, "sequential" does not.
        batch: frames in one `Frames`, the last may hold fewer.
        threads: of the decoder; 0 leaves it to FFmpeg.

    Raises:
        MediaError: not a clip, damaged, or without a frame at one of `pts`.
        UsageError: arguments that exclude each other.
    """
    path = Path(path)
    if batch < 1 or (pts is not None and (start_pts, end_pts, every_s) != (None, None, None)):
        raise UsageError(f"decode: batch {batch}, pts and a range or every_s; legal: batch >= 1, and pts alone")
    if pts is not None:
        chosen = _at(path, sorted(set(pts)), index, threads)
    else:
        chosen = pictures(path, start_pts=start_pts, end_pts=end_pts, index=index, threads=threads)
        if every_s is not None:
            chosen = _on_grid(chosen, every_s, start_pts)
    yield from _batched(chosen, size_px, batch)


class Grid:
    """Says which frames are the first at or after a multiple of `every_s` seconds of the clip's own time, pts 0 = 0 s.

    The clip's first frame is always kept, as the first after all earlier multiples; with `start_pts` only multiples from
    there on count. A frame that serves several multiples (after a gap) is kept once. Feed pts in order.

    Args:
        every_s: distance of the multiples in seconds, above 0.
        time_base: seconds per tick.
        start_pts: ticks, or None for the clip's start.
    """

    def __init__(self, every_s: float, time_base: Fraction, start_pts: int | None = None) -> None:
        if not 0 < every_s < float("inf"):
            raise UsageError(f"every_s {every_s}; legal: a positive number of seconds")
        self._per_tick = time_base / Fraction(every_s).limit_denominator(1_000_000)
        self._cell = None if start_pts is None else ceil(start_pts * self._per_tick) - 1

    def is_due(self, pts: int) -> bool:
        """Say whether the frame is kept; it becomes the previous one."""
        cell = floor(pts * self._per_tick)
        is_due = self._cell is None or cell > self._cell
        self._cell = cell if self._cell is None else max(cell, self._cell)
        return is_due


def _times(path: Path, kind: str, found: Sequence[Packet], spot: Sequence[int | None], step: int) -> tuple[list[int], Index]:
    """Return the pts of all frames and how the clip is to be read; decodes all of it where the packets are not believed."""
    times = sorted(p.pts for p in found if p.pts is not None)
    is_whole = len(times) == len(found) == len(set(times))
    is_sound = found[0].is_keyframe and not any(p.is_corrupt or p.is_discard for p in found)
    in_spot = sorted(p.pts for p in found[:SPOT_PACKETS] if p.pts is not None)
    if kind in ("mp4", "mkv") and is_whole and is_sound and list(spot) == in_spot:
        return times, "packets"
    with opened(path) as (container, stream):
        raw = [frame.pts for frame in decoded(container, stream, path)]
    if is_whole and raw == times:
        return times, "packets"
    repaired: list[int] = []
    for pts in raw:
        repaired.append(next_pts(repaired[-1] if repaired else None, pts, step))
    return repaired, "sequential"


def _probe_roll(path: Path) -> Probe:
    roll = read_roll(path)
    image, data = next(read_images(path, roll.images[:1]))
    frame = decode_image(data, f"{path.name}/{image.name}")
    first, last = Picture(image.pts, roll.time_base, frame, rotation_deg(frame, path)), roll.images[-1]
    span = last.pts * roll.time_base
    end_pts = last.pts + last.duration
    if roll.kind == "features":  # vectors go on behind the last thumbnail
        times = recorded_pts(path) or [image.pts]
        end_pts = max(end_pts, times[-1] + median_low([b - a for a, b in itertools.pairwise(times)] or [1]))
    codec = RAW_CODEC if roll.kind == "raw" else CODECS[Path(image.name).suffix.lower()]
    return Probe(
        container="tar", codec=codec, width_px=first.size_px[0],
        height_px=first.size_px[1], rotation_deg=first.rotation_deg, time_base=roll.time_base, n_frames=len(roll.images),
        first_pts=image.pts, end_pts=end_pts, index="packets", has_b_frames=False, start_ns=roll.start_ns,
        average_rate=Fraction(len(roll.images) - 1) / span if span else None,
    )


def _on_grid(found: Iterable[Picture], every_s: float, start_pts: int | None) -> Iterator[Picture]:
    grid: Grid | None = None
    for picture in found:
        grid = grid or Grid(every_s, picture.time_base, start_pts)
        if grid.is_due(picture.pts):
            yield picture


def _at(path: Path, wanted: Sequence[int], index: Index, threads: int) -> Iterator[Picture]:
    """Yield the pictures at exactly these sorted times, seeking where a keyframe lies in a long way between two of them."""
    for run in _runs(path, wanted, index):
        left = iter(run)
        due = next(left)
        for picture in pictures(path, start_pts=run[0], index=index, threads=threads):
            if picture.pts > due:
                break
            if picture.pts == due:
                yield picture
                if (following := next(left, None)) is None:
                    break
                due = following
        else:
            raise MediaError(f"{path.name}: ends before pts {due}")
        if picture.pts != due:
            raise MediaError(f"{path.name}: no frame at pts {due}; the next one is at {picture.pts}")


def _runs(path: Path, wanted: Sequence[int], index: Index) -> Iterator[list[int]]:
    """Cut sorted times into runs, each to be decoded in one go."""
    if not wanted:
        return
    keys, time_base = keyframe_times(path) if index == "packets" and len(wanted) > 1 else ([], Fraction(1))
    run = [wanted[0]]
    for a, b in itertools.pairwise(wanted):
        has_key = bisect.bisect_right(keys, b) > bisect.bisect_right(keys, a)
        if has_key and (b - a) * time_base > JUMP_S:
            yield run
            run = []
        run.append(b)
    yield run


def _batched(chosen: Iterable[Picture], size_px: tuple[int, int] | None, batch: int) -> Iterator[Frames]:
    arrays: list[npt.NDArray[np.uint8]] = []
    rgb, pts = np.empty((0, 0, 0, 3), np.uint8), np.empty(batch, np.int64)
    n, time_base = 0, Fraction(1)
    for picture in chosen:
        if n == 0:
            width, height = size_px or picture.size_px
            rgb, pts = _free_array(arrays, (batch, height, width, 3)), np.empty(batch, np.int64)
        rgb[n] = picture.rgb(size_px)
        pts[n], time_base, n = picture.pts, picture.time_base, n + 1
        if n == batch:
            yield Frames(rgb, pts, time_base)
            n = 0
    if n:
        yield Frames(rgb[:n], pts[:n], time_base)


def _free_array(arrays: list[npt.NDArray[np.uint8]], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return one of the arrays that nobody else holds any more, or a new one; at most three are kept.

    Fresh memory costs page faults, a fifth of the time of a 720p decode. Frames that a caller keeps (also as a view or a
    tensor) hold their array, which is then never written again.
    """
    for array in arrays:
        if sys.getrefcount(array) == 3:  # the list, this loop, the call
            return array
    array = np.empty(shape, np.uint8)
    if len(arrays) < 3:
        arrays.append(array)
    return array


def _utc_ns(text: str | None) -> int | None:
    """Return an ISO time as UTC nanoseconds; None when absent, unreadable or a zero date of 1904 or 1970."""
    try:
        moment = datetime.datetime.fromisoformat(text or "")
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    whole = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    ns = (whole.days * 86_400 + whole.seconds) * 1_000_000_000 + whole.microseconds * 1_000
    return ns if ns > 86_400 * 1_000_000_000 else None
