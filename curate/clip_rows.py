"""One row of `clips` from what is known about an arrival: its bytes, its probe, its sidecar, its camera.

Nothing here writes to a store; `register` decides what becomes of a row.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from curate import arrivals, capture_time
from curate.arrivals import Arrival
from infra import images, keys, video
from infra.errors import ArtefactError
from infra.records import CameraRow, Clip, ClockQuality, Sidecar
from infra.video import Probe

_SHA256 = re.compile(r"[0-9a-f]{64}")


def make(
    arrival: Arrival, path: Path, found: Probe, *, sha256: str, group: str | None, rows: Sequence[CameraRow], key: str | None
) -> Clip:
    """Return the clip that an arrival is.

    Args:
        arrival: where it came from; its sidecar is believed (`verify` it before).
        path: a file with the bytes.
        found: the probe of that file.
        sha256: of the bytes.
        group: `source_group`.
        rows: the camera's rows in force, at least one.
        key: where the bytes lie in the store already, or None: they will be put under `keys.clip_key`.
    """
    sidecar, clip_id = arrival.sidecar, keys.clip_id(sha256)
    start_ns, clock = start(arrival, path, found, rows)
    row = capture_time.valid_row(rows, start_ns)
    recorded = ("host_id", "boot_id", "seq", "start_mono_ns")
    own: dict[str, Any] = {} if sidecar is None else {name: getattr(sidecar, name) for name in recorded}
    return Clip(
        clip_id=clip_id,
        key=key or keys.clip_key(arrival.camera_id, clip_id, found.container),
        source_name=arrival.source_name,
        container=found.container,
        camera_id=arrival.camera_id,
        recording_id=sidecar.recording_id if sidecar else clip_id,
        site=(sidecar.site if sidecar else None) or row.site,
        day=None if start_ns is None else capture_time.local_day(start_ns, row.time_zone),
        source_group=group,
        start_ns=start_ns,
        clock=clock,
        time_base_num=found.time_base.numerator,
        time_base_den=found.time_base.denominator,
        first_pts=found.first_pts,
        end_pts=found.end_pts,
        n_frames=found.n_frames,
        width_px=found.width_px,
        height_px=found.height_px,
        codec=found.codec,
        rotation_deg=found.rotation_deg,
        index=found.index,
        n_dropped=sum(gap.n_missing for gap in sidecar.gaps) if sidecar else 0,
        n_bytes=path.stat().st_size,
        sha256=sha256,
        **own,
    )


def start(arrival: Arrival, path: Path, found: Probe, rows: Sequence[CameraRow]) -> tuple[int | None, ClockQuality]:
    """Return the UTC nanoseconds of the first frame and what they rest on; see `capture_time` for the order."""
    if arrival.sidecar is not None:
        return arrival.sidecar.start_ns, arrival.sidecar.clock
    attributes = rows[-1].attributes
    pattern, is_utc = attributes.get("time_pattern"), attributes.get("container_time") == "utc"
    is_roll = found.container == arrivals.TAR
    names = [arrival.source_name]
    if is_roll:
        names.append(f"{arrival.source_name}/{images.read_roll(path).images[0].name}")
    when = _first(capture_time.from_name(name, [pattern]) for name in names) if pattern is not None else None
    when = when or capture_time.from_container(found.start_ns, "utc" if is_utc else "local")
    when = when or (_exif_of_first(path) if is_roll else None)
    when = when or _first(capture_time.from_name(name) for name in names)
    return (None, "unknown") if when is None else (capture_time.true_start_ns(when, rows), "file")


def verify(arrival: Arrival, sha256: str) -> None:
    """Refuse bytes that are not what their name or sidecar says.

    Raises:
        ArtefactError: they are not; the object stays untrusted.
    """
    stem = arrival.source_name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    if (
        arrival.stored
        and arrival.source_name == arrival.key
        and arrival.key.startswith(keys.CLIPS)
        and stem != keys.clip_id(sha256)
    ):
        raise ArtefactError(f"{arrival.key}: its bytes hash to {keys.clip_id(sha256)}, not to its name: not registered")
    sidecar = arrival.sidecar
    if sidecar is not None and (sidecar.sha256 != sha256 or sidecar.clip_id != keys.clip_id(sha256)):
        raise ArtefactError(
            f"{arrival.source_name}: its bytes hash to {sha256[:32]}, its sidecar says {sidecar.sha256[:32]}: not registered"
        )
    if sidecar is not None and arrival.stored and sidecar.camera_id != arrival.camera_id:
        raise ArtefactError(f"{arrival.key}: its sidecar says camera {sidecar.camera_id}: not registered")


def pack(members: Sequence[Path], out: Path, rate: Fraction) -> None:
    """Pack the images of a folder as one clip; the same images give the same bytes whatever is known of the camera.

    Times are those of EXIF, else of the names, when every image has one and they do not run backwards (images of one
    second are put 1 ms apart); else the given rate holds.
    """
    for read in (capture_time.from_exif, lambda member: capture_time.from_name(member.name)):
        when = [read(members[0])]
        if when[0] is not None:
            when += [read(member) for member in members[1:]]
        times = [capture_time.to_ns(found, "UTC") for found in when if found is not None]
        spread = times[:1]
        for time_ns in times[1:]:
            spread.append(spread[-1] + 1_000_000 if time_ns // 1_000_000_000 == spread[-1] // 1_000_000_000 and
                          time_ns <= spread[-1] else time_ns)  # fmt: skip
        if len(spread) == len(members) and all(a < b for a, b in itertools.pairwise(spread)):
            video.pack_images(members, out, pts_ns=spread)
            return
    video.pack_images(members, out, rate=rate)


def _exif_of_first(path: Path) -> datetime | None:
    first = images.read_roll(path).images[:1]
    return _first(capture_time.from_exif(io.BytesIO(data)) for _, data in images.read_images(path, first))


def _first(found: Iterable[datetime | None]) -> datetime | None:
    return next((when for when in found if when is not None), None)


def captures(sidecar: Sidecar, path: Path, clip: Clip) -> list[dict[str, Any]]:
    """Return the rows of `captures`: each recorded frame's (or vector's) pts with its sensor time and controls.

    Raises:
        ArtefactError: the sidecar does not name one time per frame, or the container gives the frames no times.
    """
    times = sidecar.sensor_ns
    if not times:
        return []
    pts = video.recorded_pts(path)
    n_frames = len(pts) if clip.container == arrivals.TAR else clip.n_frames  # a clip of features has fewer pictures
    if not len(times) == len(pts) == n_frames:
        raise ArtefactError(
            f"the sidecar has {len(times)} sensor times, the clip {n_frames} frames and {len(pts)} times: left out"
        )
    return [
        {"clip_id": clip.clip_id, "pts": at, "sensor_ns": sensor, "controls": _controls(sidecar, position, len(pts))}
        for position, (at, sensor) in enumerate(zip(pts, times, strict=True))
    ]


def embeddings(path: Path, clip: Clip) -> list[dict[str, Any]]:
    """Return the rows of `embeddings` that a clip of features brings along: its vectors as recorded, none for other clips.

    Raises:
        MediaError: a damaged batch.
        ArtefactError: an extractor without a name or hash that can stand in a table.
    """
    if clip.container != arrivals.TAR or (roll := images.read_roll(path)).extractor is None:
        return []
    name, sha256 = str(roll.extractor.get("name")), str(roll.extractor.get("sha256"))
    if not _SHA256.fullmatch(sha256):
        raise ArtefactError(f"its extractor {name[:80]!r} has hash {sha256[:80]!r}; legal: 64 hex digits")
    source = f"{keys.check_name(name, 'extractor')}@{sha256[:12]}"
    return [
        {"clip_id": clip.clip_id, "pts": at, "det_id": None, "source": source, "dim": len(vector), "vector": vector.tobytes()}
        for pts, vectors in images.read_vectors(path, roll)
        for at, vector in zip(pts, vectors, strict=True)
    ]


def _controls(sidecar: Sidecar, position: int, n_frames: int) -> str | None:
    """Return the controls of one frame as JSON; a single value holds for all frames."""
    found = {name: values[position if len(values) == n_frames else 0] for name, values in sidecar.controls.items() if values}
    return json.dumps(found, sort_keys=True) if found else None
