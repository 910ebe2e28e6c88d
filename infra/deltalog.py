"""One table's commit log: Delta Lake for the log, Parquet files that we write ourselves (RELIABILITY.md, finding 1).

The only module that imports deltalake; only `catalog` uses it. The order of one commit:

1. the data file, named by its batch and the SHA-256 of its bytes, goes through the store (fsynced on a folder);
2. deltalake writes the log entry, put-if-absent, with 200 retries against other writers;
3. on a folder the new log entries and their directory are fsynced through `durable`. Only now is the commit made.

A commit of unknown outcome is never repeated blindly: the file's name is its transaction, so we look whether the log
holds it. deltalake reads a zero-length entry as an empty commit and a torn one makes a table unreadable; so on a folder
the tail of the log is checked before it is believed: each entry says how many actions it holds (`camloop_actions`).
Log entries are kept for ever, hence a damaged checkpoint can be set aside without loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from infra import durable, keys, tables
from infra.clock import Clock
from infra.errors import CatalogError, StoreIncapable
from infra.store import Store

_MAX_RETRIES: Final = 200  # deltalake's 15 dropped 6 of 320 commits with eight writers (RELIABILITY.md 1.2)
_LOOKS: Final = 5
_ACTIONS: Final = "camloop_actions"
_NO_HOOKS: Final = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
COMPACTED: Final = "many"  # stands in a file's name in the place of a batch_id
_QUARANTINE: Final = ".quarantine"


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file that a version of the table holds: name below the table's folder, bytes and rows."""

    name: str
    n_bytes: int
    n_rows: int

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes, as its name says."""
        return self.name.removesuffix(".parquet").rpartition("-")[2]

    @property
    def batch_id(self) -> str:
        """The batch that the file holds, as its name says; of a compacted file, an id of its own."""
        return self.name.partition("-")[0]

    @property
    def is_compacted(self) -> bool:
        """Say whether the file holds many batches; its rows keep their batch_id."""
        return self.name.startswith(COMPACTED)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A Parquet file to commit: name, bytes, rows and the min/max that may stand in the log."""

    name: str
    data: bytes
    n_rows: int
    minimum: Mapping[str, int]
    maximum: Mapping[str, int]


def _local_folder(uri: str) -> Path | None:
    parsed = urlparse(uri)
    if parsed.scheme in ("", "file"):
        return Path(unquote(parsed.path) if parsed.scheme else uri)
    return None


def _properties(n_actions: int) -> CommitProperties:
    return CommitProperties(max_commit_retries=_MAX_RETRIES, custom_metadata={_ACTIONS: str(n_actions)})


def torn(data: bytes) -> str | None:
    """Return what is wrong with the bytes of a log entry, or None when it is whole."""
    if not data:
        return "is zero bytes long"
    try:
        actions = [json.loads(line) for line in data.splitlines()]
    except ValueError:
        return "is torn"
    if not all(isinstance(action, dict) and len(action) == 1 for action in actions):
        return "is not a list of Delta actions"
    stated = [action["commitInfo"].get(_ACTIONS) for action in actions if "commitInfo" in action]
    n_found = sum("commitInfo" not in action for action in actions)
    if not stated:
        return "lacks its commitInfo"
    if n_found == 0 or (stated[0] is not None and int(stated[0]) != n_found):
        return f"holds {n_found} of {stated[0] or 'its'} actions"
    return None


class DeltaLog:
    """The commit log of one table, opened lazily; the table is created by its first commit.

    Args:
        store: where the table lies; a store without tables (memory) is refused.
        table: a name of `tables.SCHEMAS`.
    """

    def __init__(self, store: Store, table: str) -> None:
        self.store = store
        self.table = table
        self.prefix = keys.table_prefix(table)
        self._uri = store.table_uri(self.prefix)
        self._options = dict(store.delta_options())
        folder = _local_folder(self._uri)
        self._log_folder = None if folder is None else folder / "_delta_log"
        if folder is None and urlparse(self._uri).scheme == "memory":
            raise StoreIncapable(f"store {store.url}: tables need a folder or a bucket, not a memory store")
        self._handle: DeltaTable | None = None
        self._checked = -1  # log entries up to here were found whole
        self._synced = -1  # log entries up to here are on the medium

    # Reading

    def version(self) -> int | None:
        """Return the newest version, or None while the table does not exist.

        Raises:
            CatalogError: the log is damaged or cannot be read.
        """
        handle = self._refresh()
        return None if handle is None else handle.version()

    def files(self, version: int | None = None) -> list[DataFile]:
        """Return the data files of the newest or of one version, sorted by name.

        Raises:
            CatalogError: the log is damaged, or the version is not there (any more).
        """
        handle = self._refresh()
        if handle is None:
            return []
        if version is not None and version != handle.version():
            try:
                handle = DeltaTable(self._uri, version=version, storage_options=self._options)
            except (DeltaError, OSError) as error:
                raise CatalogError(f"table {self.table}: version {version} is not in {self._uri}: {error}") from error
        actions = pa.table(handle.get_add_actions(flatten=True))
        rows = actions.select(["path", "size_bytes", "num_records"]).to_pylist()
        return sorted((DataFile(r["path"], r["size_bytes"], r["num_records"] or 0) for r in rows), key=lambda f: f.name)

    def _refresh(self) -> DeltaTable | None:
        if self._log_folder is not None and not self._check_tail():
            return None
        options = dict(self.store.delta_options())
        if options != self._options:  # credentials were renewed; a handle keeps those it was opened with
            self._options, self._handle = options, None
        try:
            if self._handle is None:
                self._handle = DeltaTable(self._uri, storage_options=self._options)
            else:
                self._handle.update_incremental()
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise CatalogError(f"table {self.table} at {self._uri} cannot be opened: {error}; {self._remedy}") from error
        return self._handle

    @property
    def _remedy(self) -> str:
        return f"run `camloop doctor --store {self.store.url} --repair`"

    # The tail of a log on a folder

    def _entries(self) -> list[tuple[int, Path]]:
        assert self._log_folder is not None
        if not self._log_folder.is_dir():
            return []
        found = [path for path in self._log_folder.iterdir() if path.suffix == ".json" and path.stem.isdigit()]
        return sorted((int(path.stem), path) for path in found)

    def _damage(self, *, after: int) -> Iterator[tuple[int, Path, str]]:
        """Yield (version, file, what is wrong) of the entries after a version, and of a checkpoint that is cut off."""
        previous = None
        for version, path in self._entries():
            if version > after:
                wrong = torn(path.read_bytes())
                if previous is not None and version != previous + 1:
                    wrong = f"follows version {previous}: entries between are missing"
                if wrong:
                    yield version, path, wrong
            previous = version
        if after < 0:
            yield from self._damaged_checkpoints()

    def _damaged_checkpoints(self) -> Iterator[tuple[int, Path, str]]:
        assert self._log_folder is not None
        pointer = self._log_folder / "_last_checkpoint"
        for path in sorted(self._log_folder.glob("*.checkpoint*.parquet")):
            try:
                pq.read_metadata(path)
            except (pa.ArrowException, OSError):
                yield -1, path, "is a torn checkpoint"
        try:
            if pointer.exists():
                json.loads(pointer.read_bytes())["version"]
        except (ValueError, KeyError, TypeError):
            yield -1, pointer, "is torn"

    def _check_tail(self) -> bool:
        """Check new entries; say whether the table exists."""
        entries = self._entries()
        if not entries:
            return False
        if entries[-1][0] > self._checked:
            for _, path, wrong in self._damage(after=self._checked):
                raise CatalogError(f"table {self.table}: {path} {wrong}; {self._remedy}")
            self._checked = entries[-1][0]
        return True

    def check(self) -> list[str]:
        """Return every damage of the log in words (folders only; a bucket's puts are whole or absent)."""
        if self._log_folder is None or not self._entries():
            return []
        return [f"{path} {wrong}" for _, path, wrong in self._damage(after=-1)]

    def repair(self) -> list[str]:
        """Set the damaged tail aside (renamed, never deleted): the first bad entry and all after it, bad checkpoints.

        Returns:
            The new names of what was set aside.
        """
        if self._log_folder is None or not self._log_folder.is_dir():
            return []
        damage = list(self._damage(after=-1))
        first = min((version for version, _, _ in damage if version >= 0), default=None)
        aside = [path for version, path, _ in damage if version < 0]
        if first is not None:
            aside += [path for version, path in self._entries() if version >= first]
            aside += [path for path in self._log_folder.glob("*.checkpoint*.parquet") if int(path.name[:20]) >= first]
            aside += [path for path in [self._log_folder / "_last_checkpoint"] if path.exists()]
        moved = []
        for path in sorted(set(aside), reverse=True):  # newest first: a crash leaves a shorter bad tail, never a hole
            target = path.with_name(f"{path.name}.{keys.new_id()[:8]}{_QUARANTINE}")
            durable.adopt(path, target)
            moved.append(str(target))
        self._handle, self._checked, self._synced = None, -1, -1
        return moved

    # Writing

    def append(self, files: Sequence[NewFile], *, clock: Clock) -> None:
        """Commit data files in one step; the table is created when it does not exist.

        Raises:
            CatalogError: the log is damaged or the commit was refused; the files are then not in the table.
        """
        for file in files:
            self.store.put(f"{self.prefix}/{file.name}", file.data)
        self._transact([self._add(file, clock, data_change=True) for file in files], [file.name for file in files])

    def replace(self, files: Sequence[NewFile], old: Sequence[DataFile], *, clock: Clock) -> None:
        """Commit files in the place of others with the same rows, in one step (compaction).

        Raises:
            CatalogError: refused, as when somebody else removed one of `old` meanwhile.
        """
        for file in files:
            self.store.put(f"{self.prefix}/{file.name}", file.data)
        now_ms = clock.now_ns() // 1_000_000
        actions: list[AddAction | RemoveAction] = [self._add(file, clock, data_change=False) for file in files]
        actions += [RemoveAction(f.name, data_change=False, deletion_timestamp=now_ms, size=f.n_bytes) for f in old]
        self._transact(actions, [file.name for file in files], gone=[file.name for file in old])

    def checkpoint(self) -> None:
        """Write a checkpoint of the newest version, so that opening does not read the whole log; made safe on a folder."""
        handle = self._require()
        try:
            handle.create_checkpoint()
        except (DeltaError, OSError) as error:
            raise CatalogError(f"table {self.table}: no checkpoint was written: {error}") from error
        if self._log_folder is not None:
            written = [*self._log_folder.glob("*.checkpoint*.parquet"), self._log_folder / "_last_checkpoint"]
            durable.sync(*written, self._log_folder)

    def _add(self, file: NewFile, clock: Clock, *, data_change: bool) -> AddAction:
        stats: dict[str, Any] = {"numRecords": file.n_rows}
        if file.minimum:
            stats |= {"minValues": dict(file.minimum), "maxValues": dict(file.maximum)}
        return AddAction(
            path=file.name, size=len(file.data), partition_values={}, modification_time=clock.now_ns() // 1_000_000,
            data_change=data_change, stats=json.dumps(stats),
        )  # fmt: skip

    def _transact(self, actions: Sequence[AddAction | RemoveAction], names: Sequence[str], gone: Sequence[str] = ()) -> None:
        for look in range(_LOOKS):
            handle = self._refresh() or self._create()
            try:
                self._grow(handle)
                handle.create_write_transaction(
                    list(actions), mode="append", schema=tables.SCHEMAS[self.table],
                    commit_properties=_properties(len(actions)), post_commithook_properties=_NO_HOOKS,
                )  # fmt: skip
            except (DeltaError, OSError) as error:
                present = {file.name for file in self.files()}
                if present.issuperset(names) and present.isdisjoint(gone):
                    break  # the answer was lost, not the commit
                if look == _LOOKS - 1 or not present.issuperset(gone):
                    raise CatalogError(f"table {self.table} at {self._uri}: the commit was refused: {error}") from error
            else:
                break
        self._sync()

    def _require(self) -> DeltaTable:
        handle = self._refresh()
        if handle is None:
            raise CatalogError(f"table {self.table} at {self._uri} vanished; {self._remedy}")
        return handle

    def _create(self) -> DeltaTable:
        """Create the table, or open the one that another writer created in the same moment."""
        if self._log_folder is not None:
            try:
                durable.make_dirs(self._log_folder)
            except OSError as error:
                raise CatalogError(f"table {self.table} cannot be created at {self._uri}: {error}") from error
        statistics = tables.STATISTICS.get(self.table, ())
        skipping = {"delta.dataSkippingStatsColumns": ",".join(statistics)} if statistics else {}
        try:
            DeltaTable.create(
                self._uri, schema=tables.SCHEMAS[self.table], mode="error", storage_options=self._options,
                configuration=skipping or {"delta.dataSkippingNumIndexedCols": "0"}, commit_properties=_properties(2),
                post_commithook_properties=_NO_HOOKS,
            )  # fmt: skip
        except (DeltaError, OSError) as error:
            handle = self._refresh()
            if handle is None:
                raise CatalogError(f"table {self.table} cannot be created at {self._uri}: {error}") from error
            return handle
        return self._require()

    def _grow(self, handle: DeltaTable) -> None:
        """Tell the log of columns that the table got since it was created, so that other readers see them too."""
        known = {field.name for field in handle.schema().fields}
        missing = [field for field in tables.SCHEMAS[self.table] if field.name not in known]
        if missing:
            fields = Schema.from_arrow(pa.schema([field.with_nullable(True) for field in missing])).fields
            handle.alter.add_columns(fields, commit_properties=_properties(1), post_commithook_properties=_NO_HOOKS)

    def _sync(self) -> None:
        """Force all entries that this process has not yet forced, other writers' included: no hole after a power cut."""
        if self._log_folder is None:
            return
        entries = [(version, path) for version, path in self._entries() if version > self._synced]
        try:
            durable.sync(*(path for _, path in entries), self._log_folder)
        except OSError as error:
            raise CatalogError(
                f"table {self.table}: the commit is in {self._log_folder}, but the disk did not take it safely: {error}"
            ) from error
        if entries:
            self._synced = entries[-1][0]
