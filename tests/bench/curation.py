"""How fast curation is: the plain loop, two processes of it, and Ray Data, on the same clips; start-up apart.

    .venv/bin/python tests/bench/curation.py [--data ../shared/data] [--every-s 1] [--json]

Each way curates the same real clips with real YOLO weights into a fresh store. What starting costs is measured by the same
way on one frame of one clip; working time is the whole less that. Look at the load of the machine first.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
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
    with redirect_stdout(io.StringIO()):
        code = main(["ingest", str(incoming), "--store", str(folder / "store"), "--quiet"])
    if code:
        sys.exit(code)


def measure(folder: Path, weights: Path, every_s: float, engine: str, clips: slice = slice(None)) -> dict[str, float]:
    """Curate some clips of a store and return seconds and frames."""
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

    def some(run: Any, works: Sequence[Any], stages: Sequence[Any]) -> Iterator[Any]:
        yield from run(works[clips], stages)

    start = time.monotonic()
    with jobs.cluster(None) if engine == "ray" else nullcontext(1) as cpus:
        run = jobs.run_ray if engine == "ray" else pipeline.run_local
        result = curate(catalog, options, Settings(), engine=partial(some, run), cpus=cpus)
        wall_s = time.monotonic() - start
    return {"wall_s": wall_s, "n_frames": result.tally.n_frames}


def _child(out: Any, *arguments: Any) -> None:
    out.put(measure(*arguments))


def two_processes(folder: Path, weights: Path, every_s: float, stop: int | None = None) -> dict[str, float]:
    """Run two plain loops side by side, each on every second clip."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    start = time.monotonic()
    parts = [(out, folder, weights, every_s, "loop", slice(i, stop, 2)) for i in range(2)]
    children = [context.Process(target=_child, args=part) for part in parts]
    for child in children:
        child.start()
    found = [out.get() for _ in children]
    wall_s = time.monotonic() - start
    for child in children:
        child.join()
    return {"wall_s": wall_s, "n_frames": sum(one["n_frames"] for one in found)}


def in_fresh_store(data: Path, run: Callable[[Path], dict[str, float]]) -> dict[str, float]:
    """Call `run` with a folder in which the clips are ingested."""
    with tempfile.TemporaryDirectory() as name:
        make_store(Path(name), data)
        return run(Path(name))


def main() -> None:
    """Measure all three and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared/data")
    parser.add_argument("--every-s", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    weights = arguments.data / "weights/yolov8n_int8_640.onnx"
    found: dict[str, dict[str, float]] = {"load before": {"load": os.getloadavg()[0]}}
    every_s = arguments.every_s
    ways: dict[str, tuple[Callable[[Path], dict[str, float]], Callable[[Path], dict[str, float]]]] = {
        "loop, 1 process": (
            lambda f: measure(f, weights, 1e6, "loop", slice(1)),
            lambda f: measure(f, weights, every_s, "loop"),
        ),
        "loop, 2 processes": (lambda f: two_processes(f, weights, 1e6, 2), lambda f: two_processes(f, weights, every_s)),
        "ray data, 2 cores": (
            lambda f: measure(f, weights, 1e6, "ray", slice(1)),
            lambda f: measure(f, weights, every_s, "ray"),
        ),
    }
    for name, (first, whole) in ways.items():
        start_s = in_fresh_store(arguments.data, first)["wall_s"]
        made = in_fresh_store(arguments.data, whole)
        work_s = made["wall_s"] - start_s
        row = {"n_frames": made["n_frames"], "start_s": start_s, "work_s": work_s}
        found[name] = row | {"frames_per_s": made["n_frames"] / work_s}
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"load before: {found.pop('load before')['load']:.1f}")
    for name, row in found.items():
        seconds = f"start {row['start_s']:5.1f} s  work {row['work_s']:6.1f} s"
        print(f"{name:20} {row['n_frames']:5.0f} frames  {seconds}  {row['frames_per_s']:6.2f} frames/s")


if __name__ == "__main__":
    main()
