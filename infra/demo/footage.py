"""Footage for the demo models: the part `models` of the world, filmed, encoded, decoded again, with its truth.

The first sites are for learning, the last ones for scores: other layouts, other people. Never a part that the demo
trains or judges on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infra.demo.film import PTS_PER_FRAME, film
from infra.demo.truth import CLASSES, Box, Lighting, RecordingTruth, Weather
from infra.demo.world import World
from infra.video import decode

Use = Literal["learn", "score"]
N_SITES: dict[Use, int] = {"learn": 12, "score": 4}


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded frame, uint8 (192, 256, 3) RGB, and what is true about it."""

    rgb: NDArray[np.uint8]
    indoor: bool
    place: str
    lighting: Lighting
    weather: Weather | None
    boxes: tuple[Box, ...]

    def count(self, class_name: str) -> int:
        """How many things of a class are in the picture."""
        return sum(box.class_name == class_name for box in self.boxes)


def pictures(seed: int, use: Use, n_recordings: int, frames_each: int) -> Iterator[Picture]:
    """Film recordings of a few seconds and yield some frames of each, decoded.

    Args:
        seed: of the world.
        use: which sites: "learn" or "score"; they share no layout and no person.
        n_recordings: how many to film, spread over all cameras, lightings and weathers.
        frames_each: how many frames of each.

    Yields:
        Pictures, recording by recording.
    """
    world = World(seed)
    cameras = world.cameras("models", sum(N_SITES.values()))
    border = N_SITES["learn"] * 4
    chosen = cameras[:border] if use == "learn" else cameras[border:]
    plans = world.plan("models", n_recordings, batch=use, cameras=chosen, duration_s=(5.0, 6.0), empty_share=0.25)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for plan in plans:
            filmed = film(plan, folder / "clips", folder / "truth")
            truth = RecordingTruth.read(folder / "truth" / f"{plan.recording_id}.json")
            rng = np.random.default_rng([plan.seed, 1])
            wanted = np.sort(rng.choice(plan.n_frames, frames_each, replace=False)) * PTS_PER_FRAME
            for frames in decode(filmed.path, pts=wanted.tolist()):
                for rgb, pts in zip(frames.rgb, frames.pts, strict=True):
                    boxes = truth.frames[int(pts) // PTS_PER_FRAME].boxes
                    yield Picture(rgb.copy(), plan.camera.indoor, plan.camera.kind, truth.lighting, truth.weather, boxes)
            filmed.path.unlink()


def yolo_lines(picture: Picture) -> str:
    """Return the boxes as lines of a YOLO label file: class and centre, width, height as shares of the picture."""
    height, width = picture.rgb.shape[:2]
    rows = [
        (CLASSES.index(box.class_name), (box.x1 + box.x2) / 2 / width, (box.y1 + box.y2) / 2 / height,
         (box.x2 - box.x1) / width, (box.y2 - box.y1) / height)
        for box in picture.boxes
    ]  # fmt: skip
    return "".join(f"{c} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, x, y, w, h in rows)
