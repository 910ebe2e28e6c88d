"""How fast curation is: the plain loop, two processes of it, and Ray Data, on the same clips; start-up apart.

    .venv/bin/python tests/bench/curation.py [--data ../shared/data] [--every-s 1] [--json]

Each way curates copies of the same real clips with real YOLO weights into a fresh store. Reported are frames looked at
per second of working time (first batch to last), and what starting cost. Look at the load of the machine first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

CLIPS = (
    "videos/pedestrians_plaza.mp4",
    "videos/hallway_person.mp4",
    "videos/car_overhead_day.mp4",
    "videos/bottles_indoor.mp4",
)


def make_store(folder: Path, data: Path) -> None:
    """Ingest the clips by the command itself."""
    from infra.cli import main

    incoming = folder / "incoming"
    incoming.mkdir()
    for name in CLIPS:
        (incoming / Path(name).name).write_bytes((data / name).read_bytes())
    code = main(["ingest", str(incoming), "--store", str(folder / "store"), "--quiet", "--json"])
    if code:
        sys.exit(code)


def measure(folder: Path, weights: Path, every_s: float, engine: str, part: tuple[int, int] = (0, 1)) -> dict[str, float]:
    """Curate one store (or the part `i` of `n` of its clips) and return seconds and frames."""
    from curate import factors, jobs, pipeline
    from curate.detect import read_weights
    from curate.plan import Options
    from curate.run import curate
    from infra.catalog import open_catalog
    from infra.settings import Settings
    from infra.store import DirStore

    catalog = open_catalog(DirStore(folder / "store"))
    options = Options(
        steps=("scan", "detect"), detector=read_weights(weights), sheet=factors.parse(factors.DEFAULT), every_s=every_s
    )
    first: list[float] = []

    def timed(run: Any, works: Sequence[Any], stages: Sequence[Any]) -> Iterator[Any]:
        mine = works[part[0] :: part[1]]
        for batch in run(mine, stages):
            first.append(time.monotonic())
            yield batch

    start = time.monotonic()
    with jobs.cluster(None) if engine == "ray" else nullcontext(1) as cpus:
        run = jobs.run_ray if engine == "ray" else pipeline.run_local
        result = curate(catalog, options, Settings(), engine=partial(timed, run), cpus=cpus)
        end = time.monotonic()
    return {"start_s": first[0] - start, "work_s": end - first[0], "n_frames": result.tally.n_frames}


def _child(out: Any, *arguments: Any) -> None:
    out.put(measure(*arguments))


def two_processes(folder: Path, weights: Path, every_s: float) -> dict[str, float]:
    """Run two plain loops side by side, each on every second clip."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    start = time.monotonic()
    children = [context.Process(target=_child, args=(out, folder, weights, every_s, "loop", (i, 2))) for i in range(2)]
    for child in children:
        child.start()
    found = [out.get() for _ in children]
    wall = time.monotonic() - start
    for child in children:
        child.join()
    start_s = min(one["start_s"] for one in found)
    return {"start_s": start_s, "work_s": wall - start_s, "n_frames": sum(one["n_frames"] for one in found)}


def main() -> None:
    """Measure all three and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared/data")
    parser.add_argument("--every-s", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    weights = arguments.data / "weights/yolov8n_int8_640.onnx"
    found: dict[str, dict[str, float]] = {"load before": {"load": os.getloadavg()[0]}}
    for name in ("loop, 1 process", "loop, 2 processes", "ray data, 2 cores"):
        with tempfile.TemporaryDirectory() as folder_name:
            folder = Path(folder_name)
            make_store(folder, arguments.data)
            if "2 processes" in name:
                made = two_processes(folder, weights, arguments.every_s)
            else:
                made = measure(folder, weights, arguments.every_s, "ray" if "ray" in name else "loop")
        found[name] = made | {"frames_per_s": made["n_frames"] / made["work_s"]}
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"load before: {found.pop('load before')['load']:.1f}")
    for name, row in found.items():
        seconds = f"start {row['start_s']:5.1f} s  work {row['work_s']:6.1f} s"
        print(f"{name:20} {row['n_frames']:5.0f} frames  {seconds}  {row['frames_per_s']:6.2f} frames/s")


if __name__ == "__main__":
    main()
