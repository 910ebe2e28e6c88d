"""How much a cascade saves, and which persons it loses: beside the detector and openclip on every sampled frame.

    .venv/bin/python tests/bench/cascade.py [--data ../shared/data] [--only still|real] [--json]

Three ways over the same footage, each into a fresh store, by the plain loop on one core:

    baseline  every frame decoded; YOLO 640 px and an embedder of ViT-B/32 shape (random weights) on every sampled frame
    cascade   every frame decoded; then the stages of `STAGES`
    gated     the same stages behind the packet gate (`--gate packets`)

`still`: N_CLIPS clips of CLIP_S seconds at 1280x720 and 15 frames/s, a real empty plaza with sensor noise; in each, once,
EVENT_S seconds of real pedestrians of the same camera: people PEOPLE_SHARE of the time. `real`: three real clips, printed only.

A person event is what the baseline saw: frames with a person from MIN_SCORE on, less than JOIN_S apart. It is found when the
other way saw a person within its first and last such frame (give or take half a sampling interval). Seconds are CPU seconds of
the process and its decoder, each way in a process of its own, less what it takes for one second of still footage (start-up);
seconds of the stages are wall time. Bars: 10x at recall .98 (`still`, gated).
World, stages and seed were committed before the first run.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import motion_world
import numpy as np
import polars as pl

SEED = 4
N_CLIPS, CLIP_S, EVENT_S, FPS = 12, 60, 3.0, 15
PEOPLE_SHARE = EVENT_S / CLIP_S
SIZE_PX = (1280, 720)
NOISE_SD = 2.5
EVERY_S = 0.5
MIN_SCORE = 0.5  # the baseline's own threshold: at .25 it sees a person in the empty plaza, at .26, now and then
JOIN_S = 2.0
REAL = ("hallway_person.mp4", "road_junction_vehicles.mp4", "pedestrians_plaza.mp4")
STAGES = """
[[stage]]
name = "cheap"
step = "detect"
weights = "{weights}/yolov8n_int8_320.onnx"
when = "motion_score > 0.001"
audit = 0.02

[[stage]]
name = "fine"
step = "detect"
weights = "{weights}/yolov8n_int8_640.onnx"
when = "n_person > 0"
min_score = 0.1
audit = 0.05

[[stage]]
name = "vit"
step = "embed"
weights = "{vit}"
model = "ViT-B-32"
when = "n_person > 0"
"""


def plaza(data: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the empty plaza and its pedestrians, RGB uint8 at SIZE_PX, every other frame (15 frames/s)."""
    from infra import video

    path = data / "videos" / "pedestrians_plaza.mp4"
    pictures = [picture.rgb(picture.size_px).copy() for picture in video.pictures(path, index="packets")]
    large = [cv2.resize(picture, SIZE_PX) for picture in pictures[::2]]
    return np.median(np.stack(large[-15:]), axis=0).astype(np.uint8), large


def write_still(path: Path, number: int, empty: np.ndarray, people: list[np.ndarray], seconds: float = CLIP_S) -> None:
    """Encode one clip of the world, as an IP camera would (`motion_world`)."""
    rng = np.random.default_rng([SEED, number])
    n_event = round(EVENT_S * FPS)
    first, source = int(rng.integers(FPS, CLIP_S * FPS - n_event - FPS)), int(rng.integers(0, 200))
    noise = rng.normal(0, NOISE_SD, (4, SIZE_PX[1], SIZE_PX[0], 1)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options=motion_world.X264)
        stream.width, stream.height, stream.pix_fmt = *SIZE_PX, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        stream.codec_context.thread_count = 1
        for pts in range(round(seconds * FPS)):
            ground = people[source + pts - first] if first <= pts < first + n_event else empty
            shift = tuple(int(value) for value in rng.integers(0, 400, 2))
            grain = np.roll(noise[int(rng.integers(4))], shift, axis=(0, 1))
            rgb = np.clip(ground + grain, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def ingest(incoming: Path, store: Path) -> None:
    """Register the clips of a folder."""
    from infra.cli import main as camloop

    with redirect_stdout(io.StringIO()):
        if camloop(["ingest", str(incoming), "--store", str(store), "--quiet"]):
            sys.exit(1)


def options(way: str, folder: Path, weights: Path) -> Any:
    """Return what a way is asked for."""
    from curate import cascade, detect, factors, openclip
    from curate.plan import Options

    vit = folder / "vit.pt"
    common: dict[str, Any] = {
        "steps": ("scan", "detect", "embed"), "every_s": EVERY_S, "sheet": factors.parse(factors.DEFAULT),
        "embedder": openclip.find_weights(vit), "embedder_path": vit, "embedder_model": "ViT-B-32",
    }  # fmt: skip
    if way == "baseline":
        return Options(detector=detect.read_weights(weights / "yolov8n_int8_640.onnx"), **common)
    found = cascade.parse(STAGES.format(weights=weights, vit=vit))
    return Options(cascade=found, score=2, gate="packets" if way == "gated" else "none", **common)


def curate(way: str, folder: Path, incoming: Path, weights: Path) -> tuple[Path, dict[str, Any]]:
    """Curate the clips of a folder in one way, in a process of its own; return the store and what it counted."""
    store = incoming.with_name(f"{incoming.name}-{way}")
    ingest(incoming, store)
    command = [sys.executable, __file__, "--one", way, str(folder), str(store), str(weights)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        counted = process.stdout.read().splitlines()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return store, {"stages": json.loads(counted[-1]), "cpu_s": used.ru_utime + used.ru_stime}


def one(way: str, folder: Path, store: Path, weights: Path) -> int:
    """Curate a store and print what went through each stage."""
    from dataclasses import asdict

    from curate.run import curate as work
    from infra.catalog import open_catalog
    from infra.settings import Settings
    from infra.store import DirStore

    tally = work(open_catalog(DirStore(store)), options(way, folder, weights), Settings()).tally
    print(json.dumps({name: asdict(flow) for name, flow in tally.stages.items()}))
    return 0


def seen(footage: Any) -> pl.DataFrame:
    """Return source_name and pts_s of the frames with a person."""
    rows = footage.frames.counting(MIN_SCORE).where("n_person > 0").lazy()
    return rows.select("source_name", "pts_s").sort("source_name", "pts_s").collect()


def events(rows: pl.DataFrame) -> Iterator[tuple[str, float, float]]:
    """Yield clip, first and last second of each event."""
    begins = (pl.col("source_name") != pl.col("source_name").shift()) | (pl.col("pts_s").diff() >= JOIN_S)
    numbered = rows.with_columns(event=begins.fill_null(True).cum_sum())
    for (_, name), mine in numbered.group_by("event", "source_name", maintain_order=True):
        yield str(name), float(mine["pts_s"].min()), float(mine["pts_s"].max())  # type: ignore[arg-type]


def compare(
    title: str, incoming: Path, second: Path, folder: Path, weights: Path, starts: dict[str, float]
) -> list[dict[str, Any]]:
    """Run all ways over one folder of clips; `starts` keeps what starting costs."""
    from curate import losses
    from curate.query import open_catalog
    from infra.store import DirStore

    rows: list[dict[str, Any]] = []
    truth: list[tuple[str, float, float]] = []
    for way in ("baseline", "cascade", "gated"):
        if way not in starts:
            starts[way] = curate(way, folder, second, weights)[1]["cpu_s"]
        store, counted = curate(way, folder, incoming, weights)
        footage = open_catalog(DirStore(store), vault=True)
        found = seen(footage)
        truth = truth or list(events(found))
        hits = [
            not found.filter(
                pl.col("source_name") == name, pl.col("pts_s").is_between(first - EVERY_S / 2, last + EVERY_S / 2)
            ).is_empty()
            for name, first, last in truth
        ]
        stages = {
            name: f"{flow['n_in']}>{flow['n_passed']}>{flow['n_out']} {flow['seconds']:.1f}s"
            for name, flow in counted["stages"].items()
        }
        audits = {
            loss.filter: f"{known.n_found} of {known.n_looked} looks, recall {known.low:.3f}-{known.high:.3f}"
            for loss in losses.losses(footage, min_score=MIN_SCORE)
            for known in [loss.audit]
        }
        rows.append(
            {"footage": title, "way": way, "seconds": counted["cpu_s"] - starts[way], "events": len(truth), "found": sum(hits),
             "stages": stages, "audit": audits}
        )  # fmt: skip
        rows[-1]["speedup"] = rows[0]["seconds"] / rows[-1]["seconds"]
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def write_vit(path: Path) -> None:
    """Write an image-text model of ViT-B/32 shape with random weights."""
    from infra.torchvision_cpu import ensure_nms

    ensure_nms()
    import open_clip
    import torch

    torch.manual_seed(SEED)
    torch.save(open_clip.create_model("ViT-B-32", pretrained=None).state_dict(), path)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    parser.add_argument("--only", choices=("still", "real"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments.one[0], *map(Path, arguments.one[1:]))
    weights = (arguments.data / "weights").resolve()
    rows: list[dict[str, Any]] = []
    starts: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_vit(folder / "vit.pt")
        empty, people = plaza(arguments.data)
        second = folder / "second"
        second.mkdir()
        write_still(second / "second.mp4", 999, empty, people, 1.0)
        if arguments.only != "real":
            incoming = folder / "still"
            incoming.mkdir()
            for number in range(N_CLIPS):
                write_still(incoming / f"still{number:02}.mp4", number, empty, people)
            rows += compare("still", incoming, second, folder, weights, starts)
        for clip in REAL if arguments.only != "still" else ():
            incoming = folder / Path(clip).stem
            incoming.mkdir()
            (incoming / clip).write_bytes((arguments.data / "videos" / clip).read_bytes())
            rows += compare(Path(clip).stem, incoming, second, folder, weights, starts)
    if arguments.json:
        print(json.dumps(rows))
        return 0
    print("| footage | way | CPU s | speed-up | person events found | stages: in > passed > looked, busy s | audit |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        stages = "; ".join(f"{name} {text}" for name, text in row["stages"].items())
        audits = "; ".join(f"{name}: {text}" for name, text in row["audit"].items()) or "-"
        print(
            f"| {row['footage']} | {row['way']} | {row['seconds']:.1f} | {row['speedup']:.1f}x | {row['found']} of "
            f"{row['events']} | {stages} | {audits} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
