"""What people do: the five actions of the seed as poses over the phase of the action, and what they do in between.

`Light` is `Door` played backwards, pose by pose: both sweep one arm at shoulder height, Door from the picture's left to
its right, Light from right to left. Their frames are the same set of pictures, so no single frame tells them apart.
Phases are sampled in the middle of n equal parts, so that a sweep and its mirror image meet the same poses.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from infra.demo.people import REST, Arm, Pose, mirror
from infra.demo.truth import Action

Pastime = Literal["stand", "point", "scratch", "hips", "fidget", "walk"]
PASTIMES: tuple[Pastime, ...] = ("stand", "point", "scratch", "hips", "fidget")  # what a person does between actions


@dataclass(frozen=True, slots=True)
class Manner:
    """How one person does things: `reach_deg` of the sweep, `level_deg` of the arm, `beat_hz` of the pumping forearms."""

    side: int
    reach_deg: float
    level_deg: float
    beat_hz: float
    sway: float
    sway_phase: float


def draw_manner(rng: np.random.Generator, side: int) -> Manner:
    """Draw a person's manner."""
    return Manner(
        side=side,
        reach_deg=float(rng.uniform(70, 88)),
        level_deg=float(rng.uniform(-7, 9)),
        beat_hz=float(rng.uniform(1.3, 2.1)),
        sway=float(rng.uniform(0.002, 0.008)),
        sway_phase=float(rng.uniform(0, 2 * math.pi)),
    )


def _ease(x: float) -> float:
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def _between(a: Arm, b: Arm, share: float) -> Arm:
    s = _ease(share)
    return (a[0] + (b[0] - a[0]) * s, a[1] + (b[1] - a[1]) * s, a[2] + (b[2] - a[2]) * s, a[3] + (b[3] - a[3]) * s)


def _along(keys: tuple[tuple[float, Arm], ...], phase: float) -> Arm:
    """Return the arm at `phase`, eased between key attitudes."""
    for (start, a), (end, b) in itertools.pairwise(keys):
        if phase <= end:
            return _between(a, b, (phase - start) / (end - start))
    return keys[-1][1]


def _sweep(manner: Manner, phase: float) -> Arm:
    """The acting arm of Door: up at the picture's left, across at shoulder height, down from its right."""
    reach, level = manner.reach_deg, manner.level_deg
    rest = REST if manner.side > 0 else mirror(REST)
    return _along(
        (
            (0.0, rest),
            (0.22, (-reach, level, -reach, level)),
            (0.78, (reach, level, reach, level)),
            (1.0, rest),
        ),
        phase,
    )


def _held(arm: Arm, phase: float) -> Arm:
    """Go to an attitude of the right arm, hold it, come back."""
    return _along(((0.0, REST), (0.2, arm), (0.8, arm), (1.0, REST)), phase)


def _music(manner: Manner, phase: float, duration_s: float) -> Arm:
    """One forearm of Music, for the right side: the elbow at the side, the forearm pumping up and down."""
    beat = math.sin(2 * math.pi * manner.beat_hz * phase * duration_s)
    arm: Arm = (55.0, -62.0, 12.0, 28.0 + 44.0 * beat)
    return _along(((0.0, REST), (0.12, arm), (0.88, arm), (1.0, REST)), phase)


def pose(action: Action, phase: float, duration_s: float, manner: Manner, time_s: float) -> Pose:
    """Return the pose of an action at `phase` in [0, 1]; `time_s` moves the sway of the body, which knows no action.

    Args:
        action: anything but None, for which see `idle`.
        phase: how much of the action is over.
        duration_s: how long it lasts (the beat of Music is in hertz).
        manner: the person's.
        time_s: since the recording began.

    Returns:
        The pose.
    """
    lean = manner.sway * math.sin(1.9 * time_s + manner.sway_phase)
    if action == "Music":
        arm = _music(manner, phase, duration_s)
        return Pose(mirror(arm), arm, 0.0, lean)
    if action == "Stop":
        acting = _held((78.0, 76.0 + manner.level_deg, 60.0, 84.0), phase)
        acting = acting if manner.side > 0 else mirror(acting)
    else:
        acting = _sweep(manner, phase if action == "Door" else 1.0 - phase)
    return Pose(mirror(REST), acting, 0.0, lean) if manner.side > 0 else Pose(acting, REST, 0.0, lean)


_ATTITUDES: dict[Pastime, Arm] = {
    "point": (84.0, 2.0, 84.0, 2.0),
    "scratch": (70.0, 5.0, -60.0, 62.0),
    "hips": (88.0, -48.0, -70.0, -28.0),
}


def idle(pastime: Pastime, phase: float, manner: Manner, time_s: float) -> Pose:
    """Return the pose of somebody who does nothing in particular, at `phase` in [0, 1] of doing it."""
    lean = manner.sway * math.sin(1.9 * time_s + manner.sway_phase)
    right = left = REST
    if pastime == "walk":
        swing = 26.0 * math.sin(7.5 * time_s)
        right = (REST[0], REST[1] + abs(swing) * 0.4, 20.0 + swing, -70.0 + abs(swing) * 0.3)
        left = (REST[0], REST[1] + abs(swing) * 0.4, 20.0 - swing, -70.0 + abs(swing) * 0.3)
        return Pose(mirror(left), right, 7.5 * time_s + 1e-6, lean)
    if pastime == "fidget":
        lift = 22.0 * math.sin(math.pi * phase) * (1 + 0.5 * math.sin(9 * phase))
        right, left = (REST[0], REST[1], 20.0, REST[3] + lift), (REST[0], REST[1], 30.0, REST[3] + 0.6 * lift)
    elif pastime != "stand":
        acting = _held(_ATTITUDES[pastime], phase)
        if pastime == "hips":
            right = left = acting
        elif manner.side > 0:
            right = acting
        else:
            left = acting
    return Pose(mirror(left), right, 0.0, lean)
