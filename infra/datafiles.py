"""Parquet files of the tables: rows in, verified rows out.

Writing: rows are brought to the schema of `tables.py` (unknown columns and missing required values are refused, nothing is
corrected), sorted by camera and time, written as zstd Parquet with page checksums, and named `<batch>-<SHA-256>.parquet`;
more than `MAX_BYTES` become several files.
Reading: a file is fetched whole and its SHA-256 compared with its name. Page checksums alone do not do: they cover neither
headers nor footer, and a flipped bit in a column's name reads as a column of nulls. One flipped bit gave silently wrong
values in 115 of 150 plain reads (RELIABILITY.md, finding 4), and is a CatalogError with the file's name here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from infra import keys, tables
from infra.deltalog import DataFile, NewFile
from infra.errors import CatalogError, ObjectMissing, StoreError
from infra.store import Store

MAX_BYTES: Final = 64 << 20  # what a reader holds at once
ROW_GROUP_ROWS: Final = 1 << 17
_SORT: Final = ("camera_number", "clip_id", "pts", "start_pts", "gop_index", "before_frame")
_FORMAT: Final = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)

Rows: TypeAlias = "pa.Table | Sequence[Mapping[str, Any]]"


def to_table(table: str, rows: Rows, batch_id: str) -> pa.Table:
    """Return rows as an Arrow table of the table's schema, with `batch_id` and `schema_version` filled in.

    Args:
        table: a name of `tables.SCHEMAS`.
        rows: an Arrow table (or anything that exports one, such as a Polars frame) or one mapping per row; a nullable
            column may be absent.
        batch_id: the batch that the rows belong to.

    Raises:
        CatalogError: unknown column, value of a wrong type, or null where the schema forbids it.
    """
    schema = tables.SCHEMAS[table]
    filled = ("batch_id", "schema_version")
    try:
        if isinstance(rows, Sequence):
            unknown = set().union(*(row.keys() for row in rows)) - set(schema.names)
            columns: dict[str, Any] = {n: [row.get(n) for row in rows] for n in schema.names if n not in filled}
            n_rows = len(rows)
        else:
            given = pa.table(rows)
            unknown = set(given.column_names) - set(schema.names)
            columns = {name: given[name] for name in given.column_names if name not in filled}
            n_rows = given.num_rows
        if unknown:
            legal = ", ".join(n for n in schema.names if n not in filled)
            raise CatalogError(f"table {table} has no column {', '.join(sorted(unknown))}; legal: {legal}")
        arrays = []
        for field in schema:
            if field.name == "batch_id":
                arrays.append(pa.repeat(pa.scalar(batch_id, field.type), n_rows))
            elif field.name == "schema_version":
                arrays.append(pa.repeat(pa.scalar(tables.SCHEMA_VERSION, field.type), n_rows))
            elif field.name not in columns:
                arrays.append(pa.nulls(n_rows, field.type))
            elif isinstance(columns[field.name], list):
                arrays.append(pa.array(columns[field.name], field.type))
            else:
                arrays.append(columns[field.name].cast(field.type))
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise CatalogError(f"table {table}: a value does not fit its column: {error}") from error
    made = pa.table(arrays, schema=schema)
    for field in schema:
        if not field.nullable and made[field.name].null_count:
            raise CatalogError(
                f"table {table}: column {field.name} is null in {made[field.name].null_count} rows, and must not be"
            )
    return made


def encode(table: str, rows: pa.Table, batch_id: str) -> list[NewFile]:
    """Return rows as Parquet files, sorted by camera and time, each with the min/max that may stand in the log."""
    order = [(name, "ascending") for name in _SORT if name in rows.column_names and not pa.types.is_list(rows[name].type)]
    if table == "clips":
        order.insert(1, ("start_ns", "ascending"))
    if order:
        rows = rows.take(pc.sort_indices(rows.select([column for column, _ in order]), sort_keys=order))
    return list(_files(table, rows, batch_id))


def _files(table: str, rows: pa.Table, batch_id: str) -> Iterator[NewFile]:
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd", write_page_checksum=True, row_group_size=ROW_GROUP_ROWS)
    data = sink.getvalue()
    if len(data) > MAX_BYTES and rows.num_rows > 1:
        half = rows.num_rows // 2
        yield from _files(table, rows.slice(0, half), batch_id)
        yield from _files(table, rows.slice(half), batch_id)
        return
    minimum, maximum = {}, {}
    for name in tables.STATISTICS.get(table, ()):
        bounds = pc.min_max(rows[name]).as_py()
        if bounds["min"] is not None:
            minimum[name], maximum[name] = bounds["min"], bounds["max"]
    name = f"{batch_id}-{keys.sha256_hex(data)}.parquet"
    yield NewFile(name=name, data=data, n_rows=rows.num_rows, minimum=minimum, maximum=maximum)


def read(store: Store, table: str, file: DataFile, columns: Sequence[str], batch_rows: int = 1 << 20) -> Iterator[pl.DataFrame]:
    """Yield a file's rows in order, checked; a column that the file is too old to have is null.

    Args:
        store: where the table lies.
        table: a name of `tables.SCHEMAS`.
        file: what to read.
        columns: names to read, at least one.
        batch_rows: the most rows of one frame.

    Raises:
        CatalogError: the file is gone, or its bytes are not what was written; the message names it.
    """
    key = f"{keys.table_prefix(table)}/{file.name}"
    schema = tables.SCHEMAS[table]
    try:
        data = store.get(key)
        if keys.sha256_hex(data) != file.sha256:
            raise CatalogError(f"data file {key} in {store.url} is damaged: its bytes do not hash to its name")
        fragment = _FORMAT.make_fragment(pa.BufferReader(data))
        for batch in fragment.to_batches(schema=schema, columns=list(columns), batch_size=batch_rows):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame
    except ObjectMissing as error:
        raise CatalogError(
            f"data file {key} in {store.url} is gone; versions from before a compaction can be read for 24 hours only"
        ) from error
    except StoreError as error:
        raise CatalogError(f"data file {key} in {store.url} cannot be read: {error}") from error
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(f"data file {key} in {store.url} is damaged: {error}") from error
