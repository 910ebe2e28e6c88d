"""The spool: finished clips on the camera host's disk, from the recorder's last fsync until the store has them.

    spool = Spool(folder)
    seq = spool.reserve(camera_id, boot_id)     # the clip's number, durable before the first frame is filmed
    spool.adopt(path, sidecar)                  # afterwards the clip survives a power cut; the file was moved in
    for clip in spool.pending(): ...            # oldest first
        spool.done(clip)                        # the store has it: marked, then deleted

Numbers have no holes: each becomes a clip or an entry in the `ledger` with its reason (`forfeit`, or by itself for a recorder
that died). Beyond `limits` the owner's policy gives clips up, each with its entry.

Layout: `clips/<clip_id>.json` (the sidecar, first) and `clips/<clip_id>.<container>`, `quarantine/` with a reason beside each
clip that must not be sent, `recording/` for unfinished files, `ledger/`, `sequence/` (how far numbers went), `spool.sqlite`,
which only remembers; gone or damaged, it is made again from the files. Sending a clip twice is harmless.

One process at a time changes anything (the lock `change`). What a crash interrupts is finished by the next `Spool(folder)`:
reserve: mark, row. adopt: sidecar, clip, row. done: row, clip, sidecar. give up: entries, rows, clips, sidecars. forfeit:
entry, row. quarantine: entry, reason, clip, sidecar, row.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from infra import durable
from infra.artefacts import Outbox
from infra.clock import Clock, SystemClock
from infra.errors import ArtefactError, DeviceError, UsageError
from infra.keys import check_name
from infra.log import Log
from infra.objects import file_sha256
from infra.records import Sidecar
from infra.sequence import Kind, LedgerEntry
from ingest.ledger import Ledger, SealedPage, Sign
from ingest.marks import Marks
from ingest.policy import Candidate, SpoolLimits
from ingest.policy import value as value_of
from ingest.repair import opened, read_sidecar
from ingest.room import DiskUsage, disk_usage, drop_ballast, excess_bytes, give_up, take_ballast
from ingest.spool_database import Open, SpoolDatabase

_FULL_BYTES = 1 << 16  # less than SQLite needs to open
_log = Log("ingest.spool")


@dataclass(frozen=True, slots=True)
class SpooledClip:
    """A clip that waits: its file and what the recorder knew."""

    path: Path
    sidecar: Sidecar


class Spool:
    """The clips of one camera host that are not in the store yet. Several processes may adopt; one uploads.

    Args:
        folder: made if missing. Its state is checked and repaired here.
        limits: what may lie here; None: whatever the disk holds.
        host_id: whose ledger this is.
        sign: the host's signature for ledger pages (see `Ledger`); only the process that uploads needs it.
        disk: how full the file system is.

    Raises:
        DeviceError: the folder's disk is full, read-only or broken.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock | None = None,
        *,
        limits: SpoolLimits | None = None,
        host_id: str = "host",
        sign: Sign | None = None,
        disk: DiskUsage = disk_usage,
    ) -> None:
        self.folder, self.limits = folder, limits
        self.clips, self.quarantined, self.recording = (folder / name for name in ("clips", "quarantine", "recording"))
        self.ledger, self.marks = Ledger(folder / "ledger", host_id, sign), Marks(folder / "sequence")
        self.disk, self._clock = disk, clock or SystemClock()
        with _explained(folder):
            for path in (self.clips, self.quarantined, self.recording):
                durable.make_dirs(path)
            drop_ballast(self)
            with self.locked("change", wait=True):
                self.database = opened(self, self._clock)
                take_ballast(self)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def reserve(self, camera_id: str, boot_id: str) -> int:
        """Return the next number of this camera and boot, 0, 1, 2, ..., which survives a power cut from then on.

        Hold the lock `record-<camera_id>` until it is adopted or forfeited: else, without a file in `recording/`, it is lost.
        """
        check_name(camera_id, "camera"), check_name(boot_id, "boot")
        with self._changing() as database:
            seq = database.next_seq(camera_id, boot_id)
            self.marks.raise_over(camera_id, boot_id, seq, database.boot_number(boot_id))
            reserved = database.reserve(Open(camera_id, boot_id, seq))
            database.commit([*database.raise_to(camera_id, boot_id, seq + 1, promised=True), reserved])
        return seq

    def forfeit(self, camera_id: str, boot_id: str, seq: int, reason: str, *, clip_id: str | None = None) -> None:
        """Say durably why no clip came of a reserved number; nothing happens if it is closed already."""
        with self._changing() as database:
            self.close_numbers(database, [Open(camera_id, boot_id, seq)], reason, clip_id)

    def forfeit_open(self, camera_id: str, reason: str) -> int:
        """Forfeit what earlier recorders of this camera left open, and return how many numbers; hold the camera's lock."""
        with self._changing() as database:
            return self.close_numbers(database, [n for n in database.open_reservations() if n.camera_id == camera_id], reason)

    def adopt(self, path: Path, sidecar: Sidecar, *, value: float | None = None) -> bool:
        """Move a finished clip in. When this returns, the clip survives a power cut.

        Args:
            value: what it is worth to the policy, 0 to 1; None: `policy.value(sidecar)`, which a rebuilt database uses too.

        Returns:
            False when the clip was not taken: it waits or was delivered already (its number is forfeited), or the spool is
            full and its policy refuses what is new (it is in the ledger). The file was removed.

        Raises:
            ArtefactError: the file's size is not the sidecar's.
            DeviceError: the disk is full or broken; the file stays where it was.
        """
        check_name(sidecar.clip_id, "clip"), check_name(sidecar.container, "container")
        check_name(sidecar.camera_id, "camera"), check_name(sidecar.boot_id, "boot")
        if (found := path.stat().st_size) != sidecar.n_bytes:
            raise ArtefactError(f"{path.name} has {found} bytes, its sidecar says {sidecar.n_bytes}; it was not adopted")
        document, worth = sidecar.to_json(), value_of(sidecar) if value is None else value
        n_bytes = sidecar.n_bytes + len(document)
        with self._changing() as database:
            state, number = database.state(sidecar.clip_id), Open(sidecar.camera_id, sidecar.boot_id, sidecar.seq)
            if state == "done" or (state == "pending" and database.number(sidecar.clip_id) not in (None, number)):
                self.close_numbers(database, [number], f"duplicate of {sidecar.clip_id}", sidecar.clip_id)
                durable.remove(path)
                return False
            if self.limits is not None and self.limits.policy == "newest" and excess_bytes(self, database, n_bytes, path):
                reason = "the spool is full; policy newest"
                self.ledger.add([self.entry(sidecar, "evicted", reason)])
                database.commit(database.add(sidecar, n_bytes, worth, "evicted", reason))
                durable.remove(path)
                _log.warning("refused", clip_id=sidecar.clip_id, n_bytes=n_bytes, reason=reason)
                return False
            durable.remove(self.quarantined / f"{sidecar.clip_id}.reason.txt")  # of a rotten copy that lay here before
            durable.write(self.clips / f"{sidecar.clip_id}.json", document)
            _move(path, self.clips / f"{sidecar.clip_id}.{sidecar.container}", sidecar.sha256)
            database.commit(database.add(sidecar, n_bytes, worth))
            give_up(self, database, 0)
        return True

    def adopt_outbox(self, folder: Path) -> int:
        """Move all finished clips of an outbox in and return how many were new; a broken one is set aside there."""
        n_new, outbox = 0, Outbox(folder)
        for path, sidecar in outbox.finished():
            try:
                n_new += self.adopt(path, sidecar)
            except (ArtefactError, UsageError) as error:
                outbox.set_aside(sidecar.clip_id, str(error))
                _log.warning("outbox_clip_broken", clip_id=sidecar.clip_id, reason=str(error))
                continue
            with _explained(self.folder):
                durable.remove(path.with_suffix(".json"))
        return n_new

    def make_room(self, n_bytes: int = 0) -> list[LedgerEntry]:
        """Give clips up by the owner's policy until `n_bytes` more may come; call it before a segment is begun.

        Returns:
            The ledger's entries of what was given up.

        Raises:
            DeviceError: there is no room, and the policy gives nothing (more) up; "newest" refuses finished clips instead.
        """
        if self.limits is None:
            return []
        with self._changing(frees=True) as database:
            entries, short_bytes = give_up(self, database, n_bytes)
        if short_bytes and self.limits.policy != "newest":
            raise DeviceError(
                f"spool {self.folder} is full: {short_bytes:,} bytes are missing and policy {self.limits.policy!r} gives up no "
                "more; `camloop upload` what waits, free space, or choose another limit or policy in [spool]"
            )
        return entries

    def pending(self, order: Literal["oldest", "fresh"] = "oldest", limit: int | None = None) -> list[SpooledClip]:
        """Return the clips that wait, in order of boot, number and monotonic time, or the other way round."""
        waiting, found = self.waiting(), list[SpooledClip]()
        for candidate in reversed(waiting) if order == "fresh" else waiting:
            if len(found) == limit:
                break
            try:
                clip = self.read(self.clips / f"{candidate.clip_id}.json")
            except ArtefactError:
                self.set_aside_damaged(candidate.clip_id)
                continue
            found += [clip] if clip is not None else []
        return found

    def set_aside_damaged(self, clip_id: str) -> bool:
        """Quarantine a waiting clip whose sidecar cannot be read, with its entry; False if it can be, or waits no more."""
        with self._changing(frees=True) as database:
            for known in (candidate for candidate in database.candidates() if candidate.clip_id == clip_id):
                try:
                    self.read(self.clips / f"{clip_id}.json")
                except ArtefactError as error:
                    self.set_aside(database, clip_id, str(error), known)
                    return True
        return False

    def waiting(self) -> list[Candidate]:
        """Return what is known of the clips that wait without reading their files, oldest first."""
        with self._reading() as database:
            return database.candidates()

    def state(self, clip_id: str) -> str | None:
        """Return pending, done, quarantined, lost, evicted, or None for a clip that was never here."""
        with self._reading() as database:
            return database.state(clip_id)

    def counts(self) -> dict[str, int]:
        """Return how many clips are in each state."""
        with self._reading() as database:
            return database.counts()

    @contextlib.contextmanager
    def sending(self, clip: SpooledClip) -> Iterator[bool]:
        """Keep a clip from being given up while it is sent; yields False when it is gone already."""
        try:
            fd = os.open(clip.path, os.O_RDONLY)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield clip.path.exists()
        finally:
            os.close(fd)

    def done(self, *clips: SpooledClip) -> None:
        """Mark clips as delivered, then delete their files; several at once cost hardly more than one."""
        with self._changing(frees=True) as database:
            database.commit([database.mark(clip.sidecar.clip_id, "done") for clip in clips])
            durable.remove_all(path for clip in clips for path in (clip.path, self.clips / f"{clip.sidecar.clip_id}.json"))

    def quarantine(self, clip: SpooledClip, reason: str) -> Path:
        """Put a clip aside that must not be sent, with the reason beside it, and return where it lies now."""
        with self._changing(frees=True) as database:
            self.set_aside(database, clip.sidecar.clip_id, reason, clip.sidecar)
        return self.quarantined / clip.path.name

    def ledger_pages(self) -> list[SealedPage]:
        """Seal what is to be told and return the pages that wait: put each under its `key`, then `ledger_delivered`."""
        with self._changing() as database:
            promised = database.promised()
            self.ledger.seal(promised, over=promised.keys() - database.boots_at_work())
            return self.ledger.pages()

    def ledger_delivered(self, page: SealedPage) -> None:
        """Mark a page that the store has."""
        with self._changing(frees=True):
            self.ledger.delivered(page)

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

    def read(self, sidecar_path: Path) -> SpooledClip | None:
        """Return the clip of a sidecar, None if either file is missing; ArtefactError if the sidecar cannot be read."""
        sidecar = read_sidecar(sidecar_path)
        if sidecar is None:
            return None
        path = sidecar_path.with_name(f"{sidecar.clip_id}.{sidecar.container}")
        return SpooledClip(path, sidecar) if path.exists() else None

    def entry(self, clip: Sidecar | Candidate, kind: Kind, reason: str) -> LedgerEntry:
        """Return a clip's entry for the ledger."""
        return LedgerEntry(
            camera_id=clip.camera_id, boot_id=clip.boot_id, seq=clip.seq, clip_id=clip.clip_id, kind=kind, reason=reason,
            n_bytes=clip.n_bytes, at_mono_ns=self._clock.mono_ns(),
        )  # fmt: skip

    @contextlib.contextmanager
    def _changing(self, *, frees: bool = False) -> Iterator[SpoolDatabase]:
        """Change something under the lock; what frees space may use the ballast."""
        with _explained(self.folder), self.locked("change", wait=True):
            if not self.database.is_current():  # deleted, replaced or condemned
                self.database.close()
                self.database = opened(self, self._clock)
            if frees:
                drop_ballast(self)
            try:
                yield self.database
            except sqlite3.DatabaseError as error:  # what no check at its opening could see
                self.database.condemn(error)
                raise
            take_ballast(self)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[SpoolDatabase]:
        if not self.database.is_current():
            with self._changing():
                pass
        with _explained(self.folder):
            yield self.database

    def close_numbers(self, database: SpoolDatabase, numbers: Iterable[Open], reason: str, clip_id: str | None = None) -> int:
        """Forfeit those of the numbers that are open; the caller holds the lock `change`."""
        still_open = set(database.open_reservations())
        closing = [number for number in numbers if number in still_open]
        entry = partial(LedgerEntry, kind="forfeited", clip_id=clip_id, reason=reason, at_mono_ns=self._clock.mono_ns())
        self.ledger.add(entry(**number._asdict()) for number in closing)
        if closing:
            database.commit([database.release(number) for number in closing])
            _log.warning("forfeited", numbers=[f"{n.camera_id}/{n.boot_id}/{n.seq}" for n in closing], reason=reason)
        return len(closing)

    def set_aside(self, database: SpoolDatabase, clip_id: str, reason: str, known: Sidecar | Candidate | None) -> None:
        """Quarantine a clip of which something is known, perhaps; the caller holds the lock `change`."""
        if known is not None:
            self.ledger.add([self.entry(known, "quarantined", reason)])
        durable.write(self.quarantined / f"{clip_id}.reason.txt", f"{reason}\n".encode())
        self.finish_setting_aside(database, clip_id, reason)

    def finish_setting_aside(self, database: SpoolDatabase, clip_id: str, reason: str) -> None:
        """Do what is left to do once the reason is written."""
        for path in sorted(self.clips.glob(f"{clip_id}.*"), key=lambda path: path.suffix == ".json"):
            durable.adopt(path, self.quarantined / path.name)
        database.commit([database.add_unread(clip_id, "quarantined", reason)])
        _log.warning("quarantined", clip_id=clip_id, reason=reason)

    def remove_files(self, clip_id: str) -> None:
        """Delete a clip, then its sidecar, which says what it was until the end."""
        for path in sorted(self.clips.glob(f"{clip_id}.*"), key=lambda path: path.suffix == ".json"):
            durable.remove(path)


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
        full = "full" in reason or getattr(error, "errno", 0) == errno.ENOSPC
        with contextlib.suppress(OSError):  # SQLite calls a full disk an I/O error, now and then
            if not full and disk_usage(folder)[1] < _FULL_BYTES:
                full, reason = True, f"{os.strerror(errno.ENOSPC)} ({reason})"
        remedy = "free space on it, or `camloop upload` what waits" if full else "check the disk and its rights"
        raise DeviceError(f"spool {folder}: {reason}; {remedy}") from error


def is_intact(clip: SpooledClip) -> bool:
    """Say whether the file's bytes are those that the recorder hashed."""
    return clip.path.stat().st_size == clip.sidecar.n_bytes and file_sha256(clip.path) == clip.sidecar.sha256
