"""What a camera's day costs to curate, stage by stage, and what seed 002's ten cameras would cost. Prints three tables.

    python tests/bench/camera_day.py [--core-hour MONEY --gb-month MONEY --gb-read MONEY] [--smoke]

    clips --> `camloop curate --gate packets --cascade` (stages of cascade.py: 320 px, 640 px, ViT-B/32 shape, random weights)
          --> core-seconds of each stage --> an hour of such footage --> 24 hours --> ten cameras

The footage, 1080p at 30 frames/s as in the seed:

- `still day`: cascade.py's world: a real empty plaza with sensor noise, real pedestrians of the same camera 5 % of the time.
  BASE_S seconds are encoded and repeated to one clip of ten minutes, as the seed's cameras deliver them. Its packets are as
  many bytes as a fixed camera's usually are (motion_world.py), about a fifth of the seed's 1 TB a day from ten cameras.
- `still, 1 TB/day`: the same encoded at the seed's mean rate, 9.26 Mbit/s, one minute of it. A rate control spends those bits
  whatever happens, which is what the gate cannot see through.
- three real clips that cascade.py names; busy, and shown only: nobody's whole day is like that.

Core-seconds are CPU seconds of the process and its decoder. *read* is reading all packets of the clip's file, measured alone;
*gate, decode* is the decoder's rest; a model's are its stage's calls; *commit* is writing tables; *rest* is everything else
(frames from the decoder to the models, rows). What one second of the same footage takes is subtracted from each: starting,
opening models. Reading a bucket costs waiting, not cores: --gb-read prices it. The days are extrapolated, not run: 24 hours
like the clip's; N cores as .8 N single ones and money as `camloop curate --plan` counts them (curate/estimate.py), people's
money and hours as `camloop query --coverage` does (curate/costs.py). The seed names no GPU and no price of one; so none stands
here.

World, stages and seed were committed before the first run; nothing changed after it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cascade
import motion_world

FPS, SIZE_PX = 30, (1920, 1080)
BASE_S, EVENT_S = 30, 1.5  # 5 %
REPEATS, REPEATS_RATE = 20, 2
CAMERAS, DAY_BYTES, DAY_PICTURES = 10, 1e12, 27_000_000  # seed 002, a day of all cameras
RATE_KBIT_S = round(DAY_BYTES * 8 / CAMERAS / 86_400 / 1000)
PRICES = {"core_hour": 0.04, "gb_month": 0.023, "gb_read": 0.0}  # as the guide's example; a day's core of a small cloud machine
CORES = (2, 8, 64)
HOUR_S, DAY_S, MONTH_DAYS = 3600.0, 86_400.0, 30
STAGES = ("read", "gate, decode", "cheap", "fine", "vit", "commit", "rest")


def shape(*, smoke: bool, rate: bool) -> None:
    """Set the world of `cascade` to this benchmark's."""
    cascade.FPS, cascade.SIZE_PX, cascade.CLIP_S, cascade.EVENT_S = FPS, SIZE_PX, BASE_S, EVENT_S
    if smoke:
        cascade.SIZE_PX, cascade.CLIP_S = (480, 270), 4
    if rate:
        motion_world.X264 = {name: value for name, value in motion_world.X264.items() if name != "crf"}
        motion_world.X264["x264-params"] += f":bitrate={RATE_KBIT_S}"


def draw(path: Path, data: Path, repeats: int, smoke: bool, rate: bool) -> None:
    """Encode a stretch of the world and write it `repeats` times, one after the other, into one clip."""
    shape(smoke=smoke, rate=rate)
    empty, people = cascade.plaza(data)
    base = path.with_suffix(".base.mp4")
    cascade.write_still(base, 0, empty, people, cascade.CLIP_S)
    with av.open(str(path), "w") as made:
        stream: Any = None
        at = 0
        for _ in range(repeats):
            with av.open(str(base)) as read:
                source = read.streams.video[0]
                stream = stream or made.add_stream_from_template(source)
                length = 0
                for packet in read.demux(source):
                    if packet.pts is None or packet.dts is None:
                        continue
                    length = max(length, packet.pts + packet.duration)
                    packet.pts, packet.dts, packet.stream = packet.pts + at, packet.dts + at, stream
                    made.mux(packet)
                at += length
    base.unlink()


def measure(folder: Path, incoming: Path, weights: Path) -> dict[str, Any]:
    """Curate the clips of a folder in a process of its own; return its core-seconds by stage, and what went through."""
    store = incoming.with_name(f"{incoming.name}-store")
    cascade.ingest(incoming, store)
    command = [sys.executable, __file__, "--one", str(folder), str(store), str(weights)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def one(folder: Path, store: Path, weights: Path) -> int:
    """Curate a store and print the core-seconds of each stage."""
    from curate import pipeline
    from curate.run import curate as work
    from infra import video
    from infra.catalog import Catalog, open_catalog
    from infra.settings import Settings
    from infra.store import DirStore

    spent = dict.fromkeys((*STAGES, "open"), 0.0)
    commit = Catalog.commit
    Catalog.commit = lambda *given, **named: _timed(spent, "commit", lambda: commit(*given, **named))  # type: ignore[method-assign]

    def engine(works: Sequence[Any], stages: Sequence[Any]) -> Iterator[Any]:
        return pipeline.run_local(works, [stages[0], *(_watched(stage, spent) for stage in stages[1:])])

    catalog = open_catalog(DirStore(store))
    clips = catalog.scan("clips", ["key", "n_frames", "n_bytes"]).collect().to_dicts()
    footage_s = 0.0
    for clip in clips:
        with catalog.store.local(clip["key"]) as path:
            before_s = time.process_time()
            packets = list(video.packets(path))
            spent["read"] += time.process_time() - before_s
            footage_s += float(packets[-1].pts - packets[0].pts) * float(video.probe(path).time_base)
    begin_s = time.process_time()
    spent["commit"] = 0.0
    result = work(catalog, cascade.options("gated", folder, weights), Settings(), engine=engine)
    own_s = time.process_time() - begin_s
    spent["rest"] = own_s - sum(spent[name] for name in (*_MODELS, "commit", "open"))
    spent["gate, decode"] = _children_s() - spent["read"]
    flows = {name: (flow.n_in, flow.n_passed, flow.n_out) for name, flow in result.tally.stages.items()}
    decoded = catalog.scan("gops", ["decoded"]).collect()["decoded"].mean()
    n_bytes, n_frames = (sum(clip[name] for clip in clips) for name in ("n_bytes", "n_frames"))
    print(json.dumps({"spent": spent, "footage_s": footage_s, "bytes": n_bytes, "frames": n_frames, "flows": flows,
                      "failed": len(result.tally.failed), "decoded": decoded}))  # fmt: skip
    return 0


_MODELS = ("cheap", "fine", "vit")


def _timed(spent: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
    begin_s = time.process_time()
    try:
        return call()
    finally:
        spent[name] += time.process_time() - begin_s


def _watched(stage: Any, spent: dict[str, float]) -> Any:
    """Return a stage whose model's CPU seconds are counted, and those of opening it."""

    def make() -> Callable[[Any], Any]:
        model = _timed(spent, "open", stage.make)
        return lambda batch: _timed(spent, stage.step, lambda: model(batch))

    return replace(stage, make=make)


def _children_s() -> float:
    """Return the CPU seconds of all children, alive or not."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total_s = ended.ru_utime + ended.ru_stime
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == os.getpid():
            total_s += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total_s


def per_hour(found: dict[str, Any], start: dict[str, Any]) -> dict[str, float]:
    """Return core-seconds of each stage for an hour of such footage, without what starting takes."""
    length_s = found["footage_s"] - start["footage_s"]
    return {name: (found["spent"][name] - start["spent"][name]) / length_s * HOUR_S for name in STAGES}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def show(rows: dict[str, dict[str, float]], measured: dict[str, dict[str, Any]], money: dict[str, float]) -> None:
    """Print stages an hour, a camera's day, and the seed's ten cameras."""
    from curate import costs
    from curate.estimate import EFFICIENCY, Prices, Rate, estimate
    from curate.plan import Plan

    prices = Prices(**money)
    head = ("footage", "Mbit/s", "GOPs decoded", *STAGES, "all, core-s per hour of footage")
    table(head, [
        (name, f"{8e-6 * found['bytes'] / found['footage_s']:.2f}", f"{found['decoded']:.1%}",
         *(f"{rows[name][stage]:.1f}" for stage in STAGES), f"{sum(rows[name].values()):.1f}")
        for name, found in measured.items()
    ])  # fmt: skip
    nothing = Plan(works=(), n_clips=0, quarantined=(), waiting=(), expired=())
    days, seeds = [], []
    for name, row in rows.items():
        if not name.startswith("still"):
            continue
        rate = Rate(core_s_per_s=sum(row.values()) / HOUR_S, says=name, stages={})
        day = estimate(nothing, rate, cores=CORES[1], prices=prices, stored_bytes=round(DAY_BYTES * MONTH_DAYS))
        assert day.day_hours is not None and day.day_compute is not None and day.month is not None
        shares = [f"{row[stage] * 24 / HOUR_S:.3f}" for stage in STAGES]
        days.append((name, *shares, f"{day.day_hours:.2f}", f"{day.day_compute:.3f}"))
        hours = [f"{CAMERAS * day.day_hours / (n * EFFICIENCY):.2f}" for n in CORES]
        keeps = CAMERAS * day.day_hours / 24 / EFFICIENCY
        read = DAY_BYTES / 1e9 * prices.gb_read
        seeds.append((name, f"{CAMERAS * day.day_hours:.1f}", *hours, f"{keeps:.2f}",
                      f"{CAMERAS * day.day_compute:.2f}", f"{read:.2f}", f"{day.month:.0f}"))  # fmt: skip
    table(("a camera's day like", *STAGES, "core-hours", "money"), days)
    table(("ten cameras, a day like", "core-hours", *(f"hours on {n} cores" for n in CORES), "cores that keep up",
           "compute a day", "reading a day", "a month of it stored, a month"), seeds)  # fmt: skip
    tags = costs.Tags(n_pictures=DAY_PICTURES, n_saved=0, n_needed=DAY_PICTURES * costs.TAGS_PER_PICTURE)
    for bill in costs.bills(tags):
        print(
            f"people instead, that day's 27 million pictures: {bill.way}: {bill.needed_hours:,.0f} h, ${bill.needed_usd:,.0f}"
        )
    print(f"prices: {money}, in one currency; {EFFICIENCY:g} of N cores counted; the seed names no GPU and no price of one")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    for name, price in PRICES.items():
        parser.add_argument("--" + name.replace("_", "-"), type=float, default=price, metavar="MONEY")
    parser.add_argument("--smoke", action="store_true", help="seconds of small pictures: shows that it runs, and nothing else")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(*map(Path, arguments.one))
    smoke, data, weights = arguments.smoke, arguments.data, (arguments.data / "weights").resolve()
    worlds = {"still day": (3 if smoke else REPEATS, False), "still, 1 TB/day": (2 if smoke else REPEATS_RATE, True)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cascade.write_vit(folder / "vit.pt")
        places = {title: folder / f"world{number}" for number, title in enumerate(worlds)}
        context = multiprocessing.get_context("spawn")
        drawing = []
        for title, (repeats, rate) in worlds.items():
            places[title].mkdir()
            drawing.append(context.Process(target=draw, args=(places[title] / "day.mp4", data, repeats, smoke, rate)))
            drawing[-1].start()
        for process in drawing:
            process.join()
            if process.exitcode:
                return 1
        shape(smoke=smoke, rate=False)
        second = folder / "second"
        second.mkdir()
        cascade.write_still(second / "second.mp4", 999, *cascade.plaza(data), 1.0)
        start = measure(folder, second, weights)
        for clip in cascade.REAL[:1] if smoke else cascade.REAL:
            places[Path(clip).stem] = folder / Path(clip).stem
            places[Path(clip).stem].mkdir()
            (places[Path(clip).stem] / clip).write_bytes((data / "videos" / clip).read_bytes())
        measured = {title: measure(folder, place, weights) for title, place in places.items()}
    for title, found in {"start": start, **measured}.items():
        print(json.dumps({"footage": title, **found}), file=sys.stderr)
    processor = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    print(
        f"{'SMOKE: these figures say nothing. ' if smoke else ''}{len(processor)} cores: {processor[0] if processor else '?'}"
    )
    money = {name: getattr(arguments, name) for name in PRICES}
    show({title: per_hour(found, start) for title, found in measured.items()}, measured, money)
    return 0


if __name__ == "__main__":
    sys.exit(main())
