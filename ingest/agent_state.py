"""What the agent last said about itself, for `camloop agent status`: one JSON document in two places.

The live one lies in memory (/run, or what the system has) and is replaced every ten seconds; `<spool>/agent.json` names
it and is written when the agent starts and stops and once an hour, because an SD card wears out. Who reads takes the
newer one; a file that is missing or torn is no state.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import durable
from infra.errors import DeviceError
from infra.keys import sha256_hex

FILE_NAME = "agent.json"
LOCK_NAME = ".agent.lock"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolGlance:
    """What the spool holds: clips that wait, their bytes, when the oldest came (UTC ns), and what else became of clips."""

    n_pending: int = 0
    n_bytes: int = 0
    oldest_ns: int | None = None
    n_evicted: int = 0
    n_quarantined: int = 0
    n_lost: int = 0
    n_delivered: int = 0


def glance(folder: Path) -> SpoolGlance | None:
    """Look at a spool's database without opening the spool (nothing is repaired or locked); None where that fails."""
    try:
        with closing(sqlite3.connect(f"file:{(folder / 'spool.sqlite').resolve()}?mode=ro", uri=True, timeout=1)) as database:
            counts = dict(database.execute("SELECT state, count(*) FROM clips GROUP BY state").fetchall())
            of_pending = "SELECT min(added_ns), coalesce(sum(n_bytes), 0) FROM clips WHERE state = 'pending'"
            ((oldest_ns, n_bytes),) = database.execute(of_pending).fetchall()
    except sqlite3.Error:
        return None
    return SpoolGlance(
        n_pending=counts.get("pending", 0), n_bytes=n_bytes, oldest_ns=oldest_ns, n_evicted=counts.get("evicted", 0),
        n_quarantined=counts.get("quarantined", 0), n_lost=counts.get("lost", 0), n_delivered=counts.get("done", 0),
    )  # fmt: skip


def live_path(spool: Path, runtime_folder: Path) -> Path:
    """Return where the agent of this spool keeps its live state."""
    return runtime_folder / f"camloop-{os.getuid()}-{sha256_hex(str(spool.resolve()).encode())[:12]}.json"


def publish(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a state file, whole.

    Raises:
        OSError: the disk or the folder refuses.
    """
    durable.write(path, json.dumps({"schema": SCHEMA, **document}, ensure_ascii=False, separators=(",", ":")).encode())


def read_state(spool: Path) -> dict[str, Any] | None:
    """Return what the agent of this spool last said, live or from the disk; None if there never was one."""
    kept = _read(spool / FILE_NAME)
    live = _read(Path(kept["live"])) if kept is not None and isinstance(kept.get("live"), str) else None
    if kept is None or live is None or live.get("spool") != kept.get("spool"):
        return kept
    if (live.get("boot_id"), live.get("started_mono_ns")) != (kept.get("boot_id"), kept.get("started_mono_ns")):
        return kept
    return live if live.get("at_mono_ns", 0) >= kept.get("at_mono_ns", 0) else kept


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None


@contextmanager
def only_agent(spool: Path) -> Iterator[None]:
    """Be the only agent of a spool; a crash gives the place up.

    Raises:
        DeviceError: another agent runs on it, or its disk refuses.
    """
    try:
        durable.make_dirs(spool)
        fd = os.open(spool / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DeviceError(f"spool {spool}: {error.strerror}; give it to the user that camloop runs as") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.2)  # `status` holds it for an instant, to see whether anybody does
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.read(fd, 20).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise DeviceError(
            f"spool {spool}: another agent runs on it (process {pid}); `camloop agent status` shows it"
        ) from error
    try:
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)


def is_running(spool: Path) -> bool:
    """Say whether an agent runs on this spool, by its lock."""
    try:
        fd = os.open(spool / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
