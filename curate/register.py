"""From an arrival to a `clips` row: hash, dedupe, probe, put, read the sidecar, commit.

For each arrival, in order of name:

1. its SHA-256 says which clip it is. An uploader's object must carry it as its name, a sidecar must name it.
2. known with the same camera and start: nothing to do. Known otherwise: one `failures` row with `duplicate_of`, once.
   Known, the same file, but its camera's zone, offset or group changed: a new batch of step `register` for the same clip.
3. its object is gone, though its row says live (a bucket's lifecycle): a new batch with state `expired`; the rows stay. Whoever
   ingests the file again brings it back.
4. new: probed (headers are not believed), put under `clips/<camera>/<clip_id>.<container>` unless it stays where it
   lies, its sidecar first. What cannot be read is one `failures` row; the rest goes on.

Every `BATCH` clips are one commit of `clips`, `captures`, `gaps` and the `embeddings` of recorded features; labels follow by
their own commit, with derived ids, so that a run killed anywhere between is completed by the same command.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import polars as pl

from curate import arrivals, cameras, clip_rows, imports, labels
from curate.arrivals import Arrival
from curate.imports import Given, Import
from curate.labels import Extent
from infra import images, keys, video
from infra.catalog import Catalog, Done
from infra.clock import Clock
from infra.errors import ArtefactError, MediaError, ObjectExists, ObjectMissing, StoreError
from infra.records import CameraRow, Clip, Label, Sidecar
from infra.store import file_sha256
from infra.video import Probe

STEP: Final = "register"
VERSION: Final = 1
BATCH: Final = 200  # clips per commit: a killed run loses less than these
ROWS: Final = 50_000  # and rows beside them, which hold the vectors of recorded features
IMAGE_RATE: Final = Fraction(1)
_HELD: Final = ("clip_id", "key", "source_name", "camera_id", "source_group", "start_ns", "state",
                "first_pts", "end_pts", "time_base_num", "time_base_den", "n_bytes")  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What became of the arrivals; each arrival is in exactly one of the first seven."""

    registered: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    corrected: list[str] = field(default_factory=list)
    copies: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    n_labels: int = 0
    remarks: list[str] = field(default_factory=list)


class Registrar:
    """Registers arrivals into one catalog.

    Args:
        catalog: where the rows go; clip bytes go to its store.
        in_force: rows in force of the cameras that have some.
        new_cameras: rows of cameras that are new or changed; written when the first clip of a camera needs them.
        clock: gives created_ns and done_ns.
        imported: what people said about the files, or None.
        image_rate: frames a second of image folders whose pictures say no time.
        probe: how a clip is probed; by default in this process.
    """

    def __init__(
        self,
        catalog: Catalog,
        in_force: Mapping[str, Sequence[CameraRow]],
        new_cameras: Mapping[str, Sequence[CameraRow]],
        *,
        clock: Clock,
        imported: Import | None = None,
        image_rate: Fraction = IMAGE_RATE,
        probe: Callable[[Path], Probe] = video.probe,
    ) -> None:
        self._catalog, self._store, self._clock = catalog, catalog.store, clock
        self._cameras, self._unwritten = {**in_force, **new_cameras}, dict(new_cameras)
        self._imported, self._image_rate, self._probe = imported, image_rate, probe
        self._held = {row["clip_id"]: row for row in catalog.scan("clips", _HELD).collect().iter_rows(named=True)}
        self._clip_at = {row["key"]: clip_id for clip_id, row in self._held.items()}
        live = catalog.live().filter((pl.col("step") == STEP) & (pl.col("scope") == "clip"))
        self._fingerprints = dict(zip(live["scope_id"], live["fingerprint"], strict=True))
        self._rows: dict[str, list[dict[str, Any]]] = {"clips": [], "captures": [], "gaps": [], "embeddings": []}
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
            except ObjectMissing as error:
                self._gone(arrival, error)
            except (MediaError, ArtefactError, OSError) as error:
                self._fail(arrival, error)
            if len(self._done) >= BATCH or sum(map(len, self._rows.values())) >= ROWS:
                self.flush()
            advance(arrival.source_name)
        self.flush()
        return self.outcome

    def write_cameras(self, camera_ids: Iterable[str]) -> None:
        """Append the rows of those cameras that are new or changed and not written yet."""
        rows = [row for camera_id in dict.fromkeys(camera_ids) for row in self._unwritten.pop(camera_id, ())]
        if rows:
            self._catalog.append("cameras", cameras.as_table_rows(rows), clock=self._clock)

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

    def gone(self, present: Container[str]) -> list[Arrival]:
        """Return the live clips of `clips/` whose key is not among those that are `present`, to be looked at once more."""
        return [
            arrivals.in_store(self._store, row["key"], source_name=row["source_name"], camera_id=row["camera_id"],
                              n_bytes=row["n_bytes"])
            for row in self._held.values()
            if row["state"] == "live" and row["key"].startswith(keys.CLIPS) and row["key"] not in present
        ]  # fmt: skip

    def flush(self) -> None:
        """Commit what is pending: failures, then the batch, then labels."""
        if self._failures:
            said = set(self._catalog.scan("failures", ["failure_id"]).collect()["failure_id"])
            fresh = [row for row in self._failures if row["failure_id"] not in said]
            if fresh:
                self._catalog.append("failures", fresh, clock=self._clock)
        if self._done:
            self.write_cameras(row["camera_id"] for row in self._rows["clips"])
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
            clip_rows.pack(arrival.members, packed, self._image_rate)
            yield packed

    def _one(self, arrival: Arrival, path: Path) -> None:
        """Decide what an arrival is: new, known, a correction, a copy or a duplicate."""
        if path.stat().st_size == 0:
            raise MediaError(f"{arrival.source_name}: the file is empty (0 bytes); copy it again from the camera")
        sha256 = file_sha256(path)
        clip_rows.verify(arrival, sha256)
        held = self._held.get(keys.clip_id(sha256))
        same_file = held is not None and (held["source_name"] == arrival.source_name or held["state"] == "expired")
        if held is not None and same_file and arrival.camera_from in arrivals.DEFAULTS:
            arrival = dataclasses.replace(arrival, camera_id=held["camera_id"])  # nobody named a camera this time: it stays
        if held is not None and held["camera_id"] != arrival.camera_id:
            self._duplicate(arrival, held, "camera", held["camera_id"])
            return
        if held is not None:
            self._restore(arrival, path, held, sha256)
        given = self._imported.about(arrival) if self._imported else Given()
        group = self._group(arrival, given, held)
        fingerprint = self._fingerprint(arrival.camera_id, group)
        if held is not None and same_file and self._fingerprints.get(held["clip_id"]) == fingerprint:
            self.outcome.known.append(arrival.source_name)
            self._say(arrival, path, given, held)
            return
        rows = self._cameras[arrival.camera_id]
        key = held["key"] if held is not None else self._key_in_place(arrival)
        clip = clip_rows.make(arrival, path, self._probe(path), sha256=sha256, group=group, rows=rows, key=key)
        if held is not None and not same_file and clip.start_ns != held["start_ns"]:
            self._duplicate(arrival, held, "start", f"{held['start_ns']} ns")
            return
        if held is not None and not same_file:
            self.outcome.copies.append((arrival.source_name, held["source_name"]))
        else:
            if key is None:
                self._put(arrival, path, clip)
            self._add(arrival, path, clip, fingerprint)
            (self.outcome.registered if held is None else self.outcome.corrected).append(arrival.source_name)
        self._say(arrival, path, given, self._held[clip.clip_id])

    def _restore(self, arrival: Arrival, path: Path, held: Mapping[str, Any], sha256: str) -> None:
        """Put the bytes of a known clip back if its object is gone: who still has the file mends the loss by ingesting it."""
        ours = arrival.key is None and str(held["key"]).startswith(keys.CLIPS)
        if ours and self._store.head(held["key"]) is None:
            self._store.put_file_if_absent(held["key"], path, sha256=sha256)
            self.outcome.remarks.append(f"restored: {arrival.source_name}: its object {held['key']} was gone")

    def _group(self, arrival: Arrival, given: Given, held: Mapping[str, Any] | None) -> str | None:
        """Return the source_group: what is said now, else what was registered, else the sidecar's."""
        if given.says_group:
            return given.group
        if held is not None:
            return None if held["source_group"] is None else str(held["source_group"])
        return arrival.sidecar.source_group if arrival.sidecar else None

    def _key_in_place(self, arrival: Arrival) -> str | None:
        """Return the key of bytes that lie in our store already, None when they are to be put."""
        if arrival.key is None or arrival.place is not self._store:
            return None
        if arrival.key in self._clip_at:
            other = self._clip_at[arrival.key]
            raise ArtefactError(f"{arrival.key}: changed since it was registered as clip {other}; clips are immutable")
        return arrival.key

    def _fingerprint(self, camera_id: str, group: str | None, *, expired: bool = False) -> str:
        rows = self._cameras.get(camera_id, ())
        settled = [  # what a clip's row depends on beside its bytes
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
        state = {"state": "expired"} if expired else {}  # another fingerprint: of two equal ones the earlier batch is live
        return keys.fingerprint(STEP, VERSION, {"camera": settled, "source_group": group, **state}, None)

    def _put(self, arrival: Arrival, path: Path, clip: Clip) -> None:
        """Put the sidecar, then the clip; an object that is there already must be this clip."""
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
        vectors = clip_rows.embeddings(path, clip)
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
        self._rows["embeddings"] += vectors
        n_out += len(vectors)
        self._done.append(Done("clip", clip.clip_id, STEP, fingerprint, 1, n_out))
        self._held[clip.clip_id] = {name: row[name] for name in _HELD}
        self._fingerprints[clip.clip_id] = fingerprint

    def _captures(self, arrival: Arrival, sidecar: Sidecar, path: Path, clip: Clip) -> list[dict[str, Any]]:
        try:
            return clip_rows.captures(sidecar, path, clip)
        except ArtefactError as error:  # the clip is whole: it stays, without sensor times
            self._note_failure(arrival, error, clip.clip_id)
            self.outcome.remarks.append(f"{arrival.source_name}: {error}")
            return []

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

    def _gone(self, arrival: Arrival, error: ObjectMissing) -> None:
        """Mark a registered clip whose object is gone (a bucket's lifecycle) as expired; its rows stay."""
        held = self._held.get(self._clip_at.get(arrival.key or "", "")) if arrival.stored else None
        if held is None:
            self._fail(arrival, error)
            return
        frame = self._catalog.scan("clips").filter(pl.col("clip_id") == held["clip_id"]).collect()
        row = frame.drop("batch_id", "schema_version").row(0, named=True) | {"state": "expired"}
        self._rows["clips"].append(row)
        fingerprint = self._fingerprint(held["camera_id"], held["source_group"], expired=True)
        self._done.append(Done("clip", held["clip_id"], STEP, fingerprint, 1, 1))
        self._held[held["clip_id"]] = held | {"state": "expired"}
        self._fingerprints[held["clip_id"]] = fingerprint
        self.outcome.expired.append(arrival.source_name)

    def _duplicate(self, arrival: Arrival, held: Mapping[str, Any], differs: str, value: str) -> None:
        self.outcome.duplicates.append((arrival.source_name, held["source_name"]))
        message = f"the bytes of {held['source_name']}, which is registered with another {differs} ({value})"
        failure_id = keys.derived_id("duplicate", held["clip_id"], arrival.camera_id, differs)
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
