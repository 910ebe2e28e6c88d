"""How fast are commits, scans and the frame view? Prints one table.

Usage: python tests/bench/scan.py [--frames 1000000] [--commits 50] [--folder DIR]

Commits are batches of 20 clips over three tables and `done`, on a folder, each fsynced; the target is 5 a second. The
view is made over a store of `--frames` frames of 1000 clips with tags, detections and labels; the target is a few seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from infra import keys, maintain
from infra.catalog import Catalog, Done, open_catalog
from infra.store import DirStore
from infra.views import frames_view
from infra.where import parse

N_CLIPS = 1000


@contextmanager
def timed(what: str) -> Iterator[Callable[[str], None]]:
    """Print what was done, how long it took and a remark."""
    remarks: list[str] = []
    start = time.perf_counter()
    yield remarks.append
    print(f"{what:<44} {time.perf_counter() - start:8.2f} s  {' '.join(remarks)}")


def clip_ids(n: int) -> list[str]:
    return [f"{number:032x}" for number in range(n)]


def done(step: str, clips: list[str]) -> list[Done]:
    return [Done("clip", clip_id, step, "f", 1, 1) for clip_id in clips]


def commits(catalog: Catalog, n: int) -> None:
    """Commit `n` batches of 20 clips over three tables."""
    for number in range(n):
        clips = [f"{number * 20 + i:032x}" for i in range(20)]
        catalog.commit(
            {
                "gops": [{"clip_id": c, "gop_index": g, "pts": [0, 1]} for c in clips for g in range(5)],
                "frames": [{"clip_id": c, "pts": p, "p_keep": 1.0} for c in clips for p in range(10)],
                "detections": [
                    {"clip_id": c, "pts": 0, "det_id": "d", "source": "y@1", "class_name": "person", "score": 0.5}
                    for c in clips
                ],
            },
            done("scan", clips),
        )


def fill(catalog: Catalog, n_frames: int) -> None:
    """Write `n_frames` frames of 1000 clips, a detection on each third, a tag on each, 20 labels a clip."""
    clips = clip_ids(N_CLIPS)
    per_clip = n_frames // N_CLIPS
    made = pl.DataFrame({"clip_id": clips}).join(pl.DataFrame({"pts": range(per_clip)}), how="cross")
    rows = [
        {"clip_id": c, "key": f"clips/c/{c}.mp4", "camera_id": f"cam{i % 10}", "camera_number": i % 10, "start_ns": i * 10**12,
         "recording_id": c, "time_base_num": 1, "time_base_den": 30, "first_pts": 0, "end_pts": per_clip, "state": "live"}
        for i, c in enumerate(clips)
    ]  # fmt: skip
    catalog.append(
        "cameras", [{"camera_id": f"cam{i}", "camera_number": i, "valid_from_ns": 0, "angle": "high"} for i in range(10)]
    )
    catalog.commit({"clips": rows}, done("register", clips))
    catalog.commit({"frames": made.with_columns(p_keep=1.0, brightness=0.5).to_arrow()}, done("scan", clips))
    boxes = made.filter(pl.col("pts") % 3 == 0).with_columns(
        det_id=pl.lit("d"), source=pl.lit("y@1"), class_name=pl.lit("person"), score=0.5
    )
    catalog.commit({"detections": boxes.to_arrow()}, done("detect", clips))
    night = pl.when(pl.col("pts") % 2 == 0).then(pl.lit("night")).otherwise(pl.lit("day"))
    tags = made.with_columns(factor=pl.lit("lighting"), name=night, score=0.9, source=pl.lit("lighting@1"))
    catalog.commit({"tags": tags.to_arrow()}, done("tag", clips))
    said = [
        {
            "label_id": f"{c}{k}",
            "clip_id": c,
            "start_pts": k * per_clip // 20,
            "end_pts": (k + 1) * per_clip // 20,
            "name": "walk",
        }
        for c in clips
        for k in range(20)
    ]
    catalog.append("labels", said)


def beside_native(catalog: Catalog) -> None:
    """Print the verified scan of whole tables beside what Polars' own Parquet reader takes for the same live files.

    In turns, the best of five of each; both collect every column that our scan gives. The native reader neither compares
    the files' hashes nor their pages' checksums, nor leaves out rows that are not live: it is the limit, not a rival.
    """
    for table in ("frames", "detections", "tags"):
        files = [Path(catalog.store.table_uri(keys.table_prefix(table))) / file.name for file in catalog.log(table).files()]
        columns = catalog.scan(table).collect_schema().names()
        ways = {
            "verified scan": lambda: catalog.scan(table).collect(),  # noqa: B023
            "native Polars": lambda: pl.scan_parquet(files).select(columns).collect(),  # noqa: B023
        }
        best = dict.fromkeys(ways, (float("inf"), float("inf")))
        for _ in range(5):
            for name, work in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                n_rows = work().height
                best[name] = min(best[name], (time.perf_counter() - wall, time.process_time() - cpu))
        for name, (wall_s, cpu_s) in best.items():
            print(f"{f'{table}, {n_rows} rows, all columns: {name}':<52} {wall_s:6.2f} s  {cpu_s:6.2f} s CPU")


def main() -> None:
    """Run all measurements in a fresh folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--commits", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="where the stores are made (default: the temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        small = open_catalog(DirStore(Path(folder) / "small"))
        with timed(f"{args.commits} commits of 20 clips, 3 tables and done") as remark:
            start = time.perf_counter()
            commits(small, args.commits)
            remark(f"{args.commits / (time.perf_counter() - start):.1f} a second")
        with timed(f"scan of {args.commits} small files"):
            small.scan("frames").select(pl.len()).collect()
        with timed("compaction"):
            maintain.compact(small)
        big = open_catalog(DirStore(Path(folder) / "big"))
        with timed(f"writing {args.frames} frames, their tags and detections"):
            fill(big, args.frames)
        with timed("scan of frames, two columns") as remark:
            remark(f"{big.scan('frames', ['clip_id', 'pts']).collect().height} rows")
        beside_native(big)
        with timed("frames_view, all columns") as remark:
            remark(f"{frames_view(big).collect().height} rows")
        with timed("frames_view, where and group by") as remark:
            view = frames_view(big)
            where = parse("n_person >= 1 and lighting = 'night' and label = 'walk'").to_polars(view.collect_schema())
            remark(f"{view.filter(where).group_by('camera_id').len().collect()['len'].sum()} rows")


if __name__ == "__main__":
    main()
