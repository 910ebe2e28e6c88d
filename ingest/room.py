"""Room in a full spool: what goes when the limits are reached, in an order that a crash cannot turn into silence.

Entries in the ledger, then rows, then clips, then sidecars. A crash after the entries is finished by `repair`: what was
entered goes. A clip that is being sent stays where it is. What lies in quarantine cannot be sent and is in the ledger
already: it goes first. The caller holds the lock `change`.

A disk that is full to the last byte would refuse the entry itself, and the row of a clip that was delivered: nothing could
go any more. So a spool keeps a ballast of one MiB and drops it for as long as it is needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from infra import durable
from infra.log import Log
from infra.sequence import LedgerEntry
from ingest.policy import Candidate, give_up_order
from ingest.spool_database import SpoolDatabase

if TYPE_CHECKING:
    from ingest.spool import Spool

DiskUsage = Callable[[Path], tuple[int, int]]
_BALLAST = ".ballast"
BALLAST_BYTES = 1 << 20  # entries, and the database's log of one change
BATCH = 64  # clips given up together: two descriptors each, of the 256 that the strictest host allows
_log = Log("ingest.spool")


def disk_usage(folder: Path) -> tuple[int, int]:
    """Return (total, free) bytes of a folder's file system, free as an ordinary user may use it."""
    usage = shutil.disk_usage(folder)
    return usage.total, usage.free


def excess_bytes(spool: Spool, database: SpoolDatabase, more_bytes: int, path: Path | None = None) -> int:
    """Return how many bytes must go before `more_bytes` may come; 0 without limits.

    Args:
        path: the file that is to come, if it lies on this disk already.
    """
    if spool.limits is None:
        return 0
    others = (file for folder in (spool.quarantined, spool.recording) for file in folder.iterdir() if file != path)
    used_bytes = database.pending_bytes() + sum(_size(file) for file in others)
    total_bytes, free_bytes = spool.disk(spool.folder)
    if path is not None and path.stat().st_dev == spool.folder.stat().st_dev:
        free_bytes += more_bytes
    return spool.limits.excess_bytes(used_bytes, more_bytes, total_bytes, free_bytes)


def drop_ballast(spool: Spool) -> None:
    """Make the last MiB of a full disk free for what must be written."""
    if spool.disk(spool.folder)[1] < BALLAST_BYTES:
        (spool.folder / _BALLAST).unlink(missing_ok=True)


def take_ballast(spool: Spool) -> None:
    """Keep one MiB for the day when the disk is full, if there is plenty now; it is reserved, not written.

    A disk that refuses it costs only this: the change before it was made.
    """
    path = spool.folder / _BALLAST
    with contextlib.suppress(OSError):
        if _size(path) < BALLAST_BYTES and spool.disk(spool.folder)[1] >= 2 * BALLAST_BYTES:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.posix_fallocate(fd, 0, BALLAST_BYTES)
            finally:
                os.close(fd)


def give_up(spool: Spool, database: SpoolDatabase, more_bytes: int) -> tuple[list[LedgerEntry], int]:
    """Make room by the spool's policy; return the entries made and how many bytes are still missing."""
    short_bytes = excess_bytes(spool, database, more_bytes)
    if short_bytes == 0 or spool.limits is None or spool.limits.policy not in ("value", "oldest"):
        return [], short_bytes
    for path in sorted(spool.quarantined.iterdir()):
        if short_bytes > 0 and not path.name.endswith(".reason.txt"):
            short_bytes -= _size(path)
            _log.warning("quarantined_file_removed", path=path)
            durable.remove(path)
    reason, entries = f"the spool is full; policy {spool.limits.policy}", list[LedgerEntry]()
    candidates = iter(give_up_order(database.candidates(), spool.limits.policy) if short_bytes > 0 else ())
    while short_bytes > 0 and (batch := list(islice(candidates, BATCH))):
        made = _give_up_some(spool, database, batch, short_bytes, reason)
        entries += made
        short_bytes -= sum(entry.n_bytes for entry in made)
    return entries, max(0, short_bytes)


def _give_up_some(
    spool: Spool, database: SpoolDatabase, batch: Iterable[Candidate], short_bytes: int, reason: str
) -> list[LedgerEntry]:
    """Give up clips of a batch until enough has gone; return their entries. Their files are held open meanwhile."""
    with contextlib.ExitStack() as held:
        victims: list[Candidate] = []
        for candidate in batch:
            if short_bytes <= 0:
                break
            if held.enter_context(_taken(spool.clips, candidate.clip_id)):
                victims.append(candidate)
                short_bytes -= candidate.n_bytes
        entries = [spool.entry(victim, "evicted", reason) for victim in victims]
        spool.ledger.add(entries)
        if victims:
            database.commit([database.mark(victim.clip_id, "evicted", reason) for victim in victims])
            n_bytes = sum(victim.n_bytes for victim in victims)
            _log.warning("evicted", n_clips=len(victims), n_bytes=n_bytes, reason=reason)
        for victim in victims:
            spool.remove_files(victim.clip_id)
    return entries


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a recorder's, gone meanwhile
        return 0


@contextlib.contextmanager
def _taken(folder: Path, clip_id: str) -> Iterator[bool]:
    """Take a clip's files from whoever would send them; yields False when somebody is sending them now."""
    with contextlib.ExitStack() as closing:
        try:
            for path in folder.glob(f"{clip_id}.*"):
                fd = os.open(path, os.O_RDONLY)
                closing.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
