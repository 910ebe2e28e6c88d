"""What asking for the events of a month costs: `camloop query --intervals motion` on the scores of one camera.

    .venv/bin/python -m tests.bench.events [--days 30] [--folder DIR]

The world is tables only: clips of 10 minutes at 15 frames a second without gaps, GOPs of 30 frames, all decoded; scores of
.000 to .004, and 20 events a day of 3 to 60 s with .05 at times drawn from seed 4, at least 5 s apart, clip borders no
obstacle. Fixed before the first run: the question with its defaults has to give exactly these events, within 60 s and 1 GB
(resident memory of the process that asks).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

RATE, GOP, CLIP_S, EVENTS_A_DAY, SEED = 15, 30, 600, 20, 4
BAR_S = 60.0
START_NS = 1_767_225_600 * 10**9  # 2026-01-01 UTC
CLIPS_A_COMMIT = 64

_ASK = """
import json, resource, sys, time
began = time.monotonic()
from curate import events, layers, open_catalog
found = events.find(open_catalog(sys.argv[1]).catalog, layers.layer("motion"))
spread = found.rows.group_by("event_id").agg(__import__("polars").col("start_utc_ns").min(),
    __import__("polars").col("end_utc_ns").max()).sort("start_utc_ns")
print(json.dumps({"events": spread.select("start_utc_ns", "end_utc_ns").rows(), "rows": found.rows.height,
    "seconds": time.monotonic() - began, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def planned(days: int) -> list[tuple[int, int]]:
    """Return the events as (first frame, end frame) of the whole footage, sorted, at least 5 s apart."""
    draw = np.random.Generator(np.random.PCG64(SEED))
    made: list[tuple[int, int]] = []
    for day in range(days):
        for start_s in np.sort(draw.uniform(10, 86_300, EVENTS_A_DAY)):
            start = round((86_400 * day + float(start_s)) * RATE)
            end = min(start + round(float(draw.uniform(3, 60)) * RATE), days * 86_400 * RATE)
            if not made or start - made[-1][1] >= 5 * RATE:
                made.append((start, end))
    return made


def fill(url: str, days: int) -> None:
    """Write the tables."""
    from infra import keys
    from infra.catalog import Done, open_catalog
    from infra.settings import load_settings
    from infra.store import open_store

    catalog = open_catalog(open_store(url, load_settings()))
    n = CLIP_S * RATE
    moving = np.zeros(days * 86_400 * RATE, np.bool_)
    for start, end in planned(days):
        moving[start:end] = True
    draw = np.random.Generator(np.random.PCG64(SEED + 1))
    numbers = list(range(days * 86_400 // CLIP_S))
    for batch in (numbers[i : i + CLIPS_A_COMMIT] for i in range(0, len(numbers), CLIPS_A_COMMIT)):
        ids = [keys.derived_id("bench", number) for number in batch]
        clips = [
            {
                "clip_id": clip_id, "key": f"clips/cam/{clip_id}.mp4", "source_name": f"{number:06}.mp4", "camera_id": "cam",
                "camera_number": 1, "recording_id": "r", "boot_id": "b", "seq": number,
                "start_mono_ns": number * CLIP_S * 10**9,
                "start_ns": START_NS + number * CLIP_S * 10**9, "time_base_num": 1, "time_base_den": RATE, "first_pts": 0,
                "end_pts": n, "n_frames": n, "width_px": 1920, "height_px": 1080, "index": "packets", "state": "live",
            }
            for number, clip_id in zip(batch, ids, strict=True)
        ]  # fmt: skip
        catalog.commit({"clips": clips}, [Done("clip", clip_id, "register", "f", 1, 1) for clip_id in ids])
        scores = draw.uniform(0, 0.004, len(batch) * n).astype(np.float32)
        scores[moving[batch[0] * n : (batch[-1] + 1) * n]] = 0.05
        per_clip = n // GOP
        offsets = pa.array(np.arange(0, len(scores) + 1, GOP, dtype=np.int32))
        starts = np.tile(np.arange(0, n, GOP), len(batch))
        gops = pa.table(
            {
                "clip_id": pa.array([clip_id for clip_id in ids for _ in range(per_clip)]),
                "gop_index": pa.array(np.tile(np.arange(per_clip, dtype=np.int32), len(batch))),
                "start_pts": pa.array(starts), "end_pts": pa.array(starts + GOP),
                "pts": pa.ListArray.from_arrays(offsets, pa.array(np.tile(np.arange(n), len(batch)))),
                "decoded": pa.array(np.ones(len(starts), np.bool_)), "p_keep": pa.array(np.ones(len(starts))),
                "motion": pa.ListArray.from_arrays(offsets, pa.array(scores)),
            }
        )  # fmt: skip
        catalog.commit({"gops": gops}, [Done("clip", clip_id, "scan", "f" * 32, n, 0) for clip_id in ids])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        url = str(given.folder or Path(scratch) / "store")
        began = time.monotonic()
        if not Path(url, "camloop.json").exists():
            fill(url, given.days)
        filled_s = time.monotonic() - began
        done = subprocess.run([sys.executable, "-c", _ASK, url], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        answer = json.loads(done.stdout)
    wanted = [[START_NS + round(at * 10**9 / RATE) for at in pair] for pair in planned(given.days)]
    close = len(wanted) == len(answer["events"]) and all(
        abs(a - b) <= 1 for mine, yours in zip(wanted, answer["events"], strict=True) for a, b in zip(mine, yours, strict=True)
    )
    rows = [
        ("frames", f"{given.days * 86_400 * RATE:,}", ""),
        ("events planned, found", f"{len(wanted)}, {len(answer['events'])}", ""),
        ("all at their times", "yes" if close else "NO", "yes"), ("rows", f"{answer['rows']:,}", ""),
        ("seconds", f"{answer['seconds']:.1f}", f"<= {BAR_S:g}"),
        ("memory", f"{answer['bytes'] / 1e6:,.0f} MB", "<= 1,000 MB"),
        ("writing the tables, s", f"{filled_s:.1f}", ""),
    ]  # fmt: skip
    sys.stdout.write("| what | measured | bar |\n|---|---|---|\n")
    sys.stdout.writelines(f"| {name} | {value} | {bar} |\n" for name, value, bar in rows)


if __name__ == "__main__":
    main()
