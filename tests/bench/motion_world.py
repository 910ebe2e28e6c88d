"""Worlds of the motion benchmark: a fixed camera, drawn with known truth, as an IP camera would encode it.

A scene is luma only: a ground of walls and textures, the light of the hour, things that walk or drive with known start and
end, sensor noise, a burnt-in clock, lamps that are switched. All is a function of one seed. `NOISE_SD` was set with
`python tests/bench/motion_world.py`, which prints the bytes of P-frames per pixel, so that still stretches have the median
of all seven H.264 clips of fixed cameras of ../shared/data/videos (median bytes of their P-frames per pixel):
hallway_ir_light_flash .0008, bottles_indoor .0009, hallway_person .0015, highway_traffic_720p .0037,
road_junction_vehicles .0090, car_overhead_day .0100, pedestrians_plaza .0100. At .0095 a camera's noise hides most of
what moves from its packets (measured while this was made); the gate must then live on its audit.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

FPS = 15
GOP = 30  # two seconds, as most IP cameras are delivered
_PARAMS = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:ref=1"
X264 = {"preset": "superfast", "tune": "zerolatency", "crf": "26", "x264-params": _PARAMS}
NOISE_SD = {"day": 2.5, "night": 2.1}
TARGET = 0.0037  # bytes of a P-frame per pixel
_LEVELS = {"day": (55, 190), "night": (18, 90)}


@dataclass(frozen=True, slots=True)
class Event:
    """Something moves in [start_s, end_s); where, how large (height in shares of the picture's) and how it differs."""

    start_s: float
    end_s: float
    kind: str
    y: float
    height: float
    rightwards: bool
    difference: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One clip."""

    name: str
    seed: int
    size_px: tuple[int, int]
    duration_s: float
    light: str
    events: tuple[Event, ...]
    switch_s: float | None = None


def draw_events(rng: np.random.Generator, duration_s: float, n: int, total_s: float | None = None) -> tuple[Event, ...]:
    """Return `n` events with at least 4 s between them: people and cars, near and far."""
    lengths = rng.uniform(3, 9, n)
    if total_s is not None:
        lengths *= total_s / lengths.sum()
    free = duration_s - lengths.sum() - 4 * (n + 1)
    gaps = 4 + free * rng.dirichlet(np.ones(n + 1)) if n else []
    events, at = [], 0.0
    for gap, length in zip(gaps, lengths, strict=False):
        at += gap
        kind = str(rng.choice(["person", "person", "car"]))
        events.append(
            Event(
                start_s=at, end_s=at + length, kind=kind, y=float(rng.uniform(0.45, 0.9)), rightwards=bool(rng.integers(2)),
                height=float(rng.uniform(0.10, 0.35) if kind == "person" else rng.uniform(0.10, 0.22)),
                difference=int(rng.choice([-1, 1]) * rng.integers(25, 70)),
            )
        )  # fmt: skip
        at += length
    return tuple(events)


def day(seed: int, size_px: tuple[int, int] = (1920, 1080), hours: int = 24, moving: float = 0.05) -> list[Plan]:
    """Return a day: one stretch of 60 s an hour; in a third of them something moves, `moving` of the whole; night is dark."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(hours, max(1, hours // 3), replace=False)
    each_s = moving * 60 * hours / len(chosen)
    plans = []
    for hour in range(hours):
        light = "day" if 6 <= hour * 24 / hours < 19 else "night"
        events = draw_events(rng, 60, 1, each_s) if hour in chosen else ()
        plans.append(Plan(f"hour{hour:02}", seed, size_px, 60, light, events))
    return plans


def truth(seed: int, n: int = 10, size_px: tuple[int, int] = (960, 540)) -> list[Plan]:
    """Return `n` clips of 90 s with eight events each, day and night in turn; lamps are switched in every third."""
    rng = np.random.default_rng(seed)
    plans = []
    for number in range(n):
        events, switch_s = draw_events(rng, 90, 8), 2.0 if number % 3 == 2 else None
        plans.append(
            Plan(f"truth{number:02}", seed * 100 + number, size_px, 90, ("day", "night")[number % 2], events, switch_s)
        )
    return plans


def ground(plan: Plan) -> NDArray[np.uint8]:
    """Return the empty scene: uint8 (H, W)."""
    rng = np.random.default_rng(plan.seed)
    width, height = plan.size_px
    low, high = _LEVELS[plan.light]
    y = np.linspace(0.35, 0.8, height)[:, None] * np.ones((1, width))
    for _ in range(40):
        x0, y0 = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        x1, y1 = x0 + int(rng.uniform(0.03, 0.2) * width), y0 + int(rng.uniform(0.05, 0.3) * height)
        y[y0:y1, x0:x1] = rng.uniform(0.1, 0.9)
    for scale, amount in ((4, 0.05), (16, 0.06), (64, 0.08)):
        coarse = rng.normal(0, 1, (height // scale + 2, width // scale + 2)).astype(np.float32)
        y += amount * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    y = cv2.GaussianBlur(y, (0, 0), 1.2)
    return (low + (high - low) * y.clip(0, 1)).astype(np.uint8)


def frames(plan: Plan) -> Any:
    """Yield the clip's pictures: uint8 (H, W) luma."""
    rng = np.random.default_rng(plan.seed * 7919 + sum(plan.name.encode()))
    width, height = plan.size_px
    empty = ground(plan)
    lit = cv2.convertScaleAbs(empty, alpha=1.35, beta=12)
    noises = [rng.normal(0, NOISE_SD[plan.light], (height + 64, width + 64)).round().astype(np.int16) for _ in range(6)]
    for number in range(round(plan.duration_s * FPS)):
        time_s = number / FPS
        picture = (lit if plan.switch_s is not None and time_s >= plan.switch_s else empty).copy()
        for event in plan.events:
            if event.start_s <= time_s < event.end_s:
                _draw(picture, event, (time_s - event.start_s) / (event.end_s - event.start_s), time_s)
        cv2.putText(
            picture, f"2026-11-21 {number // FPS // 60:02}:{number // FPS % 60:02}", (width // 60, height // 20),
            cv2.FONT_HERSHEY_SIMPLEX, height / 1000, 235, max(1, height // 500),
        )  # fmt: skip
        dy, dx = rng.integers(0, 64, 2)
        noise = noises[number % len(noises)][dy : dy + height, dx : dx + width]
        yield cv2.add(picture, noise, dtype=cv2.CV_8U)


def _draw(picture: NDArray[np.uint8], event: Event, phase: float, time_s: float) -> None:
    height, width = picture.shape
    tall = event.height * height
    wide = tall * (0.36 if event.kind == "person" else 2.2)
    across = phase if event.rightwards else 1 - phase
    x, y = -wide / 2 + across * (width + wide), event.y * height - tall / 2
    x0, x1 = int(max(0, x - wide / 2)), int(min(width, x + wide / 2))
    if x1 <= x0:
        return
    mask = np.zeros_like(picture)
    if event.kind == "person":
        cv2.ellipse(mask, (int(x), int(y - 0.1 * tall)), (int(wide / 2), int(0.27 * tall)), 0, 0, 360, 255, -1)
        cv2.circle(mask, (int(x), int(y - 0.42 * tall)), int(0.09 * tall), 255, -1)
        swing = 0.25 * wide * np.sin(8 * time_s)
        for side in (-1, 1):
            foot = (int(x + side * (0.15 * wide + swing)), int(y + 0.5 * tall))
            cv2.line(mask, (int(x + side * 0.12 * wide), int(y + 0.12 * tall)), foot, 255, max(2, int(0.2 * wide)))
    else:
        cv2.rectangle(mask, (x0, int(y)), (x1, int(y + 0.45 * tall)), 255, -1)
        cv2.rectangle(mask, (int(x - 0.3 * wide), int(y - 0.4 * tall)), (int(x + 0.3 * wide), int(y)), 255, -1)
    level = float(np.clip(float(np.median(picture)) + event.difference, 8, 245))
    picture[mask > 0] = round(level)


def write(plan: Plan, path: Path) -> Path:
    """Encode the clip as an mp4."""
    width, height = plan.size_px
    half = np.full((height // 2, width), 128, np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options=X264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        stream.codec_context.thread_count = 1
        for number, luma in enumerate(frames(plan)):
            frame = av.VideoFrame.from_ndarray(np.concatenate([luma, half]), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def main() -> None:
    """Print bytes of P-frames per pixel for several strengths of noise."""
    import tempfile

    from infra import video

    for light, size, sd in itertools.product(("day", "night"), ((1920, 1080), (960, 540)), (2.2, 2.4, 2.6)):
        NOISE_SD[light] = sd
        with tempfile.TemporaryDirectory() as folder:
            path = write(Plan("still", 1, size, 3, light, ()), Path(folder) / "x.mp4")
            sizes = [packet.n_bytes for packet in video.packets(path) if not packet.is_keyframe]
        print(f"{light} {size} sd {sd}: {np.median(sizes) / size[0] / size[1]:.4f} bytes a pixel (target {TARGET})", flush=True)


if __name__ == "__main__":
    main()
