"""How good and how cheap is the motion trigger? Prints tables.

Usage: python tests/bench/trigger.py [--set dev|test] [--only real|dark|world|privacy|cost] [--fps 10] [--details]

- `real`: fixed cameras of ../shared/data with what moves in them, marked by a person (tests/motion_truth.toml).
- `dark`: the 84 very dark clips of arid6_dark, all of which show a moving person; half of the scene groups are `dev`.
- `world`: the simulated world with its exact truth: recordings with people, cars and animals, and empty ones in wind,
  rain, fog, night and infrared, lamps switched on and off. `dev` and `test` are different seeds.
- `privacy`: people of the simulated world whom the demo's detector leaves unhidden.
- `cost`: CPU time per picture of 320x240 and the proportional set size of a process per kind (trigger_child.py).

A moving stretch is *found* when the trigger was on in it; a frame is *kept* when it lies in an event (pre- and post-roll
3 s). A *false event* holds no frame that moves or is not judged. Pictures are at most 320 px wide and come ten a second.
The constants of ingest/motion.py were chosen on `dev`; `test` is for the report.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.artefacts import Bundle, BundleSpec
from infra.demo.render import render
from infra.demo.truth import LIGHTINGS, FrameTruth
from infra.demo.world import RecordingPlan, World
from infra.picture import Rgb, resize
from infra.video import pictures, probe
from ingest.motion import Motion, Thresholds
from ingest.privacy import Privacy, PrivacySettings
from ingest.source import SimulatedSource

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TRUTH = Path(__file__).resolve().parents[1] / "motion_truth.toml"
ROLL_S = 3.0
FPS = 10.0
SEEDS = {"dev": (101, 102, 103), "test": (201, 202, 203)}
MOVES, QUIET, UNJUDGED = 1, 0, -1
USUAL = Thresholds()
DETECTOR = Path(__file__).resolve().parents[2] / "infra" / "demo" / "models" / "detector.onnx"


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture, its time, and whether something moves in it: MOVES, QUIET or UNJUDGED."""

    rgb: Rgb
    time_s: float
    truth: int


@dataclass(slots=True)
class Score:
    """What a set came to."""

    n_stretches: int = 0
    n_found: int = 0
    moving: int = 0
    moving_kept: int = 0
    quiet_s: float = 0.0
    quiet_kept_s: float = 0.0
    n_false: int = 0

    def add(self, other: Score) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def row(self, name: str) -> str:
        kept = f"{self.moving_kept / self.moving:.1%}" if self.moving else "-"
        quiet = f"{self.quiet_kept_s / self.quiet_s:.1%}" if self.quiet_s else "-"
        found = f"{self.n_found}/{self.n_stretches}"
        return f"| {name} | {found} | {kept} | {self.quiet_s / 60:.1f} | {self.n_false} | {quiet} |"


HEAD = "| what | stretches found | moving frames kept | quiet minutes | false events | quiet time kept |\n" + "|---" * 6 + "|"


def judge(shots: Iterable[Shot], thresholds: Thresholds) -> Score:
    """Run the trigger over one recording and compare."""
    motion = Motion()
    truth: list[int] = []
    on: list[bool] = []
    times: list[float] = []
    for shot in shots:
        moved = motion.see(shot.rgb, round((shot.time_s + 1) * 1e9), thresholds)
        truth.append(shot.truth)
        on.append(moved.lasted)
        times.append(shot.time_s)
    seen, was_on, at = np.array(truth), np.array(on, bool), np.array(times)
    period = float(np.median(np.diff(at)))
    kept = np.zeros(len(at), bool)
    for moment in at[was_on]:
        kept |= (at >= moment - ROLL_S) & (at <= moment + ROLL_S)
    score = Score(moving=int((seen == MOVES).sum()), moving_kept=int((kept & (seen == MOVES)).sum()))
    for start, end in runs(bridged(seen == MOVES, round(2 / period))):
        score.n_stretches += 1
        score.n_found += bool(was_on[start : end + round(0.5 / period)].any())
    for start, end in runs(kept):
        score.n_false += bool((seen[start:end][was_on[start:end]] == QUIET).all() and not (seen[start:end] == MOVES).any())
    not_rolled = np.zeros(len(at), bool)  # quiet frames near motion are kept rightly
    for moment in at[seen != QUIET]:
        not_rolled |= np.abs(at - moment) <= 2 * ROLL_S
    quiet = (seen == QUIET) & ~not_rolled
    score.quiet_s, score.quiet_kept_s = float(quiet.sum()) * period, float((quiet & kept).sum()) * period
    return score


def runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return [start, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def bridged(flags: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    """Return the flags with holes of up to `n` filled."""
    out = flags.copy()
    for start, end in runs(~flags):
        out[start:end] |= start > 0 and end < len(flags) and end - start <= n
    return out


def small(rgb: Rgb) -> Rgb:
    scale = min(1.0, 320 / rgb.shape[1])
    return resize(rgb, (round(rgb.shape[1] * scale), round(rgb.shape[0] * scale)))


def shots_of(path: Path, moves: list[list[int]], quiet: list[list[int]], fps: float) -> Iterator[Shot]:
    """Decode a clip, `fps` frames a second of it."""
    about = probe(path)
    next_s = 0.0
    for number, picture in enumerate(pictures(path, index=about.index)):
        time_s = float((picture.pts - about.first_pts) * about.time_base)
        if time_s + 1e-6 < next_s:
            continue
        next_s = max(next_s + 1 / fps, time_s)
        inside = [any(a <= number < b for a, b in part) for part in (moves, quiet)]
        yield Shot(small(picture.rgb()), time_s, MOVES if inside[0] else QUIET if inside[1] else UNJUDGED)


def real(use: str, thresholds: Thresholds, fps: float) -> Iterator[tuple[str, Score]]:
    for clip in tomllib.loads(TRUTH.read_text())["clip"]:
        if clip["use"] == use:
            name = Path(clip["path"]).stem.removeprefix("camera_trap_")
            yield name, judge(shots_of(DATA / "videos" / clip["path"], clip["moves"], clip["quiet"], fps), thresholds)


def dark(use: str, thresholds: Thresholds, fps: float) -> Iterator[tuple[str, Score]]:
    folder = DATA / "actions" / "arid6_dark"
    rows = list(csv.DictReader((folder / "labels.csv").open()))
    groups = sorted({row["scene_group"] for row in rows})
    mine = set(groups[0 if use == "dev" else 1 :: 2])
    for row in rows:
        if row["scene_group"] in mine:
            yield row["label"], judge(shots_of(folder / row["path"], [[0, 10**9]], [], fps), thresholds)


def world(use: str, thresholds: Thresholds, fps: float) -> Iterator[tuple[str, Score]]:
    for seed in SEEDS[use]:
        made = World(seed)
        for lighting in LIGHTINGS:
            for empty in (False, True):
                plans = made.plan("train", 4, batch=f"{lighting}{empty}", lightings=(lighting,), duration_s=(20.0, 25.0))
                for plan in plans:
                    if empty:
                        switch = plan.n_frames // 2 if plan.camera.indoor else None
                        plan = replace(plan, person=None, n_cars=0, n_animals=0, switch_frame=switch)
                    yield (
                        f"{lighting}, {plan.weather or 'indoors'}, {'empty' if empty else 'busy'}",
                        judge(filmed(plan, fps), thresholds),
                    )


def filmed(plan: RecordingPlan, fps: float) -> Iterator[Shot]:
    """Film a plan, up to ten frames a second; something moves when a box moved by 1 % within half a second."""
    before: list[FrameTruth] = []
    for rgb, sensor_ns, truth in render(plan):
        before = [*before[-5:], truth]
        state = MOVES if moved(before[0], truth) else UNJUDGED if truth.boxes else QUIET
        if truth.frame_number % round(FPS / fps) == 0:
            yield Shot(rgb, (sensor_ns - plan.start_mono_ns) / 1e9, state)


def moved(before: FrameTruth, now: FrameTruth) -> bool:
    if len(before.boxes) != len(now.boxes):
        return True
    return any(
        max(abs(a.x1 - b.x1), abs(a.x2 - b.x2), abs(a.y1 - b.y1)) > 2.5 for a, b in zip(before.boxes, now.boxes, strict=True)
    )


def cost() -> None:
    """Print CPU per picture, and the memory of a fresh process for each kind."""
    rng = np.random.default_rng(0)
    still = [rng.integers(100, 110, (240, 320, 3), dtype=np.uint8) for _ in range(20)]
    print("\n| 320x240 picture | CPU ms, median | 95 % |\n|---|---|---|")
    for name, size in (("still", 0), ("a person (5 %)", 62), ("half of the picture", 190)):
        motion, thresholds = Motion(), Thresholds()
        seen: list[float] = []
        for number in range(400):
            rgb = still[number % 20].copy()
            x = number % 100
            rgb[40 : 40 + size, x : x + size] = 200
            start = time.thread_time()
            motion.see(rgb, (number + 1) * 10**8, thresholds)
            seen.append(time.thread_time() - start)
        print(f"| {name} | {np.median(seen) * 1e3:.2f} | {np.quantile(seen, 0.95) * 1e3:.2f} |")
    print("\n| process | PSS MB | CPU s for 600 pictures of 320x240 |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        small_bundle().write(Path(folder))
        for kind in ("bare", "recorder", "always", "motion", "model", "privacy"):
            argv = [sys.executable, str(Path(__file__).with_name("trigger_child.py")), kind, folder, str(DETECTOR)]
            name, pss_kb, spent_s = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split("\t")
            print(f"| {name} | {int(pss_kb) * 1024 / 1e6:.1f} | {float(spent_s):.2f} |", flush=True)


def small_bundle() -> Bundle:
    """Return a small convolutional model with random weights: 96 x 96, about 3 M multiplications."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    tensors = {
        "one": rng.normal(0, 0.1, (16, 3, 5, 5)), "two": rng.normal(0, 0.1, (32, 16, 3, 3)),
        "three": rng.normal(0, 0.1, (32, 2)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["chw", "one"], ["a"], strides=[4, 4]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "two"], ["c"], strides=[2, 2]),
        helper.make_node("ReduceMean", ["c"], ["d"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["d", "three"], ["e"]),
        helper.make_node("Softmax", ["e"], ["probs"]),
    ]
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 96, 96, 3])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    spec = BundleSpec(model_name="small", labels=("still", "moves"), width_px=96, height_px=96, period_s=0.1)
    return Bundle(spec=spec, model=model)


def hiding(use: str) -> None:
    """Print how many people of the simulated world the demo's detector leaves unhidden, and what that costs."""
    print("\n| delay_frames | persons | more than 1 % of the head shown | CPU ms a picture |\n|---|---|---|---|")
    for delay in (0, 3):
        n = n_shown = n_pictures = 0
        spent_s = 0.0
        for plan in World(SEEDS[use][0] + 200).plan("live", 16, duration_s=(5.0, 6.0)):
            settings = PrivacySettings(
                blur=("person",), detector=DETECTOR, simulated=True, delay_frames=delay, style="fill", timeout_s=60
            )
            truths = {truth.frame_number: truth for _, _, truth in render(plan)}
            frames = list(SimulatedSource(plan))
            start = time.process_time()
            hidden = list(Privacy(settings).frames(frames))
            spent_s += time.process_time() - start
            n_pictures += len(hidden)
            for frame in hidden:
                for box in truths[frame.frame_number].boxes:
                    head = frame.rgb[int(box.y1) : int(box.y1 + (box.y2 - box.y1) / 4) + 1, int(box.x1) : int(box.x2)]
                    if box.class_name == "person" and head.size:
                        n += 1
                        n_shown += bool((head.max(axis=2) > 0).mean() > 0.01)
        print(f"| {delay} | {n} | {n_shown} ({n_shown / n:.1%}) | {spent_s / n_pictures * 1e3:.0f} |", flush=True)


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("dev", "test"), default="test")
    parser.add_argument("--only", choices=("real", "dark", "world", "privacy", "cost"))
    parser.add_argument("--fps", type=float, default=FPS, help="pictures a second; 1 is about what keyframes alone give")
    parser.add_argument("--details", action="store_true", help="one line per clip or condition")
    parser.add_argument("--sensitivity", type=float, default=USUAL.sensitivity)
    parser.add_argument("--least-share", type=float, default=USUAL.least_share)
    parser.add_argument("--least-duration-s", type=float, default=USUAL.least_duration_s)
    args = parser.parse_args()
    thresholds = Thresholds(args.sensitivity, args.least_share, args.least_duration_s)
    print(f"{args.set}: {thresholds}\n\n{HEAD}")
    for name, part in (("real", real), ("dark", dark), ("world", world)):
        if args.only not in (None, name):
            continue
        total, each = Score(), dict[str, Score]()
        for what, score in part(args.set, thresholds, args.fps):
            total.add(score)
            each.setdefault(what, Score()).add(score)
        for what in sorted(each) if args.details else ():
            print(each[what].row(f"  {what}"))
        print(total.row(f"**{name}**"), flush=True)
    if args.only in (None, "privacy"):
        hiding(args.set)
    if args.only in (None, "cost"):
        cost()


if __name__ == "__main__":
    main()
