"""Room in a full spool: what goes when the limits are reached, in an order that a crash cannot turn into silence.

Entries in the ledger, then rows, then clips, then sidecars. A crash after the entries is finished by `repair`: what was
entered goes. A clip that is being sent stays where it is. What lies in quarantine cannot be sent and is in the ledger
already: it goes first. The caller holds the lock `change`.

A disk that others filled to the last byte would refuse the entry itself, so a spool with limits keeps a ballast of one MiB
and drops it for as long as it is needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from infra import durable
from infra.log import Log
from infra.sequence import LedgerEntry
from ingest.policy import Candidate, give_up_order
from ingest.spool_database import SpoolDatabase

if TYPE_CHECKING:
    from ingest.spool import Spool

BALLAST_BYTES = 1 << 20  # entries, and the database's log of one change
_log = Log("ingest.spool")


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
        (spool.folder / ".ballast").unlink(missing_ok=True)


def take_ballast(spool: Spool) -> None:
    """Keep one MiB for the day when the disk is full, if there is plenty now."""
    path = spool.folder / ".ballast"
    if spool.limits is not None and not path.exists() and spool.disk(spool.folder)[1] > 4 * BALLAST_BYTES:
        durable.write(path, b"\0" * BALLAST_BYTES)


def give_up(spool: Spool, database: SpoolDatabase, more_bytes: int) -> tuple[list[LedgerEntry], int]:
    """Make room by the spool's policy; return the entries made and how many bytes are still missing."""
    short_bytes = excess_bytes(spool, database, more_bytes)
    if short_bytes == 0 or spool.limits is None or spool.limits.policy not in ("value", "oldest"):
        return [], short_bytes
    drop_ballast(spool)
    for path in sorted(spool.quarantined.iterdir()):
        if short_bytes > 0 and not path.name.endswith(".reason.txt"):
            short_bytes -= _size(path)
            _log.warning("quarantined_file_removed", path=path)
            durable.remove(path)
    with contextlib.ExitStack() as held:
        victims: list[Candidate] = []
        for candidate in give_up_order(database.candidates(), spool.limits.policy):
            if short_bytes <= 0:
                break
            if held.enter_context(_taken(spool.clips, candidate.clip_id)):
                victims.append(candidate)
                short_bytes -= candidate.n_bytes
        reason = f"the spool is full; policy {spool.limits.policy}"
        entries = [spool.entry(victim, "evicted", reason) for victim in victims]
        spool.ledger.add(entries)
        if victims:
            database.commit([database.mark(victim.clip_id, "evicted", reason) for victim in victims])
            n_bytes = sum(victim.n_bytes for victim in victims)
            _log.warning("evicted", n_clips=len(victims), n_bytes=n_bytes, policy=spool.limits.policy)
        for victim in victims:
            spool.remove_files(victim.clip_id)
    take_ballast(spool)
    return entries, max(0, short_bytes)


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
