"""The tables on a folder: what is visible when, what is refused, what damage is found, what compaction leaves."""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from infra import datafiles, keys, maintain, tables
from infra.catalog import Catalog, Done, open_catalog, polars_schema
from infra.clock import FakeClock
from infra.console import Context, Output
from infra.deltalog import DataFile, torn
from infra.doctor import doctor
from infra.errors import CatalogError, StoreIncapable
from infra.settings import Settings
from infra.store import DirStore, MemoryStore

A, B, C = (f"{number:032x}" for number in (1, 2, 3))
HOUR_NS = 3_600_000_000_000
LIVENESS_SQL = """
WITH counted AS (
    SELECT scope, scope_id, step, fingerprint, batch_id,
           last_value(fingerprint) OVER (PARTITION BY scope, scope_id, step ORDER BY done_ns, batch_id
                                         ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS newest,
           row_number() OVER (PARTITION BY scope, scope_id, step, fingerprint ORDER BY done_ns, batch_id) AS turn
    FROM {done}
), live AS (
    SELECT DISTINCT scope, scope_id, batch_id FROM counted WHERE fingerprint = newest AND turn = 1
)
SELECT * FROM {table} AS rows
WHERE EXISTS (SELECT 1 FROM live WHERE live.batch_id = rows.batch_id AND (live.scope <> 'clip' OR live.scope_id = rows.clip_id))
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """The catalog of a new folder store."""
    return open_catalog(DirStore(tmp_path / "store"))


def again(catalog: Catalog) -> Catalog:
    """Open the same store as another process would."""
    return open_catalog(DirStore(catalog.store.url))


def frames(*clip_ids: str, n: int = 3, p_keep: float = 1.0) -> list[dict[str, Any]]:
    return [{"clip_id": clip_id, "pts": 10 * i, "p_keep": p_keep} for clip_id in clip_ids for i in range(n)]


def clip(clip_id: str, start_ns: int | None = 0) -> dict[str, Any]:
    return {"clip_id": clip_id, "key": f"clips/c/{clip_id}.mp4", "camera_id": "c", "camera_number": 1, "start_ns": start_ns}


def scan_done(*clip_ids: str, fingerprint: str = "f1", step: str = "scan") -> list[Done]:
    return [Done("clip", clip_id, step, fingerprint, 1, 3) for clip_id in clip_ids]


def rows(catalog: Catalog, table: str = "frames", **named: Any) -> list[tuple[Any, ...]]:
    columns = [name for name in tables.SCHEMAS[table].names if name not in ("batch_id", "schema_version")]
    return sorted(catalog.scan(table, columns, **named).collect().rows(), key=repr)


class TestCommit:
    def test_rows_come_back(self, catalog: Catalog) -> None:
        """What is committed is read, in every type of the schema, with batch_id and schema_version filled in."""
        gop = {"clip_id": A, "gop_index": 0, "start_pts": 0, "pts": [0, 1], "motion": [0.5, None], "decoded": True}
        vector = {"clip_id": A, "source": "o@1", "dim": 2, "vector": b"\x00\x3c\x00\x40"}
        batch = catalog.commit({"gops": [gop], "embeddings": [vector]}, scan_done(A))
        assert catalog.scan("gops", ["pts", "motion", "decoded", "n_bytes"]).collect().rows() == [
            ([0, 1], [0.5, None], True, None)
        ]
        assert catalog.scan("embeddings", ["vector", "pts", "batch_id", "schema_version"]).collect().rows() == [
            (b"\x00\x3c\x00\x40", None, batch, tables.SCHEMA_VERSION)
        ]

    def test_arrow_and_polars_rows(self, catalog: Catalog) -> None:
        """An Arrow table and a Polars frame are taken like mappings."""
        catalog.commit({"frames": pa.Table.from_pylist(frames(A))}, scan_done(A))
        catalog.commit({"frames": pl.DataFrame(frames(B))}, scan_done(B))  # type: ignore[dict-item]
        assert len(rows(catalog)) == 6

    def test_a_clip_without_rows_is_done(self, catalog: Catalog) -> None:
        """A clip of which nothing was kept is done all the same, with and without an empty table."""
        catalog.commit({"frames": []}, scan_done(A))
        catalog.commit({}, scan_done(B))
        assert catalog.done("scan") == {A, B}
        assert rows(catalog) == []

    @pytest.mark.parametrize(
        ("given", "done", "words"),
        [
            ({"frames": frames(A)}, [], "belongs to one step"),
            ({"frames": frames(A)}, [*scan_done(A), *scan_done(A, step="tag")], r"\['scan', 'tag'\]"),
            ({"labels": []}, scan_done(A), "written alone: use append"),
            ({"nonsense": []}, scan_done(A), "no table 'nonsense'; legal: cameras, clips"),
            ({"frames": [{"clip_id": A, "pts": 1, "p_keep": 1.0, "nope": 1}]}, scan_done(A), "no column nope; legal: clip_id"),
            ({"frames": [{"clip_id": A, "pts": 1}]}, scan_done(A), "p_keep is null in 1 rows"),
            ({"frames": [{"clip_id": A, "pts": "x", "p_keep": 1.0}]}, scan_done(A), "does not fit"),
            ({}, [Done("camera", A, "s", "f", 1, 1), Done("camera", B, "s", "f", 1, 1)], "has one row in done, not 2"),
        ],
    )
    def test_refusals(self, catalog: Catalog, given: Mapping[str, Any], done: Sequence[Done], words: str) -> None:
        """A batch that is not one step's or does not fit is refused with the reason, and leaves nothing."""
        with pytest.raises(CatalogError, match=words):
            catalog.commit(given, done)
        assert not catalog.snapshot()

    def test_append(self, catalog: Catalog) -> None:
        """A table written alone is visible at once; a step table is refused; the same id again is the same row."""
        label = {"label_id": "l1", "clip_id": A, "name": "person"}
        catalog.append("labels", [label])
        catalog.append("labels", [label, {"label_id": "l2", "clip_id": A}])
        assert sorted(catalog.scan("labels", ["label_id"]).collect()["label_id"]) == ["l1", "l2"]
        assert catalog.scan("labels", live=False).collect().height == 3
        with pytest.raises(CatalogError, match="use commit"):
            catalog.append("frames", frames(A))

    def test_sorted_by_camera_and_time(self, catalog: Catalog) -> None:
        """Clips lie sorted by camera and start, and the log holds their min/max and no id, name or message."""
        made = [clip(A, 30), clip(B, 10), clip(C, None)]
        catalog.commit({"clips": made, "frames": frames(A)}, scan_done(A, B, C, step="register"))
        assert catalog.scan("clips", ["start_ns"]).collect()["start_ns"].to_list() == [10, 30, None]
        for log in Path(catalog.store.url).glob("tables/*/_delta_log/*.json"):
            assert not any(word in log.read_text() for word in (A, B, C, "mp4"))
        entry = Path(catalog.store.url, "tables/clips/_delta_log", f"{1:020d}.json").read_text()
        stats = json.loads(json.loads(entry.splitlines()[1])["add"]["stats"])
        assert stats["minValues"] == {"start_ns": 10, "camera_number": 1} and stats["maxValues"]["start_ns"] == 30


class TestLiveness:
    def test_newest_fingerprint_earliest_batch(self, catalog: Catalog) -> None:
        """The newest fingerprint counts, and of equal fingerprints the earliest batch."""
        clock = FakeClock()
        for number, fingerprint in enumerate(["f1", "f2", "f2", "f1"]):
            clock.advance_s(1)
            catalog.commit({"frames": frames(A, n=number + 1)}, scan_done(A, fingerprint=fingerprint), clock=clock)
            assert len(rows(catalog)) == [1, 2, 2, 1][number]
            assert catalog.done("scan", fingerprint) == {A}
        assert catalog.done("scan", "f2") == set()
        assert catalog.done("scan") == {A}
        assert len(rows(catalog, live=False)) == 10

    def test_two_jobs_at_once(self, catalog: Catalog) -> None:
        """Two jobs that did the same clips with the same clock reading are shown once."""
        clock = FakeClock()
        for _ in range(2):
            again(catalog).commit({"frames": frames(A, B)}, scan_done(A, B), clock=clock)
        assert len(rows(catalog)) == 6
        assert len(rows(catalog, live=False)) == 12

    def test_steps_do_not_hide_each_other(self, catalog: Catalog) -> None:
        """Rows of two steps about one clip are live together; a clip redone in part hides only its own old rows."""
        catalog.commit({"frames": frames(A, B)}, scan_done(A, B))
        catalog.commit({"tags": [{"clip_id": A, "factor": "x", "name": "y", "source": "s@1"}]}, scan_done(A, step="tag"))
        catalog.commit({"frames": frames(A, n=1)}, scan_done(A, fingerprint="f2"))
        assert [row[:2] for row in rows(catalog)] == [(A, 0), (B, 0), (B, 10), (B, 20)]
        assert catalog.scan("tags").collect().height == 1

    def test_a_batch_of_a_camera(self, catalog: Catalog) -> None:
        """A batch done for a camera is live as a whole, whatever clips its rows are about, until it is done again."""
        interval = {"event_id": "e", "layer": "motion", "source": "s@1", "start_pts": 0, "end_pts": 5}
        catalog.commit({"frames": frames(A)}, scan_done(A))
        catalog.commit({"intervals": [interval | {"clip_id": c} for c in (A, B)]}, [Done("camera", "c", "join", "f1", 2, 2)])
        assert catalog.scan("intervals").collect().height == 2
        catalog.commit({"intervals": [interval | {"clip_id": A}]}, [Done("camera", "c", "join", "f2", 2, 1)])
        assert catalog.scan("intervals", ["clip_id"]).collect()["clip_id"].to_list() == [A]

    def test_duckdb(self, catalog: Catalog) -> None:
        """The liveness query of docs/tables.md gives the same rows in DuckDB as scan does."""
        rng, clock = random.Random(3), FakeClock()
        for number in range(25):
            clock.advance_s(rng.choice([0, 1]))
            clips = rng.sample([A, B, C], rng.randint(1, 3))
            done = scan_done(*clips, fingerprint=rng.choice("xy"))
            catalog.commit({"frames": frames(*clips, n=1 + number % 3)}, done, clock=clock)
        catalog.commit({"frames": frames(A, n=1, p_keep=0.5)}, [Done("camera", "c", "extra", "f", 1, 1)])
        files = {t: [f"{catalog.store.url}/tables/{t}/{f.name}" for f in catalog.log(t).files()] for t in ("frames", "done")}
        query = LIVENESS_SQL.format(table=f"read_parquet({files['frames']})", done=f"read_parquet({files['done']})")
        found = duckdb.sql(query).pl().select(polars_schema("frames").names())
        order = ["clip_id", "pts", "batch_id"]
        assert found.sort(order).equals(catalog.scan("frames").collect().sort(order))
        assert found.height > 3


class TestScan:
    def test_columns_predicates_and_limits(self, catalog: Catalog) -> None:
        """Columns, filters and head are answered as on any LazyFrame, the filter column need not be chosen."""
        catalog.commit({"frames": frames(A, B, n=100)}, scan_done(A, B))
        assert catalog.scan("frames", ["pts"]).filter(pl.col("pts") >= 980).collect().rows() == [(980,), (990,)] * 2
        of_b = catalog.scan("frames").filter(pl.col("p_keep") > 0, pl.col("clip_id") == B)
        assert of_b.select("pts").head(3).collect().height == 3
        assert catalog.scan("frames").select(pl.len()).collect().item() == 200
        with pytest.raises(CatalogError, match="no column nope; legal: clip_id"):
            catalog.scan("frames", ["nope"])
        with pytest.raises(CatalogError, match="no table 'nope'; legal: cameras"):
            catalog.scan("nope")

    @pytest.mark.parametrize("table", sorted(tables.SCHEMAS))
    def test_an_empty_table_has_its_types(self, catalog: Catalog, table: str) -> None:
        """A table that nobody wrote reads as no rows with the schema's types."""
        assert catalog.scan(table).collect().schema == polars_schema(table)

    def test_a_file_older_than_a_column(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        """Files written before a column existed read it as null, beside new ones that have it."""
        catalog.commit({"frames": frames(A, n=1)}, scan_done(A))
        grown = tables.SCHEMAS["frames"].append(pa.field("sharpness", pa.float32()))
        monkeypatch.setitem(tables.SCHEMAS, "frames", grown)
        newer = again(catalog)
        newer.commit({"frames": [{"clip_id": B, "pts": 1, "p_keep": 1.0, "sharpness": 2.0}]}, scan_done(B))
        newer.commit({"frames": frames(C, n=1)}, scan_done(C))
        for frame in (newer.scan("frames"), pl.scan_delta(f"{newer.store.url}/tables/frames")):
            assert frame.select("clip_id", "sharpness").sort("clip_id").collect().rows() == [(A, None), (B, 2.0), (C, None)]
        assert newer.log("frames").version() == 4 and maintain.check(again(newer)) == []

    def test_snapshot(self, catalog: Catalog) -> None:
        """A pinned catalog sees what was there, is read-only, and treats later tables as empty."""
        catalog.commit({"frames": frames(A)}, scan_done(A))
        pinned = catalog.at(catalog.snapshot())
        catalog.commit({"frames": frames(B)}, scan_done(B))
        catalog.append("labels", [{"label_id": "l", "clip_id": A}])
        assert len(rows(pinned)) == 3 and len(rows(catalog)) == 6
        assert pinned.done("scan") == {A} and rows(pinned, "labels") == []
        assert json.loads(json.dumps(pinned.snapshot())) == pinned.snapshot()
        with pytest.raises(CatalogError, match="read-only"):
            pinned.commit({}, scan_done(C))
        with pytest.raises(CatalogError, match="version 99"):
            catalog.at({"done": 99}).done("scan")

    def test_a_scan_is_a_snapshot(self, catalog: Catalog) -> None:
        """A LazyFrame made before a commit does not see it when collected after."""
        catalog.commit({"frames": frames(A)}, scan_done(A))
        before = catalog.scan("frames")
        catalog.commit({"frames": frames(B)}, scan_done(B))
        assert before.collect().height == 3


class TestOpening:
    def test_the_store_file(self, tmp_path: Path) -> None:
        """Creation writes camloop.json once; a missing store, a newer one and one without tables are refused in words."""
        store = DirStore(tmp_path / "store")
        with pytest.raises(CatalogError, match="no camloop store at"):
            open_catalog(store, create=False)
        made = open_catalog(store)
        assert made.settings == open_catalog(store, create=False).settings
        assert made.settings["vault_unit"] == "recording_id"
        store.put("camloop.json", b'{"schema_version": 99}')
        with pytest.raises(CatalogError, match="schema version 99; legal: 1 to"):
            open_catalog(store)
        with pytest.raises(StoreIncapable, match="cannot hold tables"):
            open_catalog(MemoryStore()).commit({}, scan_done(A))

    def test_renewed_credentials(self, tmp_path: Path) -> None:
        """A catalog that is open for hours reads its log with the credentials that are valid now, not those of its start."""

        class Renewing(DirStore):
            token = "first"

            def delta_options(self) -> dict[str, str]:
                return {"AWS_SESSION_TOKEN": self.token}

        store = Renewing(tmp_path / "store")
        catalog = open_catalog(store)
        catalog.commit({"frames": frames(A)}, scan_done(A))
        handle = catalog.log("frames")._refresh()
        assert handle is catalog.log("frames")._refresh()
        store.token = "second"
        renewed = catalog.log("frames")._refresh()
        assert renewed is not handle and renewed._storage_options == {"AWS_SESSION_TOKEN": "second"}
        assert len(rows(catalog)) == 3

    def test_two_processes(self, tmp_path: Path) -> None:
        """Two processes that create the tables together and commit 20 batches each lose and double nothing."""
        code = (
            "import sys; from infra.catalog import *; from infra.store import DirStore\n"
            "c = open_catalog(DirStore(sys.argv[1])); w = int(sys.argv[2])\n"
            "for k in range(20):\n"
            "    i = f'{w * 100 + k:032x}'\n"
            "    frames = [dict(clip_id=i, pts=p, p_keep=1) for p in range(5)]\n"
            "    made = {'frames': frames, 'gops': [{'clip_id': i, 'gop_index': 0}]}\n"
            "    c.commit(made, [Done('clip', i, 'scan', 'f', 1, 5)])\n"
        )
        folder = str(tmp_path / "store")
        running = [subprocess.Popen([sys.executable, "-c", code, folder, str(number)]) for number in range(2)]
        assert [process.wait(timeout=120) for process in running] == [0, 0]
        catalog = open_catalog(DirStore(folder))
        wanted = sorted((f"{w * 100 + k:032x}", p) for w in range(2) for k in range(20) for p in range(5))
        assert sorted(catalog.scan("frames", ["clip_id", "pts"]).collect().rows()) == wanted
        assert len(rows(catalog, "gops", live=False)) == 40 and len(catalog.done("scan")) == 40
        assert maintain.check(catalog) == []


class TestDamage:
    def test_every_flipped_bit(self) -> None:
        """A data file with a bit flipped in any of its bytes raises a CatalogError that names it."""
        store, schema = MemoryStore(), tables.SCHEMAS["frames"]
        (made,) = datafiles.encode("frames", datafiles.to_table("frames", frames(A, n=50), "b"), "b")
        file, key = DataFile(made.name, len(made.data), made.n_rows), f"tables/frames/{made.name}"
        for position in range(len(made.data)):
            flipped = made.data[position] ^ 1 << position % 8
            store.put(key, made.data[:position] + bytes([flipped]) + made.data[position + 1 :])
            with pytest.raises(CatalogError) as caught:
                list(datafiles.read(store, "frames", file, schema.names))
            assert made.name in str(caught.value)
        print(f"{len(made.data)} flips")

    def test_a_damaged_or_missing_file(self, catalog: Catalog) -> None:
        """scan and check name a data file that is damaged, cut off or gone."""
        catalog.commit({"frames": frames(A, n=50)}, scan_done(A))
        path = next(Path(catalog.store.url, "tables/frames").glob("*.parquet"))
        whole = path.read_bytes()
        for data in (whole[:-9] + b"x" + whole[-8:], whole[:100], b""):
            path.write_bytes(data)
            with pytest.raises(CatalogError, match=f"{path.name} in .* is damaged"):
                catalog.scan("frames").collect()
            assert any(path.name in problem for problem in maintain.check(catalog))
        path.unlink()
        with pytest.raises(CatalogError, match=f"{path.name} in .* is gone"):
            catalog.scan("frames").select(pl.len()).collect()

    def test_long_tables_become_several_files(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows over the size of one file are cut into several, committed in one step and read in order."""
        monkeypatch.setattr(datafiles, "MAX_BYTES", 6000)
        given = [row | {"motion_score": random.Random(row["pts"]).random()} for row in frames(A, n=3000)]
        catalog.commit({"frames": given}, scan_done(A))
        assert len(catalog.log("frames").files()) > 2 and catalog.log("frames").version() == 1
        assert catalog.scan("frames", ["pts"]).collect()["pts"].sort().to_list() == [row["pts"] for row in given]

    def test_torn_names_every_truncation(self, catalog: Catalog) -> None:
        """Every proper prefix of every log entry is seen to be torn, also one that ends between two actions."""
        catalog.commit({"clips": [clip(A)]}, scan_done(A))
        n_points = 0
        for path in Path(catalog.store.url).glob("tables/*/_delta_log/*.json"):
            whole = path.read_bytes()
            assert torn(whole) is None
            for length in range(len(whole)):
                assert torn(whole[:length]) is not None, (path, length)
                n_points += 1
        print(f"{n_points} truncations")

    @pytest.mark.parametrize("kind", ["zero", "half", "nul", "hole"])
    def test_a_torn_end_is_refused_and_repaired(self, catalog: Catalog, kind: str) -> None:
        """A torn last entry is never read as empty: an error names it and the remedy, which sets it aside."""
        catalog.commit({"frames": frames(A)}, scan_done(A))
        catalog.commit({"frames": frames(B)}, scan_done(B))
        log = Path(catalog.store.url, "tables/done/_delta_log")
        entry = log / f"{2:020d}.json"
        whole = entry.read_bytes()
        torn_bytes = {"zero": b"", "half": whole[: len(whole) // 2], "nul": b"\0" * len(whole), "hole": None}[kind]
        if torn_bytes is None:
            entry.rename(log / f"{3:020d}.json")
            entry = log / f"{3:020d}.json"
        else:
            entry.write_bytes(torn_bytes)
        with pytest.raises(CatalogError) as caught:
            again(catalog).done("scan")
        assert entry.name in str(caught.value) and f"camloop doctor --store {catalog.store.url} --repair" in str(caught.value)
        with pytest.raises(CatalogError):
            again(catalog).commit({}, scan_done(C))
        healed = again(catalog)
        assert [Path(name).name[:25] for name in maintain.repair(healed)] == [entry.name]
        assert healed.done("scan") == {A} and len(rows(healed)) == 3
        healed.commit({"frames": frames(B)}, scan_done(B))
        assert again(catalog).done("scan") == {A, B} and maintain.check(again(catalog)) == []
        if kind != "hole":
            assert [path.read_bytes() for path in log.glob("*.quarantine")] == [torn_bytes]

    def test_a_torn_checkpoint(self, catalog: Catalog) -> None:
        """A torn checkpoint or pointer is found, set aside, and costs nothing, since log entries are kept for ever."""
        for clip_id in (A, B):
            catalog.commit({"frames": frames(clip_id)}, scan_done(clip_id))
        maintain.compact(catalog)
        log = Path(catalog.store.url, "tables/frames/_delta_log")
        for name in [next(log.glob("*.checkpoint.parquet")).name, "_last_checkpoint"]:
            (log / name).write_bytes((log / name).read_bytes()[:20])
        with pytest.raises(CatalogError, match="torn"):
            rows(again(catalog))
        assert len(maintain.repair(again(catalog))) == 2
        assert len(rows(again(catalog))) == 6


class TestCompaction:
    def test_same_rows_fewer_files(self, catalog: Catalog) -> None:
        """Compaction changes no row, live or not, and an old snapshot reads on for a day; then files go, rows stay."""
        for number in range(6):
            catalog.commit({"frames": frames(A, B, n=number + 1)}, scan_done(A, B, fingerprint=f"f{number // 2}"))
        before = {live: catalog.scan("frames", live=live).collect().sort(pl.all()) for live in (True, False)}
        snapshot = catalog.snapshot()
        done = maintain.compact(catalog)
        assert {row.table: (row.n_files_before, row.n_files_after, row.n_objects_removed) for row in done} == {
            "frames": (6, 1, 0), "done": (6, 1, 0),
        }  # fmt: skip
        for reader in (catalog, again(catalog), catalog.at(snapshot), again(catalog).at(snapshot)):
            for live, frame in before.items():
                assert reader.scan("frames", live=live).collect().sort(pl.all()).equals(frame)
        day_later = FakeClock(now_ns=time.time_ns() + 25 * HOUR_NS)
        removed = maintain.compact(catalog, clock=day_later)
        assert {row.table: row.n_objects_removed for row in removed} == {"frames": 6, "done": 6}
        assert again(catalog).scan("frames").collect().sort(pl.all()).equals(before[True])
        assert maintain.check(again(catalog)) == []
        catalog.commit({"frames": frames(C)}, scan_done(C))
        assert again(catalog).done("scan") == {A, B, C}

    def test_what_a_crash_left(self, catalog: Catalog) -> None:
        """A batch that done never named stays for a day, in case its writer is slow, and is then gone."""
        catalog.commit({"frames": frames(A)}, scan_done(A))
        lost = datafiles.to_table("frames", frames(B), keys.new_id())
        catalog.log("frames").append(datafiles.encode("frames", lost, lost["batch_id"][0].as_py()), clock=FakeClock())
        assert maintain.compact(catalog) == [] and catalog.scan("frames", live=False).collect().height == 6
        later = FakeClock(now_ns=time.time_ns() + 25 * HOUR_NS)
        maintain.compact(catalog, clock=later)
        assert catalog.scan("frames", live=False).collect().height == 3 and len(rows(catalog)) == 3

    def test_one_compactor_at_a_time(self, catalog: Catalog) -> None:
        """A held lease is refused with its owner; an expired one is taken over, and its old holder stops."""
        clock = FakeClock()
        with maintain._lease(catalog.store, clock, "first") as renew:
            with pytest.raises(CatalogError, match="being compacted by 'first'; try again in 3600 s"):
                maintain.compact(catalog, clock=clock)
            clock.advance_s(3601)
            maintain.compact(catalog, clock=clock, owner="second")
            with pytest.raises(CatalogError, match="took over"):
                renew()
        maintain.compact(catalog, clock=clock)


class TestDoctor:
    def run(self, catalog: Catalog, *flags: str) -> tuple[int, Any]:
        parser, text = argparse.ArgumentParser(), io.StringIO()
        doctor(parser)
        args = parser.parse_args(flags)
        context = Context(settings=Settings(), out=Output(as_json=True, stdout=text), store_url=catalog.store.url)
        return args.run(args, context), json.loads(text.getvalue())

    def test_healthy_torn_repaired(self, catalog: Catalog) -> None:
        """doctor says healthy with versions, then names what is torn (exit 1), repairs it, compacts, tests the store."""
        catalog.commit({"frames": frames(A)}, scan_done(A))
        catalog.commit({"frames": frames(B)}, scan_done(B))
        assert self.run(catalog) == (0, {"problems": [], "gone": [], "versions": {"done": 2, "frames": 2}})
        entry = Path(catalog.store.url, "tables/frames/_delta_log", f"{2:020d}.json")
        entry.write_bytes(b"")
        code, said = self.run(catalog)
        assert code == 1 and str(entry) in said["problems"][0] and "zero bytes" in said["problems"][0]
        code, said = self.run(catalog, "--repair")
        assert code == 0 and len(said["set_aside"]) == 1
        assert self.run(catalog, "--compact")[1]["compacted"][0]["table"] == "done"
        assert self.run(catalog, "--self-test")[1]["capabilities"]["put_if_absent"] is True
