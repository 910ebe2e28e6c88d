"""Keeping the tables healthy: check, repair, compact. The work behind `camloop doctor`.

`check` reads every byte and reports. `repair` sets a damaged end of a log aside (renamed, never deleted); rows whose
`done` went with it are invisible, and the next run of their step makes them again.

`compact` joins small files into larger ones with the same rows, their `batch_id` kept, and removes what nobody needs:
files that no version of the last 24 hours held. So a slow writer, a reader and a pinned snapshot have a day. One
compactor at a time holds the lease, an object written with put-if-absent and taken over with put-if-match once it expired.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import polars as pl
import pyarrow as pa

from infra import datafiles, keys, tables
from infra.catalog import Catalog
from infra.clock import Clock, SystemClock
from infra.deltalog import COMPACTED, DataFile, DeltaLog
from infra.errors import CatalogError, ObjectChanged, ObjectExists, StoreError
from infra.store import Store

KEEP_S: Final = 24 * 3600.0  # never delete what is younger than the longest possible commit (RELIABILITY.md 1.2)
LEASE_S: Final = 3600.0
LEASE_KEY: Final = "leases/compact.json"
SMALL_BYTES: Final = 8 << 20
TARGET_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Compacted:
    """What compaction did to one table."""

    table: str
    n_files_before: int
    n_files_after: int
    n_objects_removed: int


def check(catalog: Catalog) -> list[str]:
    """Read every log and every data file of the newest versions; return each damage in words, with its file's name."""
    problems = []
    for table in tables.SCHEMAS:
        damage = catalog.log(table).check()
        problems += [f"table {table}: {words}" for words in damage]
        if damage:
            continue
        try:
            for file in catalog.log(table).files():
                problems += _damage(catalog.store, table, file)
        except CatalogError as error:
            problems.append(str(error))
    return problems


def _damage(store: Store, table: str, file: DataFile) -> list[str]:
    try:
        n_rows = sum(frame.height for frame in datafiles.read(store, table, file, tables.SCHEMAS[table].names))
    except CatalogError as error:
        return [str(error)]
    return [] if n_rows == file.n_rows else [f"data file {file.name}: {n_rows} rows, its log says {file.n_rows}"]


def repair(catalog: Catalog) -> list[str]:
    """Set damaged ends of logs aside; return the new names of the files that were renamed."""
    return [name for table in tables.SCHEMAS for name in catalog.log(table).repair()]


def compact(catalog: Catalog, *, clock: Clock | None = None, owner: str = "doctor") -> list[Compacted]:
    """Join small files and remove unneeded ones, in all tables that need it.

    Args:
        catalog: a catalog that is not pinned.
        clock: what tells the age of files and of the lease.
        owner: who holds the lease, for the message to others.

    Raises:
        CatalogError: another compactor holds the lease, or a log is damaged.
    """
    clock = clock or SystemClock()
    done = []
    with _lease(catalog.store, clock, owner) as renew:
        named = set(catalog.scan("done", ["batch_id"], live=False).collect()["batch_id"])
        for table in tables.SCHEMAS:
            log = catalog.log(table)
            if log.version() is None:
                continue
            renew()
            before = log.files()
            _join_small(catalog.store, log, before, None if table in tables.WRITTEN_ALONE else named, clock)
            after = log.files()
            if after != before:
                log.checkpoint()
            n_removed = _remove_unneeded(catalog.store, log, after, clock)
            if after != before or n_removed:
                done.append(Compacted(table, len(before), len(after), n_removed))
    return done


def _join_small(store: Store, log: DeltaLog, files: Sequence[DataFile], named: set[str] | None, clock: Clock) -> None:
    """Replace groups of small files; files of batches that `done` never named are dropped when a day old, else left."""
    small = [file for file in files if file.n_bytes < SMALL_BYTES]
    if named is not None:
        orphans = [file for file in files if file.batch_id not in named and not file.is_compacted]
        small = [file for file in small if file not in orphans]
        old = [file for file in orphans if _age_s(store, log, file, clock) > KEEP_S]
        if old:
            log.replace([], old, clock=clock)
    group: list[DataFile] = []
    for file in [*small, None]:
        full = file is None or sum(member.n_bytes for member in group) + file.n_bytes > TARGET_BYTES
        if full and len(group) > 1:
            parts = [
                part for member in group for part in datafiles.read(store, log.table, member, tables.SCHEMAS[log.table].names)
            ]
            made = datafiles.encode(log.table, _as_table(log.table, pl.concat(parts)), f"{COMPACTED}{keys.new_id()}")
            log.replace(made, group, clock=clock)
        if full:
            group = []
        if file is not None:
            group.append(file)


def _as_table(table: str, frame: pl.DataFrame) -> pa.Table:
    schema = tables.SCHEMAS[table]
    return pa.table([frame[field.name].to_arrow().cast(field.type) for field in schema], schema=schema)


def _age_s(store: Store, log: DeltaLog, file: DataFile, clock: Clock) -> float:
    stat = store.head(f"{log.prefix}/{file.name}")
    return 0.0 if stat is None else (clock.now_ns() - stat.modified_ns) / 1e9


def _remove_unneeded(store: Store, log: DeltaLog, files: Sequence[DataFile], clock: Clock) -> int:
    """Delete data files that no version of the last day held: crashed writers' and compacted ones."""
    since_ns = clock.now_ns() - round(KEEP_S * 1e9)
    needed = {file.name for file in files}
    candidates = []
    for stat in store.list(f"{log.prefix}/"):
        name = stat.key.removeprefix(f"{log.prefix}/")
        if name.startswith("_delta_log/") and name.endswith(".json") and stat.modified_ns >= since_ns:
            actions = (json.loads(line) for line in store.get(stat.key).splitlines())
            needed |= {action["remove"]["path"] for action in actions if "remove" in action}
        elif name.endswith(".parquet") and "/" not in name and stat.modified_ns < since_ns:
            candidates.append(name)
    unneeded = [name for name in candidates if name not in needed]
    for name in unneeded:
        store.delete(f"{log.prefix}/{name}")
    return len(unneeded)


@contextmanager
def _lease(store: Store, clock: Clock, owner: str) -> Iterator[_Lease]:
    lease = _Lease(store, clock, owner)
    lease.take()
    try:
        yield lease
    finally:
        lease.give_back()


class _Lease:
    """The right to compact: calling it renews it."""

    def __init__(self, store: Store, clock: Clock, owner: str) -> None:
        self._store, self._clock, self._owner = store, clock, owner
        self._etag = ""

    def _document(self, seconds: float) -> bytes:
        return json.dumps({"owner": self._owner, "expires_ns": self._clock.now_ns() + round(seconds * 1e9)}).encode()

    def take(self) -> None:
        try:
            self._etag = self._store.put_if_absent(LEASE_KEY, self._document(LEASE_S)).etag
        except ObjectExists:
            stat = self._store.head(LEASE_KEY)
            held = json.loads(self._store.get(LEASE_KEY))
            if stat is None or held["expires_ns"] > self._clock.now_ns():
                seconds = (held["expires_ns"] - self._clock.now_ns()) / 1e9
                raise CatalogError(
                    f"store {self._store.url} is being compacted by {held['owner']!r}; try again in {seconds:.0f} s"
                ) from None
            self._etag = stat.etag
            self()

    def __call__(self) -> None:
        try:
            self._etag = self._store.put_if_match(LEASE_KEY, self._document(LEASE_S), self._etag).etag
        except ObjectChanged as error:
            raise CatalogError(
                f"somebody else took over the compaction of {self._store.url}; nothing is lost, stop here"
            ) from error

    def give_back(self) -> None:
        try:
            self._store.put_if_match(LEASE_KEY, self._document(0.0), self._etag)
        except StoreError:
            return  # somebody took it over, or the store is away: it expires by itself
