"""What `Spool(folder)` does first: finish what a crash interrupted, and make database and files agree. The files are right.

0. What was begun under a temporary name goes.
1. Quarantine and giving up go on where a reason, or an entry in the ledger, says that they had begun.
2. Each clip file with a sidecar gets its row; a sidecar that cannot be read is put aside with its clip; one that came
   before its clip is removed (whoever was adopting it has the clip still).
3. A row without files is `lost`, and in the ledger.
4. Numbers go on above everything that is known: rows, files, ledger and marks. When the database was lost, the last
   numbers that may have been given out are entered as unknown: none is ever given twice, none is without a word.
5. A number that a recorder reserved, and that has neither a recorder nor an unfinished file, is forfeited.

The caller holds the lock `change`. Nothing here may fail halfway in a way that the next start would not take up again.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from infra import durable
from infra.clock import Clock
from infra.errors import ArtefactError, DeviceError
from infra.log import Log
from infra.records import Sidecar
from infra.sequence import SENT_BACK_SEQ, LedgerEntry
from ingest import policy
from ingest.marks import STRIDE
from ingest.spool_database import Open, SpoolDatabase

if TYPE_CHECKING:
    from ingest.spool import Spool

_log = Log("ingest.spool")
_BEGUN = re.compile(r"\.tmp-(?P<pid>\d+)-[0-9a-f]{12}")  # a temporary name of `durable`
DIED = "the recorder died before there was a clip"
DATABASE_LOST = "the spool's database was lost: this number was delivered, or no clip came of it"


GivenUp = set[tuple[str | None, Open]]


def opened(spool: Spool, clock: Clock) -> SpoolDatabase:
    """Return the spool's database after the repair; one that proves damaged meanwhile is made again, once."""
    for is_last in (False, True):
        with contextlib.ExitStack() as closing:
            database = SpoolDatabase(spool.folder / "spool.sqlite", clock)
            closing.callback(database.close)
            try:
                repair(spool, database)
            except sqlite3.DatabaseError as error:
                if is_last or not database.condemn(error):
                    raise
                continue
            closing.pop_all()
            return database
    raise AssertionError("the second time raises or returns")


def repair(spool: Spool, database: SpoolDatabase) -> None:
    """Do all of it."""
    _litter(spool)
    _finish_quarantine(spool, database)
    evicted = (entry for entry in spool.ledger.entries() if entry.kind == "evicted")
    given_up = {(entry.clip_id, Open(entry.camera_id, entry.boot_id, entry.seq)) for entry in evicted}
    found = [sidecar for path in sorted(spool.clips.glob("[!.]*.json")) if (sidecar := _sound(spool, database, path, given_up))]
    found.sort(key=lambda sidecar: (sidecar.boot_id, sidecar.seq))
    _boots(spool, database)
    if found:
        rows = (database.add(sidecar, _n_bytes(sidecar), policy.value(sidecar)) for sidecar in found)
        database.commit([statement for row in rows for statement in row])
    _lost(spool, database)
    _numbers(spool, database)
    _abandoned(spool, database)
    database.commit([database.forget()])


def read_sidecar(path: Path) -> Sidecar | None:
    """Return a clip's sidecar, None without one; ArtefactError if it is none, or the disk does not give it any more."""
    try:
        return Sidecar.from_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise ArtefactError(f"{path}: the disk does not give its bytes any more") from error


def _litter(spool: Spool) -> None:
    """Remove what `durable` had begun when a process died; in `recording/`, where others write without the lock, only then."""
    for pattern in ("clips/.tmp-*", "quarantine/.tmp-*", "ledger/*/.tmp-*", "sequence/*/.tmp-*"):
        for path in spool.folder.glob(pattern):
            durable.remove(path)
    for path in spool.recording.iterdir():
        match = _BEGUN.fullmatch(path.name)
        if match and not Path(f"/proc/{match['pid']}").exists():
            durable.remove(path)


def _finish_quarantine(spool: Spool, database: SpoolDatabase) -> None:
    for reason_path in sorted(spool.quarantined.glob("[!.]*.reason.txt")):
        clip_id = reason_path.name.removesuffix(".reason.txt")
        if database.state(clip_id) != "quarantined":
            reason = reason_path.read_text().strip()
            for path in (spool.clips / f"{clip_id}.json", spool.quarantined / f"{clip_id}.json"):
                with contextlib.suppress(ArtefactError):
                    if sidecar := read_sidecar(path):
                        database.commit(database.add(sidecar, _n_bytes(sidecar), 0.0))
                        break
            spool.finish_setting_aside(database, clip_id, reason)


def _sound(spool: Spool, database: SpoolDatabase, path: Path, given_up: GivenUp) -> Sidecar | None:
    """Return the sidecar of a clip that needs a row."""
    clip_id, state, known_as = path.stem, database.state(path.stem), database.number(path.stem)
    if state == "pending" and known_as is not None and (clip_id, known_as) not in given_up:
        return None  # known; its files are looked at by `_lost`
    try:
        clip = spool.read(path)
    except ArtefactError as error:
        _log.error("sidecar_damaged", clip_id=clip_id, error=str(error))
        known = next((candidate for candidate in database.candidates() if candidate.clip_id == clip_id), None)
        spool.set_aside(database, clip_id, str(error), known)
        return None
    if clip is None:
        if state != "pending":
            durable.remove(path)
        return None
    number = Open(clip.sidecar.camera_id, clip.sidecar.boot_id, clip.sidecar.seq)
    if state == "done" or (state == "evicted" and known_as == number) or (clip_id, number) in given_up:
        if state != "done":
            reason = "the spool was full"
            database.commit(database.add(clip.sidecar, _n_bytes(clip.sidecar), 0.0, "evicted", reason))
        spool.remove_files(clip_id)
        return None
    return clip.sidecar


def _n_bytes(sidecar: Sidecar) -> int:
    return sidecar.n_bytes + len(sidecar.to_json())


def _boots(spool: Spool, database: SpoolDatabase) -> None:
    """Give the boots the order that they had, before a new database makes one of its own."""
    if database.was_rebuilt:
        marks = sorted(spool.marks, key=lambda mark: mark.boot_number)
        database.commit([database.put_boot(mark.boot_number, mark.boot_id) for mark in marks])


def _lost(spool: Spool, database: SpoolDatabase) -> None:
    names = {path.name for path in spool.clips.iterdir()}
    stems = {name.rpartition(".")[0] for name in names if not name.endswith(".json")}
    for clip in database.candidates():
        if clip.clip_id not in stems or f"{clip.clip_id}.json" not in names:
            if clip.seq is not None:
                spool.ledger.add([spool.entry(clip, "lost", "its file is gone")])
            database.commit([database.mark(clip.clip_id, "lost", "its file is gone")])
            spool.remove_files(clip.clip_id)
            _log.error("clip_lost", clip_id=clip.clip_id, folder=spool.clips)


def _numbers(spool: Spool, database: SpoolDatabase) -> None:
    known = database.highest_seq()
    for key, next_seq in spool.ledger.next_seq().items():
        known[key] = max(known.get(key, 0), next_seq)
    for (camera_id, boot_id), next_seq in known.items():
        if database.next_seq(camera_id, boot_id) < next_seq <= SENT_BACK_SEQ:
            database.commit(database.raise_to(camera_id, boot_id, next_seq))
    for mark in spool.marks:
        next_seq = database.next_seq(mark.camera_id, mark.boot_id)
        if database.was_rebuilt or not mark.below - STRIDE <= next_seq <= mark.below:
            accounted = database.seqs(mark.camera_id, mark.boot_id)
            for entry in spool.ledger.entries():
                if (entry.camera_id, entry.boot_id) == (mark.camera_id, mark.boot_id):
                    accounted.update(range(entry.seq, entry.seq + entry.n))
            unknown = [seq for seq in range(max(0, mark.below - STRIDE), mark.below) if seq not in accounted]
            spool.ledger.add(
                LedgerEntry(camera_id=mark.camera_id, boot_id=mark.boot_id, seq=seq, kind="unknown", reason=DATABASE_LOST)
                for seq in unknown
            )
            database.commit(database.raise_to(mark.camera_id, mark.boot_id, mark.below, promised=True))
            _log.error("numbers_unknown", camera_id=mark.camera_id, boot_id=mark.boot_id, n=len(unknown))


def _abandoned(spool: Spool, database: SpoolDatabase) -> None:
    numbers = database.open_reservations()
    for camera_id in sorted({number.camera_id for number in numbers}):
        if not any(spool.recording.glob(f".tmp-{camera_id}-*")):
            with contextlib.suppress(DeviceError), spool.locked(f"record-{camera_id}"):
                mine: list[Open] = [number for number in numbers if number.camera_id == camera_id]
                spool.close_numbers(database, mine, DIED)
