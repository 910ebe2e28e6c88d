"""How fast is motion found, and what is missed, beside DVR-Scan? Prints one table per part.

Usage: python tests/bench/motion.py --dvr FILE [--set dev|final] [--only busy|real|second|switch|truth|day] [--cache DIR]
    [--pictures DIR]

One frozen setting (`SETTING`) for every clip, one run. DVR-Scan comes from the package index into an environment of its own
and runs with its defaults (`-so`: it writes nothing). Both are pinned to one core; speed is frames per second of CPU time,
without the start of the interpreter. `plain` is bare decoding of every frame, nothing looked at.

- `busy`: three real clips in which nearly always something moves.
- `real`: 17 real fixed cameras, marked before any detector ran (tests/motion_truth.toml, the same as motion_marks_1.csv).
- `second`: the same clips judged by the second pass, made by other eyes (motion_marks_2.csv; marks.py compares the passes).
- `switch`: switches of light (motion_switches.csv); an interval that starts later than 1.0 s after the last one is a miss.
- `truth`: drawn clips with known events; `day`: 24 stretches of 60 s, 1080p, 95 % still (motion_world.py).

An event is *found* when an interval overlaps it with a temporal IoU of .3 or more, or their centres are within 1 s. *False
seconds* are those of intervals in still footage, 3 s and more from anything that moves (so that padding is not held against
anybody). `decoded` is the share of GOPs that was decoded. The day's speed says how long a day takes, all stretches alike.
With `--pictures` each event that camloop missed becomes a picture (motion_pictures.py).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import re
import resource
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import marks
import motion_pictures
import motion_world
import numpy as np
from marks import is_found

from curate import intervals, scan
from infra import video

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "videos"
MARKS = Path(__file__).resolve().parents[1] / "motion_truth.toml"
SWITCHES = Path(__file__).with_name("motion_switches.csv")
BUSY = ("highway_traffic_720p.mp4", "road_junction_vehicles.mp4", "pedestrians_plaza.mp4")
SEEDS = {"dev": 1, "final": 2026}
NEAR_S = 3.0
SETTING = {"on": 0.0015, "off": 0.0008, "least_s": 0.3, "merge_s": 1.0, "pad_s": 0.25}
Interval = tuple[float, float]


@dataclass(slots=True)
class Answer:
    """What one way said of one clip."""

    found: list[Interval]
    cpu_s: float
    decoded: float = 1.0


@dataclass(slots=True)
class Row:
    """What one way came to over a part."""

    n_frames: int = 0
    cpu_s: float = 0.0
    n_events: int = 0
    n_found: int = 0
    still_s: float = 0.0
    false_s: float = 0.0
    decoded: list[float] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


def ours(path: Path, gate: Any) -> Answer:
    """Scan a clip as `camloop curate --gate` does, without models; intervals by `SETTING`."""
    index = video.probe(path).index  # known from registration
    start = time.process_time()
    *_, end = scan.scan_clip(path, index=index, every_s=1.0, sizes_px={}, score=2, gate=gate, clip_id=path.stem)
    cpu_s = time.process_time() - start
    gops = end["gops"]
    tick_s = float(next(iter(video.pictures(path, index=index))).time_base)
    return Answer(_intervals(gops, tick_s), cpu_s, float(np.mean([gop["decoded"] for gop in gops])))


def _intervals(gops: Sequence[dict[str, Any]], tick_s: float) -> list[Interval]:
    all_pts = [pts for gop in gops for pts in gop["pts"]]
    until = dict(zip(all_pts, [*all_pts[1:], gops[-1]["end_pts"]], strict=True))
    known = [
        (pts, until[pts], score)
        for gop in gops if gop["motion"] is not None
        for pts, score in zip(gop["pts"], gop["motion"], strict=True) if score is not None
    ]  # fmt: skip
    starts, ends = np.array([one[0] for one in known], np.int64), np.array([one[1] for one in known], np.int64)
    value = np.array([one[2] for one in known], np.float64)
    on, off = np.full(len(value), SETTING["on"]), np.full(len(value), SETTING["off"])
    least, merge, pad = (round(SETTING[name] / tick_s) for name in ("least_s", "merge_s", "pad_s"))
    rule = intervals.Rule(merge=merge, least=least, pad=pad)
    found = intervals.find(intervals.Samples(starts, ends, value), on, off, rule, (all_pts[0], gops[-1]["end_pts"]))
    return [(float(a) * tick_s, float(b) * tick_s) for a, b in found]


def dvr_scan(command: Path, path: Path, start_s: float) -> Answer:
    """Run DVR-Scan on a clip; its CPU time less that of its start."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [command, "-i", path, "-so", "--ignore-user-config"], capture_output=True, text=True, check=False, cwd="/tmp"
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime - start_s
    if done.returncode:
        raise SystemExit(f"dvr-scan on {path}: {done.stderr[-300:]}")
    times = [_seconds(text) for text in re.findall(r"\d\d:\d\d:\d\d\.\d+", _last_line(done.stdout + done.stderr))]
    return Answer(_pairs(times), cpu_s)


def remembered(cache: Path, way: Callable[[Path], Answer]) -> Callable[[Path], Answer]:
    """Return a way that keeps its answers in `cache`: DVR-Scan takes half an hour, whatever camloop does meanwhile."""

    def answer(path: Path) -> Answer:
        kept = cache / f"{path.stem}_dvr.json"
        if not kept.exists():
            kept.write_text(json.dumps(dataclasses.asdict(way(path))))
        read = json.loads(kept.read_text())
        return Answer([(a, b) for a, b in read["found"]], read["cpu_s"])

    return answer


def _pairs(times: Sequence[float]) -> list[Interval]:
    return list(zip(times[::2], times[1::2], strict=True))


def _last_line(text: str) -> str:
    """Return the line of comma-separated timecodes, two per event; empty when it found nothing."""
    lines = [line for line in text.splitlines() if re.fullmatch(r"(\d\d:\d\d:\d\d\.\d+,?)+", line.strip())]
    return lines[-1] if lines else ""


def _seconds(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def plain(path: Path) -> Answer:
    """Decode every frame with bare PyAV, one thread."""
    import av

    start = time.process_time()
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "SLICE"
        container.streams.video[0].codec_context.thread_count = 1
        for _ in container.decode(video=0):
            pass
    return Answer([], time.process_time() - start)


def judge(row: Row, answer: Answer, events: Sequence[Interval], still: Sequence[Interval], n_frames: int, name: str) -> None:
    """Add a clip's answer to a row."""
    row.n_frames += n_frames
    row.cpu_s += answer.cpu_s
    row.decoded.append(answer.decoded)
    row.n_events += len(events)
    for event in events:
        if any(is_found(event, one) for one in answer.found):
            row.n_found += 1
        else:
            row.missed.append(f"{name} {event[0]:.1f}-{event[1]:.1f}")
    row.still_s += sum(b - a for a, b in still)
    row.false_s += sum(max(0.0, min(b, d) - max(a, c)) for a, b in still for c, d in answer.found)


def still_between(events: Sequence[Interval], duration_s: float) -> list[Interval]:
    """Return what is at least `NEAR_S` from every event."""
    edges = [-NEAR_S, *(value for event in sorted(events) for value in event), duration_s + NEAR_S]
    pairs = [(a + NEAR_S, b - NEAR_S) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return [(a, b) for a, b in pairs if b > a]


Clip = tuple[Path, list[Interval], list[Interval]]


def real_clips(which: Iterable[dict[str, Any]]) -> list[Clip]:
    """Return (path, events, still stretches) of marked clips; marks are frames, marks less than 2 s apart one event."""
    clips = []
    for mark in which:
        path = DATA / mark["path"]
        found = video.probe(path)
        times = [float(picture.pts * picture.time_base) for picture in video.pictures(path, index=found.index)]
        at = [*times, times[-1] + 0.04]
        events: list[Interval] = []
        for first, end in mark["moves"]:
            if events and at[first] - events[-1][1] < 2:
                events[-1] = (events[-1][0], at[end])
            else:
                events.append((at[first], at[end]))
        around = [(a - NEAR_S, b + NEAR_S) for a, b in events]
        still = []
        for first, end in mark["quiet"]:
            a, b = at[first], at[min(end, len(at) - 1)]
            for c, d in around:
                a, b = (max(a, d), b) if c <= a < d else (a, min(b, c)) if a < c < b else (a, b)
            still += [(a, b)] if b > a else []
        clips.append((path, events, still))
    return clips


def second_pass() -> list[Clip]:
    """Return the clips of the second pass; still is what is `NEAR_S` from anything that it saw, sure or not."""
    rows = marks.read(marks.PASSES[1])
    clips = []
    for name in dict.fromkeys(mark.clip for mark in rows):
        seen = [mark for mark in rows if mark.clip == name and mark.moves]
        moves = [(mark.first, mark.end) for mark in seen if mark.sure]
        [(path, events, _)] = real_clips([{"path": name, "moves": moves, "quiet": []}])
        clips.append((path, events, still_between([marks.seconds(one) for one in seen], marks.duration_s(name))))
    return clips


def world_clips(plans: Sequence[motion_world.Plan], cache: Path) -> list[Clip]:
    """Return drawn clips; those not in the cache are made."""
    clips = []
    for plan in plans:
        path = cache / f"{plan.name}_{plan.seed}.mp4"
        if not path.exists():
            motion_world.write(plan, path.with_suffix(".part.mp4")).rename(path)
        events = [(event.start_s, event.end_s) for event in plan.events]
        clips.append((path, events, still_between(events, plan.duration_s)))
    return clips


def part(
    name: str, clips: Sequence[Clip], ways: dict[str, Callable[[Path], Answer]], pictures: Path | None = None
) -> dict[str, Row]:
    """Run every way over a part and print its table; what camloop missed becomes pictures."""
    rows = {way: Row() for way in ways}
    for path, events, still in clips:
        n_frames = sum(1 for _ in video.packets(path))
        answers = {way: answer(path) for way, answer in ways.items()}
        for way, answer in answers.items():
            judge(rows[way], answer, events, still, n_frames, path.stem)
        if pictures:
            _draw_missed(path, events, answers, pictures)
    print(f"\n### {name}: {len(clips)} clips, {rows['plain'].n_frames} frames\n")
    print("| way | frames/s of CPU | times DVR-Scan | events found | false s per still hour | GOPs decoded |")
    print("|---" * 6 + "|")
    slow = rows.get("DVR-Scan")
    base = slow.n_frames / slow.cpu_s if slow else float("nan")
    for way, row in rows.items():
        speed = row.n_frames / row.cpu_s
        recall = f"{row.n_found}/{row.n_events}" if way != "plain" else "-"
        false = f"{row.false_s / row.still_s * 3600:.0f}" if row.still_s and way != "plain" else "-"
        print(f"| {way} | {speed:,.0f} | {speed / base:.1f} | {recall} | {false} | {np.mean(row.decoded):.1%} |", flush=True)
    for way, row in rows.items():
        if row.missed and way != "plain":
            print(f"missed by {way}: {'; '.join(row.missed)}")
    return rows


def _draw_missed(path: Path, events: Iterable[Interval], answers: dict[str, Answer], folder: Path) -> None:
    for event in events:
        of = {way: answer.found for way, answer in answers.items() if way != "plain"}
        if not all(any(is_found(event, one) for one in found) for way, found in of.items() if way.startswith("camloop")):
            print(f"picture: {motion_pictures.write(path, event, list(of.values()), folder)}")


def switches(ways: dict[str, Callable[[Path], Answer]]) -> None:
    """Print the intervals of clips in which only the light changes."""
    known: dict[str, list[float]] = {}
    with SWITCHES.open() as file:
        for row in csv.DictReader(file):
            known.setdefault(row["clip"], []).append(float(row["switch_s"]))
    print(
        "\n### switches of light\n\n| clip | switches at s | way | intervals, s | latest start after a switch, s |\n"
        + "|---" * 5
        + "|"
    )
    for clip, times in known.items():
        for way, answer in ways.items():
            if way != "plain":
                found = answer(DATA / clip).found
                late = max((min((a - t for t in times if t <= a), default=0.0) for a, _ in found), default=0.0)
                shown = ", ".join(f"{a:.1f}-{b:.1f}" for a, b in found) or "none"
                print(f"| {clip} | {', '.join(f'{t:.2f}' for t in times)} | {way} | {shown} | {late:.1f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dvr", type=Path, required=True)
    parser.add_argument("--set", choices=("dev", "final"), default="dev")
    parser.add_argument("--only", nargs="+", default=["busy", "real", "switch", "truth", "day"])
    parser.add_argument("--cache", type=Path, default=Path("/tmp/motion_bench"), help="drawn clips, and DVR-Scan's answers")
    parser.add_argument("--hours", type=int, default=24, help="stretches of the day, one every 24 / HOURS hours")
    parser.add_argument("--first", type=int, default=24, help="only so many stretches of the day, from its start")
    parser.add_argument("--without-dvr", action="store_true", help="leave DVR-Scan out where nobody can wait for it")
    parser.add_argument("--prepare", action="store_true", help="draw the clips and ask DVR-Scan only")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="where a picture of each event that camloop missed goes")
    arguments = parser.parse_args()
    arguments.cache.mkdir(exist_ok=True)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([arguments.dvr, "--version"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ways: dict[str, Callable[[Path], Answer]] = {
        "camloop --gate packets": lambda path: ours(path, "packets"),
        "camloop --motion 2, all decoded": lambda path: ours(path, "none"),
        "DVR-Scan": remembered(arguments.cache, lambda path: dvr_scan(arguments.dvr, path, start_s)),
        "plain": plain,
    }
    if arguments.without_dvr:
        del ways["DVR-Scan"]
    if arguments.prepare:
        ways = {"DVR-Scan": ways["DVR-Scan"], "plain": lambda path: Answer([], 1.0)}
    first_pass = tomllib.loads(MARKS.read_text())["clip"]
    use = ("dev",) if arguments.set == "dev" else ("dev", "test")
    seed, is_dev = SEEDS[arguments.set], arguments.set == "dev"
    print(f"set {arguments.set}, {SETTING}, DVR-Scan starts in {start_s:.2f} s of CPU")
    if "switch" in arguments.only:
        switches(ways)
    if "busy" in arguments.only:
        part("busy", real_clips([{"path": one, "moves": [], "quiet": []} for one in BUSY]), ways)
    if "real" in arguments.only:
        part("real", real_clips([mark for mark in first_pass if mark["use"] in use]), ways, arguments.pictures)
    if "second" in arguments.only:
        part("real, second pass", second_pass(), ways, arguments.pictures)
    if "truth" in arguments.only:
        part("truth", world_clips(motion_world.truth(seed, 4 if is_dev else 10), arguments.cache), ways, arguments.pictures)
    if "day" in arguments.only:
        part(
            "day",
            world_clips(motion_world.day(seed, hours=6 if is_dev else arguments.hours)[: arguments.first], arguments.cache),
            ways,
            arguments.pictures,
        )


if __name__ == "__main__":
    main()
