"""The spool's memory: which numbers were given out, which clips are in which state, in what order they were filmed.

SQLite in WAL mode with synchronous=FULL: what a method committed survives a power cut, and every commit goes through
`SpoolDatabase.commit`. All of it can be found again from the files (`spool.py`, `sequence/`), so a damaged database is put
aside and a new one begun; `was_rebuilt` says so.

The order of clips is (boot, number in the sequence of their camera); between cameras of a boot it is the monotonic time.
The wall clock has no part in it: boots are numbered in the order in which this host saw them first.
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from infra import durable
from infra.clock import Clock
from infra.log import Log
from infra.records import Sidecar
from infra.sequence import SENT_BACK_SEQ
from ingest.policy import Candidate

VERSION = 2
REMEMBERED = 20_000  # clips that are gone: what is older may be sent again, which is harmless, and a card is small
Statement = tuple[str, Sequence[Any]]
_log = Log("ingest.spool")
_NOT_DAMAGE = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_MISUSE,
)  # fmt: skip
_TABLES = (
    "CREATE TABLE IF NOT EXISTS boots (number INTEGER PRIMARY KEY, boot_id TEXT NOT NULL UNIQUE, crc INTEGER NOT NULL)",
    """CREATE TABLE IF NOT EXISTS sequences (
        camera_id TEXT NOT NULL, boot_id TEXT NOT NULL, next_seq INTEGER NOT NULL, promised INTEGER NOT NULL,
        crc INTEGER NOT NULL, PRIMARY KEY (camera_id, boot_id)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS reservations (
        camera_id TEXT NOT NULL, boot_id TEXT NOT NULL, seq INTEGER NOT NULL, crc INTEGER NOT NULL,
        PRIMARY KEY (camera_id, boot_id, seq)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS clips (
        number INTEGER PRIMARY KEY,
        clip_id TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL CHECK (state IN ('pending', 'done', 'quarantined', 'lost', 'evicted')),
        added_ns INTEGER NOT NULL,
        reason TEXT,
        camera_id TEXT, boot_id TEXT, seq INTEGER, start_mono_ns INTEGER, n_bytes INTEGER, value REAL, "trigger" TEXT,
        crc INTEGER)""",
    "CREATE INDEX IF NOT EXISTS clips_by_state ON clips (state)",
)
_FROM_VERSION_1 = (
    "ALTER TABLE clips RENAME TO clips_1",
    *_TABLES,
    "INSERT INTO clips (number, clip_id, state, added_ns, reason) SELECT number, clip_id, state, added_ns, reason FROM clips_1",
    "DROP TABLE clips_1",
)
# SQLite does not see a flipped bit in the text of its schema or in a value: these do.
_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
_WRONG = (
    "SELECT count(*) FROM sequences WHERE crc != row_crc(camera_id, boot_id, next_seq)",
    "SELECT count(*) FROM reservations WHERE crc != row_crc(camera_id, boot_id, seq)",
    "SELECT count(*) FROM clips WHERE crc != row_crc(clip_id, camera_id, boot_id, seq, start_mono_ns, n_bytes, value)",
    "SELECT count(*) FROM boots WHERE crc != row_crc(boot_id)",
)
_TRIAL = (
    "INSERT INTO clips (clip_id, state, added_ns) VALUES ('', 'pending', 0)",
    "INSERT INTO boots (boot_id, crc) VALUES ('', 0)",
    "INSERT INTO sequences VALUES ('', '', 0, 0, 0)",
    "INSERT INTO reservations VALUES ('', '', 0, 0)",
)
_ORDERED = f"""
    SELECT clip_id, camera_id, clips.boot_id, seq, start_mono_ns, n_bytes, value, "trigger"
    FROM clips LEFT JOIN boots ON boots.boot_id = clips.boot_id WHERE state = 'pending'
    ORDER BY boots.number, max(start_mono_ns) OVER (PARTITION BY clips.boot_id, camera_id, seq >= {SENT_BACK_SEQ} ORDER BY seq),
        camera_id, seq, clips.number"""


def _is_damage(error: Exception) -> bool:
    if isinstance(error, (sqlite3.ProgrammingError, sqlite3.InterfaceError)):
        return False  # a wrong call, such as on a closed connection, says nothing about the file
    return (getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF) not in _NOT_DAMAGE


def _row_crc(*values: object) -> int:
    return zlib.crc32(repr(values).encode())


class Open(NamedTuple):
    """A number that was given out and has not become a clip or an entry yet."""

    camera_id: str
    boot_id: str
    seq: int


class SpoolDatabase:
    """One connection. Several processes may have one each; writers hold the spool's lock.

    Args:
        path: made if missing; put aside as `<name>.damaged-<time>` and begun again if it is no sound database.

    Raises:
        sqlite3.Error: the disk is full, read-only or broken.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock, self._path = clock, path
        self.was_rebuilt = not path.exists()
        try:
            self._database = self._connected(path)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter: sqlite3 quotes a schema that is no text
            if not _is_damage(error):
                raise
            self._put_aside(error)
            self._database, self.was_rebuilt = self._connected(path), True
        self._inode = path.stat().st_ino

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    def condemn(self, error: Exception) -> bool:
        """Put the database aside if `error` says that it is damaged, so that the next change makes it again; else False."""
        if not _is_damage(error):
            return False
        self._database.close()
        self._put_aside(error)
        return True

    def _put_aside(self, error: Exception) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged-{self._clock.now_ns()}")
        _log.error("database_damaged", path=self._path, kept_as=aside, error=str(error))
        durable.adopt(self._path, aside)
        for suffix in ("-wal", "-shm"):
            durable.remove(self._path.with_name(self._path.name + suffix))
        before = [path for path in self._path.parent.glob(f"{self._path.name}.damaged-*") if path != aside]
        for path in sorted(before, key=lambda path: path.stat().st_mtime_ns)[:-1]:  # this one and the one before are kept
            durable.remove(path)

    def is_current(self) -> bool:
        """Say whether the file is still the one that was opened."""
        return self._path.exists() and self._path.stat().st_ino == self._inode

    def commit(self, statements: Iterable[Statement]) -> None:
        """Do all statements or none; when this returns they survive a power cut."""
        with self._database:  # commits what was begun, or rolls it back
            self._database.execute("BEGIN IMMEDIATE")
            for sql, values in statements:
                self._database.execute(sql, values)

    def state(self, clip_id: str) -> str | None:
        """Return a clip's state, None if it was never here."""
        rows = self._query("SELECT state FROM clips WHERE clip_id = ?", clip_id)
        return rows[0][0] if rows else None

    def number(self, clip_id: str) -> Open | None:
        """Return the number a clip came in with, None if it was never here or nobody knows."""
        rows = self._query("SELECT camera_id, boot_id, seq FROM clips WHERE clip_id = ? AND seq IS NOT NULL", clip_id)
        return Open(*rows[0]) if rows else None

    def counts(self) -> dict[str, int]:
        """Return how many clips are in each state."""
        return {state: int(n) for state, n in self._query("SELECT state, count(*) FROM clips GROUP BY state ORDER BY state")}

    def candidates(self) -> list[Candidate]:
        """Return the clips that wait, oldest first."""
        return [Candidate(*row) for row in self._query(_ORDERED)]

    def pending_bytes(self) -> int:
        """Return the bytes of all clips that wait, with their sidecars."""
        return int(self._query("SELECT coalesce(sum(n_bytes), 0) FROM clips WHERE state = 'pending'")[0][0])

    def clips_in(self, state: str) -> list[tuple[str, str | None, str | None, int | None, int | None]]:
        """Return (clip_id, camera_id, boot_id, seq, n_bytes) of the clips in a state."""
        return self._query("SELECT clip_id, camera_id, boot_id, seq, n_bytes FROM clips WHERE state = ? ORDER BY number", state)

    def next_seq(self, camera_id: str, boot_id: str) -> int:
        """Return the first number not given out."""
        rows = self._query("SELECT next_seq FROM sequences WHERE camera_id = ? AND boot_id = ?", camera_id, boot_id)
        return int(rows[0][0]) if rows else 0

    def highest_seq(self) -> dict[tuple[str, str], int]:
        """Return the first number above those of all clips, by (camera, boot)."""
        rows = self._query(
            "SELECT camera_id, boot_id, max(seq) + 1 FROM clips WHERE seq < ? GROUP BY camera_id, boot_id", SENT_BACK_SEQ
        )
        return {(camera_id, boot_id): int(next_seq) for camera_id, boot_id, next_seq in rows}

    def seqs(self, camera_id: str, boot_id: str) -> set[int]:
        """Return the numbers of all clips of a camera and boot."""
        return {seq for (seq,) in self._query("SELECT seq FROM clips WHERE camera_id = ? AND boot_id = ?", camera_id, boot_id)}

    def promised(self) -> dict[str, dict[str, int]]:
        """Return, by boot and camera, the first number not given out, of those sequences that were reserved from."""
        found: dict[str, dict[str, int]] = {}
        rows = self._query("SELECT camera_id, boot_id, next_seq FROM sequences WHERE promised = 1")
        for camera_id, boot_id, next_seq in rows:
            found.setdefault(boot_id, {})[camera_id] = int(next_seq)
        return found

    def boot_number(self, boot_id: str) -> int:
        """Return the place of a boot among those of this host, the next free one if it is new."""
        rows = self._query("SELECT number FROM boots WHERE boot_id = ?", boot_id)
        return int(rows[0][0] if rows else self._query("SELECT coalesce(max(number), 0) + 1 FROM boots")[0][0])

    def open_reservations(self) -> list[Open]:
        """Return the numbers that were given out and not used or forfeited yet."""
        rows = self._query("SELECT camera_id, boot_id, seq FROM reservations ORDER BY boot_id, camera_id, seq")
        return [Open(*row) for row in rows]

    def boots_at_work(self) -> set[str]:
        """Return the boots that have numbers under way or clips that wait."""
        sql = "SELECT boot_id FROM reservations UNION SELECT boot_id FROM clips WHERE state = 'pending'"
        return {boot_id for (boot_id,) in self._query(sql)}

    def add(
        self, sidecar: Sidecar, n_bytes: int, value: float, state: str = "pending", reason: str | None = None
    ) -> list[Statement]:
        """Return the statements that put a clip in and close its reservation."""
        facts = (sidecar.camera_id, sidecar.boot_id, sidecar.seq, sidecar.start_mono_ns, n_bytes, float(value), sidecar.trigger)
        names = 'camera_id, boot_id, seq, start_mono_ns, n_bytes, value, "trigger", crc'
        updates = ", ".join(f"{name} = excluded.{name}" for name in names.split(", "))
        insert = (
            f"INSERT INTO clips (clip_id, state, added_ns, reason, {names}) "
            "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, row_crc(?1, ?5, ?6, ?7, ?8, ?9, ?10)) "
            f"ON CONFLICT (clip_id) DO UPDATE SET state = excluded.state, reason = excluded.reason, {updates} "
            "WHERE state != 'done'"
        )
        return [
            (insert, (sidecar.clip_id, state, self._clock.now_ns(), reason, *facts)),
            *self.raise_to(sidecar.camera_id, sidecar.boot_id, sidecar.seq + 1 if sidecar.seq < SENT_BACK_SEQ else 0),
            self.release(Open(sidecar.camera_id, sidecar.boot_id, sidecar.seq)),
        ]

    def raise_to(self, camera_id: str, boot_id: str, next_seq: int, *, promised: bool = False) -> list[Statement]:
        """Return the statements after which no number below `next_seq` is given out."""
        return [
            ("INSERT OR IGNORE INTO boots (boot_id, crc) VALUES (?1, row_crc(?1))", (boot_id,)),
            (
                "INSERT INTO sequences VALUES (?1, ?2, ?3, ?4, row_crc(?1, ?2, ?3)) ON CONFLICT DO UPDATE SET "
                "next_seq = max(next_seq, ?3), promised = max(promised, ?4), crc = row_crc(?1, ?2, max(next_seq, ?3))",
                (camera_id, boot_id, next_seq, int(promised)),
            ),
        ]

    @staticmethod
    def reserve(number: Open) -> Statement:
        """Return the statement that opens a number."""
        return ("INSERT OR IGNORE INTO reservations VALUES (?1, ?2, ?3, row_crc(?1, ?2, ?3))", number)

    @staticmethod
    def release(number: Open) -> Statement:
        """Return the statement that closes a number."""
        return ("DELETE FROM reservations WHERE camera_id = ? AND boot_id = ? AND seq = ?", number)

    @staticmethod
    def mark(clip_id: str, state: str, reason: str | None = None) -> Statement:
        """Return the statement that changes a clip's state."""
        return ("UPDATE clips SET state = ?, reason = ? WHERE clip_id = ?", (state, reason, clip_id))

    def add_unread(self, clip_id: str, state: str, reason: str) -> Statement:
        """Return the statement that puts in a clip whose sidecar nobody can read."""
        sql = (
            "INSERT INTO clips (clip_id, state, added_ns, reason) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (clip_id) DO UPDATE SET state = excluded.state, reason = excluded.reason"
        )
        return (sql, (clip_id, state, self._clock.now_ns(), reason))

    @staticmethod
    def forget(remembered: int = REMEMBERED) -> Statement:
        """Return the statement that drops the oldest rows of clips that are no longer here."""
        newest = "(SELECT coalesce(max(number), 0) FROM clips)"
        return (f"DELETE FROM clips WHERE state IN ('done', 'evicted') AND number <= {newest} - ?", (remembered,))

    @staticmethod
    def put_boot(number: int, boot_id: str) -> Statement:
        """Return the statement that gives a boot the place it had in a database that was lost."""
        return ("INSERT OR IGNORE INTO boots VALUES (?1, ?2, row_crc(?2))", (number, boot_id))

    def _query(self, sql: str, *values: Any) -> list[Any]:
        return self._database.execute(sql, values).fetchall()

    @staticmethod
    def _schema() -> list[Any]:
        """Return the schema of a sound database, as SQLite tells it."""
        with contextlib.closing(sqlite3.connect(":memory:")) as database:
            for sql in _TABLES:
                database.execute(sql)
            return database.execute(_SCHEMA).fetchall()

    def _connected(self, path: Path) -> sqlite3.Connection:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            versions = file.read(20)[18:]
            if any(version > 2 for version in versions):  # SQLite calls such a file "readonly", which a sound one may be too
                raise sqlite3.DatabaseError(f"its header names the file formats {list(versions)}; legal: 1 and 2")
        database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        database.create_function("row_crc", -1, _row_crc, deterministic=True)
        try:
            database.execute("PRAGMA page_size = 1024")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            ((verdict,), *_) = database.execute("PRAGMA integrity_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(str(verdict))
            ((version,),) = database.execute("PRAGMA user_version").fetchall()
            if version > VERSION:  # a flipped bit, or a newer camloop: both begin again from the files
                raise sqlite3.DatabaseError(f"version {version}; this camloop reads {VERSION}")
            if version < VERSION:
                old = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'clips'").fetchone()[0]
                database.execute("BEGIN IMMEDIATE")
                for sql in _FROM_VERSION_1 if old else _TABLES:
                    database.execute(sql)
                database.execute(f"PRAGMA user_version = {VERSION}")
                database.execute("COMMIT")
            if database.execute(_SCHEMA).fetchall() != self._schema():
                raise sqlite3.DatabaseError("its tables are not those that were made")
            if any(database.execute(wrong).fetchone()[0] for wrong in _WRONG):
                raise sqlite3.DatabaseError("a row does not hold what was written")
            database.execute("BEGIN IMMEDIATE")
            for sql in _TRIAL:
                database.execute(sql)
            database.execute("ROLLBACK")
        except (sqlite3.Error, UnicodeDecodeError):
            database.close()
            raise
        return database
