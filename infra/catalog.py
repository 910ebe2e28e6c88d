"""The tables of a store: commit a step's batch, scan live rows, ask what is done (docs/tables.md).

Writing. `commit` takes one step's rows for many clips: the data tables first, each by its own Delta commit, the rows of
`done` last. Until `done` names a batch, nobody sees any of it; a crash before leaves files that compaction removes.
Tables of `tables.WRITTEN_ALONE` are visible by their own commit: `append`.

Reading. `scan` is the only reader. It reads `done` first and the table after it, so that a batch is seen whole or not at
all. For each (scope_id, step) the fingerprint of the newest row of `done` counts, and of the rows with that fingerprint
the earliest: two jobs that did the same work show it once. A row is live when its (clip_id, batch_id) is; a batch done
for a camera, an import or a run has one row in `done`, which makes all of it live.

`snapshot` and `at` pin versions. Maintenance (compaction, check, repair) is in `maintain`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import polars as pl
from polars.io.plugins import register_io_source

from infra import datafiles, keys, store, tables
from infra.clock import Clock, SystemClock
from infra.datafiles import Rows
from infra.deltalog import DataFile, DeltaLog
from infra.errors import CatalogError, ObjectExists, ObjectMissing
from infra.store import Store

STORE_KEY: Final = "camloop.json"
VAULT_UNIT: Final = "recording_id"
VAULT_SHARE: Final = 0.10
_ONE_ROW_PER: Final = {"labels": "label_id", "failures": "failure_id"}  # the same id again is the same row

Scope = Literal["clip", "camera", "import", "run"]


@dataclass(frozen=True, slots=True)
class Done:
    """One step is done for one clip, camera, import or run: rows seen (`n_in`) and rows made (`n_out`, may be 0)."""

    scope: Scope
    scope_id: str
    step: str
    fingerprint: str
    n_in: int
    n_out: int

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise CatalogError(f"done: scope {self.scope!r}, legal: {', '.join(get_args(Scope))}")


def polars_schema(table: str) -> pl.Schema:
    """Return the Polars types of a table's columns.

    Raises:
        CatalogError: there is no such table.
    """
    frame = pl.from_arrow(_schema(table).empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame.schema


def _schema(table: str) -> Any:
    if table not in tables.SCHEMAS:
        raise CatalogError(f"no table {table!r}; legal: {', '.join(tables.SCHEMAS)}")
    return tables.SCHEMAS[table]


def live_batches(done: pl.DataFrame) -> pl.DataFrame:
    """Return the batches that count, one per (scope, scope_id, step), with fingerprint, batch_id and done_ns.

    Args:
        done: rows of table `done`.
    """
    unit = ["scope", "scope_id", "step"]
    ordered = done.sort("done_ns", "batch_id")
    newest = ordered.group_by(unit).agg(pl.col("fingerprint").last())
    earliest = ordered.unique([*unit, "fingerprint"], keep="first", maintain_order=True)
    return earliest.join(newest, on=[*unit, "fingerprint"], how="semi").select(*unit, "fingerprint", "batch_id", "done_ns")


class Catalog:
    """The tables of one store. Cheap to make, safe in several processes; not shared between threads.

    Attributes:
        store: where the tables lie.
        settings: what was fixed when the store was created: schema_version, vault_unit, vault_share.
    """

    def __init__(self, store: Store, settings: Mapping[str, Any], pinned: Mapping[str, int] | None = None) -> None:
        self.store = store
        self.settings = MappingProxyType(dict(settings))
        self._pinned = pinned
        self._logs: dict[str, DeltaLog] = {}
        self._done_files: dict[str, pl.DataFrame] = {}
        self._live: tuple[frozenset[str], pl.DataFrame] | None = None
        self._tested = False

    def __repr__(self) -> str:
        pinned = "" if self._pinned is None else f", pinned to {dict(self._pinned)}"
        return f"<Catalog {self.store.url}{pinned}>"

    def log(self, table: str) -> DeltaLog:
        """Return the commit log of a table (for maintenance and erasure; everybody else uses `scan`)."""
        _schema(table)
        if table not in self._logs:
            self._logs[table] = DeltaLog(self.store, table)
        return self._logs[table]

    # Writing

    def commit(self, rows: Mapping[str, Rows], done: Sequence[Done], *, clock: Clock | None = None) -> str:
        """Commit one step's batch over several tables; it becomes visible with its last write, the rows of `done`.

        Args:
            rows: step table -> rows (an Arrow table or one mapping per row), without batch_id and schema_version.
            done: what is done now, all of one step; one row only, unless the scope is clip.
            clock: gives `done_ns`.

        Returns:
            The batch_id.

        Raises:
            CatalogError: rows do not fit, a table is written alone, `done` is not one step's, or the log refused.
        """
        clock = clock or SystemClock()
        self._check_writable()
        steps = {row.step for row in done}
        if len(steps) != 1:
            raise CatalogError(f"a batch belongs to one step; its rows of done name {sorted(steps) or 'none'}")
        if len(done) > 1 and any(row.scope != "clip" for row in done):
            raise CatalogError(f"a batch done for a {done[0].scope} has one row in done, not {len(done)}: commit one by one")
        alone = sorted(tables.WRITTEN_ALONE & rows.keys())
        if alone:
            raise CatalogError(f"table {', '.join(alone)} is written alone: use append()")
        batch_id = keys.new_id()
        made = {table: datafiles.to_table(table, rows[table], batch_id) for table in rows if _schema(table)}
        for table in sorted(made):
            if made[table].num_rows:
                self.log(table).append(datafiles.encode(table, made[table], batch_id), clock=clock)
        done_ns = clock.now_ns()
        last = datafiles.to_table("done", [asdict(row) | {"done_ns": done_ns} for row in done], batch_id)
        self.log("done").append(datafiles.encode("done", last, batch_id), clock=clock)
        return batch_id

    def append(self, table: str, rows: Rows, *, clock: Clock | None = None) -> str:
        """Append rows to a table that is written alone; they are visible at once. Return the batch_id.

        Raises:
            CatalogError: rows do not fit, the table is a step table, or the log refused.
        """
        self._check_writable()
        _schema(table)
        if table not in tables.WRITTEN_ALONE or table == "done":
            raise CatalogError(f"table {table} is visible through done: use commit()")
        batch_id = keys.new_id()
        made = datafiles.to_table(table, rows, batch_id)
        if made.num_rows:
            self.log(table).append(datafiles.encode(table, made, batch_id), clock=clock or SystemClock())
        return batch_id

    def _check_writable(self) -> None:
        if self._pinned is not None:
            raise CatalogError("this catalog is pinned to a snapshot and read-only; write through open_catalog(store)")
        if not self._tested:
            store.require(self.store, "put_if_absent")
            self._tested = True

    # Reading

    def scan(self, table: str, columns: Sequence[str] | None = None, *, live: bool = True) -> pl.LazyFrame:
        """Return a table as a Polars LazyFrame, its versions fixed now, its bytes read and verified when collected.

        Args:
            table: a name of `tables.SCHEMAS`.
            columns: names to return; all by default.
            live: only rows that count (see the module); False shows every row ever committed and not yet compacted away.

        Raises:
            CatalogError: no such table or column, damaged log; on collect, a damaged or missing data file, with its name.
        """
        schema = polars_schema(table)
        unknown = [name for name in columns or () if name not in schema]
        if unknown:
            raise CatalogError(f"table {table} has no column {', '.join(unknown)}; legal: {', '.join(schema)}")
        chosen = list(columns) if columns is not None else list(schema)
        counts = self.live() if live and table not in tables.WRITTEN_ALONE else None  # done before the table: a batch is whole
        files = self._files(table)
        if counts is not None:
            batches = set(counts["batch_id"])
            files = [file for file in files if file.batch_id in batches or file.is_compacted]
        frame = self._source(table, schema, files)
        if counts is not None:
            frame = _only_live(frame, counts)
        elif live and table in _ONE_ROW_PER:
            frame = frame.unique(_ONE_ROW_PER[table], keep="first", maintain_order=True)
        return frame.select(chosen)

    def live(self) -> pl.DataFrame:
        """Return the batches that count: scope, scope_id, step, fingerprint, batch_id, done_ns (see `live_batches`)."""
        files = self._files("done")
        names = frozenset(file.name for file in files)
        if self._live is None or self._live[0] != names:
            empty = polars_schema("done").to_frame()
            for file in files:
                if file.name not in self._done_files:
                    self._done_files[file.name] = pl.concat([empty, *datafiles.read(self.store, "done", file, empty.columns)])
            self._done_files = {name: self._done_files[name] for name in names}
            self._live = names, live_batches(pl.concat([empty, *self._done_files.values()]))
        return self._live[1]

    def done(self, step: str, fingerprint: str | None = None) -> set[str]:
        """Return the scope_ids for which a step is done; with a fingerprint, those that were last done with it."""
        found = self.live().filter(pl.col("step") == step)
        if fingerprint is not None:
            found = found.filter(pl.col("fingerprint") == fingerprint)
        return set(found["scope_id"])

    def snapshot(self) -> dict[str, int]:
        """Return the version of every table that exists, `done` read first; `at` reads them again later."""
        if self._pinned is not None:
            return dict(self._pinned)
        order = ["done", *(table for table in tables.SCHEMAS if table != "done")]
        versions = {table: self.log(table).version() for table in order}
        return {table: version for table, version in versions.items() if version is not None}

    def at(self, snapshot: Mapping[str, int]) -> Catalog:
        """Return a read-only catalog of those versions; a table that the snapshot lacks is empty.

        Compaction keeps what a version needs for 24 hours; what must last is pinned by content, in a Selection.
        """
        return Catalog(self.store, self.settings, dict(snapshot))

    def _files(self, table: str) -> list[DataFile]:
        if self._pinned is None:
            return self.log(table).files()
        return self.log(table).files(self._pinned[table]) if table in self._pinned else []

    def _source(self, table: str, schema: pl.Schema, files: Sequence[DataFile]) -> pl.LazyFrame:
        def read(
            with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
        ) -> Iterator[pl.DataFrame]:
            chosen = list(with_columns or schema)
            needed = list(dict.fromkeys([*chosen, *(predicate.meta.root_names() if predicate is not None else [])]))
            left = n_rows
            for file in files:
                for frame in datafiles.read(self.store, table, file, needed):
                    part = frame if predicate is None else frame.filter(predicate)
                    part = part.select(chosen)
                    if left is not None:
                        part = part.head(left)
                        left -= part.height
                    yield part
                    if left == 0:
                        return

        return register_io_source(read, schema=schema, is_pure=True)


def _only_live(frame: pl.LazyFrame, counts: pl.DataFrame) -> pl.LazyFrame:
    clips = counts.filter(pl.col("scope") == "clip").select(clip_id="scope_id", batch_id="batch_id").unique()
    whole = counts.filter(pl.col("scope") != "clip")["batch_id"].unique()
    if whole.is_empty():
        return frame.join(clips.lazy(), on=["clip_id", "batch_id"], how="semi")
    marked = clips.lazy().with_columns(_live=pl.lit(True))
    return frame.join(marked, on=["clip_id", "batch_id"], how="left").filter(
        pl.col("_live").fill_null(False) | pl.col("batch_id").is_in(whole.implode())
    )


def open_catalog(store: Store, *, create: bool = True) -> Catalog:
    """Return the catalog of a store; `camloop.json` at its root says what was fixed when it was created.

    Args:
        store: where the tables lie: a folder or a bucket.
        create: make a store of an empty place; False refuses one.

    Raises:
        CatalogError: no store there and `create` is False, or one of a newer camloop.
    """
    try:
        settings = json.loads(store.get(STORE_KEY))
    except ObjectMissing as error:
        if not create:
            raise CatalogError(f"no camloop store at {store.url}: nothing was ingested there yet; check --store") from error
        settings = {"schema_version": tables.SCHEMA_VERSION, "vault_unit": VAULT_UNIT, "vault_share": VAULT_SHARE}
        try:
            store.put_if_absent(STORE_KEY, json.dumps(settings, sort_keys=True, indent=1).encode())
        except ObjectExists:
            settings = json.loads(store.get(STORE_KEY))
    except ValueError as error:
        raise CatalogError(f"{STORE_KEY} in {store.url} is not JSON: {error}") from error
    version = settings.get("schema_version")
    if not isinstance(version, int) or version > tables.SCHEMA_VERSION:
        raise CatalogError(f"store {store.url} has schema version {version!r}; legal: 1 to {tables.SCHEMA_VERSION}")
    return Catalog(store, settings)
