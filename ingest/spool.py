"""The spool: finished clips on the camera host's disk, from the recorder's last fsync until the store has them.

    spool = Spool(folder)
    spool.adopt(path, sidecar)          # afterwards the clip survives a power cut; the file was moved in
    for clip in spool.pending(): ...    # oldest first
        spool.done(clip)                # the store has it: marked, then deleted

Layout: `clips/<clip_id>.json` (the sidecar, first) and `clips/<clip_id>.<container>`, `quarantine/` with a reason beside
each clip that must not be sent, `recording/` for files that a recorder has not finished, `spool.sqlite` (synchronous=FULL).
The database only remembers order and state. It can be rebuilt from the files, and is, when it is gone or damaged (the old
one is kept aside): a clip with a sidecar and without a row is pending again; sending it twice is harmless.

Orders that a crash may interrupt, each finished by the next `Spool(folder)`:
adopt: sidecar, clip, row. done: row, clip, sidecar. quarantine: reason, clip, sidecar, row.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra import durable
from infra.artefacts import Outbox
from infra.clock import Clock, SystemClock
from infra.errors import ArtefactError, DeviceError
from infra.keys import check_name
from infra.log import Log
from infra.objects import file_sha256
from infra.records import Sidecar

_log = Log("ingest.spool")
_NOT_DAMAGE = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN,
)  # fmt: skip
_TABLE = """
CREATE TABLE IF NOT EXISTS clips (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    clip_id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('pending', 'done', 'quarantined', 'lost')),
    added_ns INTEGER NOT NULL,
    reason TEXT
)"""


@dataclass(frozen=True, slots=True)
class SpooledClip:
    """A clip that waits: its file and what the recorder knew."""

    path: Path
    sidecar: Sidecar


class Spool:
    """The clips of one camera host that are not in the store yet. Several processes may adopt; one uploads.

    Args:
        folder: made if missing. Its state is checked and repaired here.

    Raises:
        DeviceError: the folder's disk is full, read-only or broken.
    """

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        self.folder = folder
        self._clips = folder / "clips"
        self._quarantine = folder / "quarantine"
        self.recording = folder / "recording"
        self._clock = clock or SystemClock()
        with _explained(folder):
            for path in (self._clips, self._quarantine, self.recording):
                durable.make_dirs(path)
            with self.locked("repair", wait=True):
                self._database = self._opened()
                self._repair()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def adopt(self, path: Path, sidecar: Sidecar) -> bool:
        """Move a finished clip in. When this returns, the clip survives a power cut.

        Returns:
            False when this clip was delivered before: the file was removed, nothing else happened.

        Raises:
            ArtefactError: the file's size is not the sidecar's.
            DeviceError: the disk is full or broken; the file stays where it was.
        """
        check_name(sidecar.clip_id, "clip")
        check_name(sidecar.container, "container")
        n_bytes = path.stat().st_size
        if n_bytes != sidecar.n_bytes:
            raise ArtefactError(f"{path.name} has {n_bytes} bytes, its sidecar says {sidecar.n_bytes}; it was not adopted")
        with _explained(self.folder):
            if self.state(sidecar.clip_id) == "done":
                durable.remove(path)
                return False
            durable.remove(self._reason_path(sidecar.clip_id))  # of a rotten copy that lay here before
            durable.write(self._clips / f"{sidecar.clip_id}.json", sidecar.to_json())
            _move(path, self._clips / f"{sidecar.clip_id}.{sidecar.container}", sidecar.sha256)
            self._add(sidecar.clip_id)
        return True

    def adopt_outbox(self, folder: Path) -> int:
        """Move all finished clips of an outbox in and return how many were new; a broken one is set aside there."""
        n_new, outbox = 0, Outbox(folder)
        for path, sidecar in outbox.finished():
            try:
                n_new += self.adopt(path, sidecar)
            except ArtefactError as error:
                outbox.set_aside(sidecar.clip_id, str(error))
                _log.warning("outbox_clip_broken", clip_id=sidecar.clip_id, reason=str(error))
                continue
            with _explained(self.folder):
                durable.remove(path.with_suffix(".json"))
        return n_new

    def pending(self) -> list[SpooledClip]:
        """Return the clips that wait, in the order in which they came."""
        rows = self._query("SELECT clip_id FROM clips WHERE state = 'pending' ORDER BY number")
        found = (self._read(self._clips / f"{clip_id}.json") for (clip_id,) in rows)
        return [clip for clip in found if clip is not None]

    def state(self, clip_id: str) -> str | None:
        """Return pending, done, quarantined, lost, or None for a clip that was never here."""
        rows = self._query("SELECT state FROM clips WHERE clip_id = ?", clip_id)
        return rows[0][0] if rows else None

    def counts(self) -> dict[str, int]:
        """Return how many clips are in each state."""
        return {state: int(n) for state, n in self._query("SELECT state, count(*) FROM clips GROUP BY state ORDER BY state")}

    def done(self, clip: SpooledClip) -> None:
        """Mark a clip as delivered, then delete its files."""
        with _explained(self.folder):
            self._mark(clip.sidecar.clip_id, "done")
            durable.remove(clip.path)
            durable.remove(self._clips / f"{clip.sidecar.clip_id}.json")

    def quarantine(self, clip: SpooledClip, reason: str) -> Path:
        """Put a clip aside that must not be sent, with the reason beside it, and return where it lies now."""
        target = self._quarantine / clip.path.name
        clip_id = clip.sidecar.clip_id
        with _explained(self.folder):
            durable.write(self._reason_path(clip_id), f"{reason}\n".encode())
            self._finish_quarantine(clip_id, reason)
        _log.warning("quarantined", clip_id=clip_id, reason=reason, path=target)
        return target

    @contextlib.contextmanager
    def locked(self, what: str, *, wait: bool = False) -> Iterator[None]:
        """Hold the spool's lock named `what`, across processes; a crash releases it.

        Raises:
            DeviceError: another process holds it (unless `wait`).
        """
        fd = os.open(self.folder / f".{check_name(what, 'lock')}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise DeviceError(f"spool {self.folder}: another process is at work ({what}); wait for it or end it") from error
            yield
        finally:
            os.close(fd)

    def _reason_path(self, clip_id: str) -> Path:
        return self._quarantine / f"{clip_id}.reason.txt"

    def _query(self, sql: str, *values: str) -> list[tuple[str, ...]]:
        with _explained(self.folder):
            return self._database.execute(sql, values).fetchall()

    def _opened(self) -> sqlite3.Connection:
        path = self.folder / "spool.sqlite"
        try:
            return self._connected(path)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode in _NOT_DAMAGE:
                raise
            aside = path.with_name(f"spool.sqlite.damaged-{self._clock.now_ns()}")
            _log.error("database_damaged", path=path, kept_as=aside, error=str(error))
            durable.adopt(path, aside)
            for suffix in ("-wal", "-shm"):
                durable.remove(path.with_name(path.name + suffix))
            return self._connected(path)

    def _connected(self, path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, timeout=30, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            ((verdict,), *_) = database.execute("PRAGMA integrity_check(1)").fetchall()
            if verdict != "ok":
                damage = sqlite3.DatabaseError(str(verdict))
                damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise damage
            database.execute(_TABLE)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _add(self, clip_id: str) -> None:
        self._database.execute(
            "INSERT INTO clips (clip_id, state, added_ns) VALUES (?, 'pending', ?) "
            "ON CONFLICT (clip_id) DO UPDATE SET state = 'pending', reason = NULL WHERE state IN ('lost', 'quarantined')",
            (clip_id, self._clock.now_ns()),
        )

    def _mark(self, clip_id: str, state: str, reason: str | None = None) -> None:
        self._database.execute("UPDATE clips SET state = ?, reason = ? WHERE clip_id = ?", (state, reason, clip_id))

    def _read(self, sidecar_path: Path) -> SpooledClip | None:
        try:
            sidecar = Sidecar.from_json(sidecar_path.read_bytes())
        except FileNotFoundError:
            return None
        path = sidecar_path.with_name(f"{sidecar.clip_id}.{sidecar.container}")
        return SpooledClip(path, sidecar) if path.exists() else None

    def _finish_quarantine(self, clip_id: str, reason: str) -> None:
        for path in sorted(self._clips.glob(f"{clip_id}.*"), key=lambda path: path.suffix == ".json"):
            durable.adopt(path, self._quarantine / path.name)
        self._mark(clip_id, "quarantined", reason)

    def _repair(self) -> None:
        """Finish what a crash interrupted and make rows and files agree; the files are right."""
        for reason_path in self._quarantine.glob("*.reason.txt"):
            clip_id = reason_path.name.removesuffix(".reason.txt")
            if self.state(clip_id) != "quarantined":
                self._add(clip_id)
                self._finish_quarantine(clip_id, reason_path.read_text().strip())
        found: list[SpooledClip] = []
        for path in sorted(self._clips.glob("*.json")):
            if durable.is_temporary(path.name):
                continue
            try:
                clip = self._read(path)
            except ArtefactError as error:
                durable.write(self._reason_path(path.stem), f"{error}\n".encode())
                self._add(path.stem)
                self._finish_quarantine(path.stem, str(error))
                _log.error("sidecar_damaged", clip_id=path.stem, error=str(error))
                continue
            if self.state(path.stem) == "done":
                if clip is not None:
                    durable.remove(clip.path)
                durable.remove(path)
            elif clip is not None:
                found.append(clip)
        for clip in sorted(found, key=lambda clip: (clip.sidecar.boot_id, clip.sidecar.seq)):
            self._add(clip.sidecar.clip_id)
        for (clip_id,) in self._query("SELECT clip_id FROM clips WHERE state = 'pending'"):
            if self._read(self._clips / f"{clip_id}.json") is None and not self._reason_path(clip_id).exists():
                self._mark(clip_id, "lost", "its file is gone")
                _log.error("clip_lost", clip_id=clip_id, folder=self._clips)


def _move(source: Path, target: Path, sha256: str) -> None:
    try:
        durable.adopt(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with contextlib.suppress(FileExistsError):  # another file system: copy, then remove
            durable.create_copy(target, source, sha256)
        durable.remove(source)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.DatabaseError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        full = "full" in reason or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
        remedy = "free space on it, or `camloop upload` what waits" if full else "check the disk and its rights"
        raise DeviceError(f"spool {folder}: {reason}; {remedy}") from error


def is_intact(clip: SpooledClip) -> bool:
    """Say whether the file's bytes are those that the recorder hashed."""
    return clip.path.stat().st_size == clip.sidecar.n_bytes and file_sha256(clip.path) == clip.sidecar.sha256
