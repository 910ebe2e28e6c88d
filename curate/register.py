"""From an arrival to a `clips` row: hash, dedupe, probe, put, read the sidecar, commit.

For each arrival, in order of name:

1. its SHA-256 says which clip it is. An uploader's object must carry it as its name, a sidecar must name it.
2. known with the same camera and start: nothing to do. Known otherwise: one `failures` row with `duplicate_of`, once.
   Known, the same file, but its camera's zone, offset or group changed: a new batch of step `register` for the same clip.
3. new: probed (headers are not believed), put under `clips/<camera>/<clip_id>.<container>` unless it stays where it
   lies, its sidecar first. What cannot be read is one `failures` row; the rest goes on.

Every `BATCH` clips are one commit of `clips`, `captures` and `gaps`; labels follow by their own commit, with derived ids,
so that a run killed anywhere between is completed by the same command.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import polars as pl

from curate import arrivals, capture_time, imports, labels
from curate.arrivals import Arrival
from curate.imports import Given, Import
from curate.labels import Extent
from infra import images, keys, video
from infra.catalog import Catalog, Done
from infra.clock import Clock
from infra.errors import ArtefactError, MediaError, ObjectExists, ObjectMissing, StoreError
from infra.records import CameraRow, Clip, ClockQuality, Label, Sidecar
from infra.store import file_sha256
from infra.video import Probe

STEP: Final = "register"
VERSION: Final = 1
BATCH: Final = 200  # clips per commit: a killed run loses less than these
IMAGE_RATE: Final = Fraction(1)
_HELD: Final = ("clip_id", "key", "source_name", "camera_id", "source_group", "start_ns", "state",
                "first_pts", "end_pts", "time_base_num", "time_base_den", "n_bytes")  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What became of the arrivals; each arrival is in exactly one of the first six."""

    registered: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    corrected: list[str] = field(default_factory=list)
    copies: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    n_labels: int = 0
    remarks: list[str] = field(default_factory=list)


class Registrar:
    """Registers arrivals into one catalog.

    Args:
        catalog: where the rows go; clip bytes go to its store.
        cameras: rows in force of every camera that an arrival may have, already written.
        clock: gives created_ns and done_ns.
        imported: what people said about the files, or None.
        image_rate: frames a second of image folders whose pictures say no time.
        probe: how a clip is probed; by default in this process.
    """

    def __init__(
        self,
        catalog: Catalog,
        cameras: Mapping[str, Sequence[CameraRow]],
        *,
        clock: Clock,
        imported: Import | None = None,
        image_rate: Fraction = IMAGE_RATE,
        probe: Callable[[Path], Probe] = video.probe,
    ) -> None:
        self._catalog, self._store, self._clock = catalog, catalog.store, clock
        self._cameras, self._imported, self._image_rate, self._probe = cameras, imported, image_rate, probe
        self._held = {row["clip_id"]: row for row in catalog.scan("clips", _HELD).collect().iter_rows(named=True)}
        live = catalog.live().filter((pl.col("step") == STEP) & (pl.col("scope") == "clip"))
        self._fingerprints = dict(zip(live["scope_id"], live["fingerprint"], strict=True))
        self._rows: dict[str, list[dict[str, Any]]] = {"clips": [], "captures": [], "gaps": []}
        self._done: list[Done] = []
        self._labels: list[Label] = []
        self._failures: list[dict[str, Any]] = []
        self.outcome = Outcome()

    def run(self, found: Iterable[Arrival], advance: Callable[[str], None] = lambda name: None) -> Outcome:
        """Register all arrivals and return what became of them.

        Raises:
            StoreError: the store cannot be written; what was committed stays, the same command goes on from there.
        """
        for arrival in found:
            try:
                with self._bytes(arrival) as path:
                    self._one(arrival, path)
            except (MediaError, ArtefactError, ObjectMissing, OSError) as error:
                self._fail(arrival, error)
            if len(self._done) >= BATCH:
                self.flush()
            advance(arrival.source_name)
        self.flush()
        return self.outcome

    def outdated(self) -> list[Arrival]:
        """Return the clips whose camera was corrected since they were registered, to be run again from the store."""
        found = []
        for clip_id, row in self._held.items():
            if row["state"] == "live" and self._fingerprints.get(clip_id) != self._fingerprint(
                row["camera_id"], row["source_group"]
            ):
                found.append(
                    arrivals.in_store(self._store, row["key"], source_name=row["source_name"], camera_id=row["camera_id"],
                                      n_bytes=row["n_bytes"])
                )  # fmt: skip
        return found

    def flush(self) -> None:
        """Commit what is pending: failures, then the batch, then labels."""
        if self._failures:
            self._catalog.append("failures", self._failures, clock=self._clock)
        if self._done:
            self._catalog.commit({name: rows for name, rows in self._rows.items() if rows}, self._done, clock=self._clock)
        if self._labels:
            self.outcome.n_labels += labels.write(self._catalog, self._labels)
        self._failures, self._done, self._labels = [], [], []
        self._rows = {name: [] for name in self._rows}

    @contextmanager
    def _bytes(self, arrival: Arrival) -> Iterator[Path]:
        if arrival.problem is not None:
            raise ArtefactError(arrival.problem)
        if not arrival.members:
            with arrival.opened() as path:
                yield path
            return
        with tempfile.TemporaryDirectory(prefix="camloop-") as folder:
            packed = Path(folder) / "clip.tar"
            pack(arrival.members, packed, self._image_rate)
            yield packed

    def _one(self, arrival: Arrival, path: Path) -> None:
        if path.stat().st_size == 0:
            raise MediaError(f"{arrival.source_name}: the file is empty (0 bytes); copy it again from the camera")
        sha256 = file_sha256(path)
        clip_id = keys.clip_id(sha256)
        _verify(arrival, sha256)
        given = self._imported.about(arrival) if self._imported else Given()
        held = self._held.get(clip_id)
        if held is not None and held["camera_id"] != arrival.camera_id:
            self._duplicate(arrival, held, f"camera {held['camera_id']}")
            return
        group = given.group if given.says_group else held["source_group"] if held else _sidecar_group(arrival)
        fingerprint = self._fingerprint(arrival.camera_id, group)
        same_file = held is not None and held["source_name"] == arrival.source_name
        if held is None or not same_file or self._fingerprints.get(clip_id) != fingerprint:
            clip = self._clip(arrival, path, sha256, group, held)
            if held is not None and not same_file and clip.start_ns != held["start_ns"]:
                self._duplicate(arrival, held, f"start {held['start_ns']} ns")
                return
            if held is not None and not same_file:
                self.outcome.copies.append((arrival.source_name, held["source_name"]))
            else:
                if held is None and not arrival.stored:
                    self._put(arrival, path, clip)
                self._add(arrival, path, clip, fingerprint)
                (self.outcome.registered if held is None else self.outcome.corrected).append(arrival.source_name)
        else:
            self.outcome.known.append(arrival.source_name)
        self._say(arrival, path, given, self._held[clip_id])

    def _fingerprint(self, camera_id: str, group: str | None) -> str:
        rows = self._cameras.get(camera_id, ())
        settled = [
            [
                r.valid_from_ns,
                r.time_zone,
                r.clock_offset_s,
                r.site,
                r.attributes.get("time_pattern"),
                r.attributes.get("container_time"),
            ]
            for r in sorted(rows, key=lambda row: row.valid_from_ns)
        ]
        return keys.fingerprint(STEP, VERSION, {"camera": settled, "source_group": group}, None)

    def _clip(self, arrival: Arrival, path: Path, sha256: str, group: str | None, held: Mapping[str, Any] | None) -> Clip:
        found, sidecar, clip_id = self._probe(path), arrival.sidecar, keys.clip_id(sha256)
        rows = self._cameras[arrival.camera_id]
        start_ns, clock = self._start(arrival, path, found, rows)
        row = capture_time.valid_row(rows, start_ns)
        own: dict[str, Any] = {} if sidecar is None else {
            name: getattr(sidecar, name) for name in ("host_id", "boot_id", "seq", "start_mono_ns")
        }  # fmt: skip
        in_place = arrival.key is not None and arrival.place is self._store
        return Clip(
            clip_id=clip_id, key=held["key"] if held else arrival.key if in_place and arrival.key else
            keys.clip_key(arrival.camera_id, clip_id, found.container), source_name=arrival.source_name, container=found.container,
            camera_id=arrival.camera_id, recording_id=sidecar.recording_id if sidecar else clip_id,
            site=(sidecar.site if sidecar else None) or row.site, source_group=group, **own, start_ns=start_ns, clock=clock,
            day=None if start_ns is None else capture_time.local_day(start_ns, row.time_zone),
            time_base_num=found.time_base.numerator, time_base_den=found.time_base.denominator, first_pts=found.first_pts,
            end_pts=found.end_pts, n_frames=found.n_frames, width_px=found.width_px, height_px=found.height_px, codec=found.codec,
            rotation_deg=found.rotation_deg, index=found.index, n_bytes=path.stat().st_size, sha256=sha256,
            n_dropped=sum(gap.n_missing for gap in sidecar.gaps) if sidecar else 0,
        )  # fmt: skip

    def _start(self, arrival: Arrival, path: Path, found: Probe, rows: Sequence[CameraRow]) -> tuple[int | None, ClockQuality]:
        if arrival.sidecar is not None:
            return arrival.sidecar.start_ns, arrival.sidecar.clock
        latest = rows[-1].attributes
        pattern, meaning = latest.get("time_pattern"), latest.get("container_time", "local")
        names = [arrival.source_name]
        when: datetime | None = None
        if found.container == arrivals.TAR:
            names.append(f"{arrival.source_name}/{images.read_roll(path).images[0].name}")
        if pattern is not None:
            when = _first(capture_time.from_name(name, [pattern]) for name in names)
        when = when or capture_time.from_container(found.start_ns, "utc" if meaning == "utc" else "local")
        if when is None and found.container == arrivals.TAR:
            when = _exif_of_first(path)
        when = when or _first(capture_time.from_name(name) for name in names)
        return (None, "unknown") if when is None else (capture_time.true_start_ns(when, rows), "file")

    def _put(self, arrival: Arrival, path: Path, clip: Clip) -> None:
        """Put the sidecar, then the clip; an object that is there already must be this clip."""
        if clip.key == arrival.key and arrival.place is self._store:
            return
        if arrival.sidecar is not None:
            with suppress(ObjectExists):  # the first sidecar stays: a recorder writes one, once
                self._store.put_if_absent(keys.sidecar_key(clip.key), arrival.sidecar.to_json())
        try:
            self._store.put_file_if_absent(clip.key, path, sha256=clip.sha256)
        except ObjectExists as error:
            if not self._store.holds_file(clip.key, path, sha256=clip.sha256):
                raise StoreError(
                    f"{clip.key} in {self._store.url} holds other bytes than its name says; run camloop doctor"
                ) from error

    def _add(self, arrival: Arrival, path: Path, clip: Clip, fingerprint: str) -> None:
        number = self._cameras[clip.camera_id][0].camera_number
        row = dataclasses.asdict(clip) | {"camera_number": number}
        self._rows["clips"].append(row)
        n_out = 1
        if arrival.sidecar is not None:
            captures = self._captures(arrival, arrival.sidecar, path, clip)
            gaps = [dataclasses.asdict(gap) | {"clip_id": clip.clip_id} for gap in arrival.sidecar.gaps]
            self._rows["captures"] += captures
            self._rows["gaps"] += gaps
            n_out += len(captures) + len(gaps)
        self._done.append(Done("clip", clip.clip_id, STEP, fingerprint, 1, n_out))
        self._held[clip.clip_id] = {name: row[name] for name in _HELD}
        self._fingerprints[clip.clip_id] = fingerprint

    def _captures(self, arrival: Arrival, sidecar: Sidecar, path: Path, clip: Clip) -> list[dict[str, Any]]:
        times = sidecar.sensor_ns
        pts = sorted(packet.pts for packet in video.packets(path) if packet.pts is not None) if times else []
        if len(times) != len(pts) or (pts and len(pts) != clip.n_frames):
            error = ArtefactError(
                f"the sidecar has {len(times)} sensor times, the clip {clip.n_frames} frames: sensor times left out"
            )
            self._note_failure(arrival, error, clip.clip_id)
            self.outcome.remarks.append(f"{arrival.source_name}: {error}")
            return []
        return [
            {"clip_id": clip.clip_id, "pts": at, "sensor_ns": sensor, "controls": _controls(sidecar, position, len(pts))}
            for position, (at, sensor) in enumerate(zip(pts, times, strict=True))
        ]

    def _say(self, arrival: Arrival, path: Path, given: Given, held: Mapping[str, Any]) -> None:
        """Collect the labels that the import, or the person at the recorder, gave to this clip."""
        extent = Extent(clip_id=held["clip_id"], source_name=held["source_name"], first_pts=held["first_pts"],
                        end_pts=held["end_pts"], time_base=Fraction(held["time_base_num"], held["time_base_den"]))  # fmt: skip
        now_ns = self._clock.now_ns()
        if self._imported is not None:
            frames = [(imports.frame_number(i.name), i.pts) for i in images.read_roll(path).images] if given.frames else []
            unlabelled = imports.frames_without_row(given, arrival)
            if unlabelled:
                shown = ", ".join(unlabelled[:3])
                self.outcome.remarks.append(f"{arrival.source_name}: {len(unlabelled)} images have no row: {shown}")
            self._labels += imports.to_labels(self._imported, given, extent, now_ns, frames)
        if arrival.sidecar is not None and arrival.sidecar.label is not None:
            whole = (extent.first_pts, extent.end_pts)
            self._labels.append(labels.make(extent, whole, arrival.sidecar.label, annotator="recorder", created_ns=now_ns))

    def _duplicate(self, arrival: Arrival, held: Mapping[str, Any], differs: str) -> None:
        self.outcome.duplicates.append((arrival.source_name, held["source_name"]))
        message = f"the bytes of {held['source_name']}, which is registered with another {differs.split()[0]} ({differs})"
        failure_id = keys.derived_id("duplicate", held["clip_id"], arrival.camera_id, differs.split()[0])
        self._failure(failure_id, arrival, "Duplicate", message, None, held["clip_id"])

    def _fail(self, arrival: Arrival, error: Exception) -> None:
        message = " ".join(str(error).split())
        self.outcome.failed.append((arrival.source_name, message))
        self._note_failure(arrival, error, None)

    def _note_failure(self, arrival: Arrival, error: Exception, clip_id: str | None) -> None:
        message = " ".join(str(error).split())
        failure_id = keys.derived_id(STEP, arrival.uri, arrival.n_bytes, type(error).__name__, message)
        self._failure(failure_id, arrival, type(error).__name__, message, clip_id, None)

    def _failure(
        self, failure_id: str, arrival: Arrival, error_class: str, message: str, clip_id: str | None, duplicate_of: str | None
    ) -> None:
        self._failures.append({
            "failure_id": failure_id, "source_uri": arrival.uri, "clip_id": clip_id, "step": STEP, "error_class": error_class,
            "message": message, "duplicate_of": duplicate_of, "created_ns": self._clock.now_ns(),
        })  # fmt: skip


def _verify(arrival: Arrival, sha256: str) -> None:
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
    import io

    first = images.read_roll(path).images[:1]
    return _first(capture_time.from_exif(io.BytesIO(data)) for _, data in images.read_images(path, first))


def _first(found: Iterable[datetime | None]) -> datetime | None:
    return next((when for when in found if when is not None), None)


def _sidecar_group(arrival: Arrival) -> str | None:
    return arrival.sidecar.source_group if arrival.sidecar else None


def _controls(sidecar: Sidecar, position: int, n_frames: int) -> str | None:
    """Return the controls of one frame as JSON; a single value holds for all frames."""
    found = {name: values[position if len(values) == n_frames else 0] for name, values in sidecar.controls.items() if values}
    return json.dumps(found, sort_keys=True) if found else None
