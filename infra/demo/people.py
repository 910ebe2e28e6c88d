"""One person: what it looks like, how it stands and how it is drawn.

An arm is two directions in space, (azimuth, elevation) in degrees for upper arm and forearm: azimuth -90 is the
picture's left, 0 towards the camera, +90 its right; elevation -90 hangs down, 0 is level, +90 straight up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from infra.demo.pen import Pen, Point, tint
from infra.demo.truth import Rgb

JACKETS: dict[str, Rgb] = {
    "red": (196.0, 36.0, 40.0),
    "blue": (38.0, 74.0, 196.0),
    "green": (34.0, 142.0, 62.0),
    "yellow": (228.0, 190.0, 40.0),
    "white": (226.0, 226.0, 222.0),
    "black": (34.0, 34.0, 40.0),
}
_SKINS: tuple[Rgb, ...] = ((236.0, 194.0, 166.0), (205.0, 152.0, 116.0), (150.0, 102.0, 72.0), (96.0, 64.0, 46.0))
_HAIRS: tuple[Rgb, ...] = ((40.0, 28.0, 22.0), (96.0, 62.0, 34.0), (190.0, 158.0, 92.0), (120.0, 118.0, 116.0))
_TROUSERS: tuple[Rgb, ...] = (
    (52.0, 56.0, 70.0), (84.0, 74.0, 60.0), (44.0, 60.0, 92.0), (110.0, 106.0, 100.0), (66.0, 78.0, 60.0),
)  # fmt: skip

# Parts of the body as shares of its height.
_LEG, _TORSO, _HEAD = 0.46, 0.34, 0.068
_UPPER_ARM, _FOREARM = 0.175, 0.185
_VIEW_FROM_ABOVE = 0.22  # how far a limb that points at the camera seems to point down

Arm = tuple[float, float, float, float]  # azimuth and elevation of the upper arm, then of the forearm, degrees


@dataclass(frozen=True, slots=True)
class Person:
    """Looks of one person; lengths as factors of an average build."""

    jacket: str
    skin: Rgb
    hair: Rgb
    trousers: Rgb
    height: float
    girth: float
    hat: bool
    actor_side: int  # +1: acts with the arm on the picture's right, -1: with the other


@dataclass(frozen=True, slots=True)
class Pose:
    """How a person stands: `left` and `right` name the sides of the picture; `step` is the phase of walking (0 = stands)."""

    left: Arm
    right: Arm
    step: float = 0.0
    lean: float = 0.0


REST: Arm = (62.0, -80.0, 40.0, -72.0)  # for the right side of the picture; mirrored for the left


def mirror(arm: Arm) -> Arm:
    """Return the arm of the other side of the body in the same attitude."""
    return (-arm[0], arm[1], -arm[2], arm[3])


def draw_person(rng: np.random.Generator, jacket: str | None = None) -> Person:
    """Draw the looks of a person; `jacket` fixes its jacket's colour."""
    return Person(
        jacket=jacket or str(rng.choice(list(JACKETS))),
        skin=_SKINS[rng.integers(len(_SKINS))],
        hair=_HAIRS[rng.integers(len(_HAIRS))],
        trousers=_TROUSERS[rng.integers(len(_TROUSERS))],
        height=float(rng.uniform(0.9, 1.1)),
        girth=float(rng.uniform(0.88, 1.18)),
        hat=bool(rng.random() < 0.25),
        actor_side=int(rng.choice((-1, 1))),
    )


def _reach(start: Point, azimuth_deg: float, elevation_deg: float, length_px: float) -> Point:
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    level = math.cos(elevation)
    x = level * math.sin(azimuth)
    y = -math.sin(elevation) + _VIEW_FROM_ABOVE * level * math.cos(azimuth)
    return start[0] + length_px * x, start[1] + length_px * y


def paint_person(
    pen: Pen, person: Person, pose: Pose, feet: Point, height_px: float, shade: Callable[[Rgb], Rgb]
) -> tuple[float, float, float, float]:
    """Draw a person whose feet stand at `feet`.

    Args:
        pen: what to draw with.
        person: its looks.
        pose: its attitude.
        feet: picture pixels.
        height_px: height of an average person at that place, picture pixels.
        shade: maps a colour by day to the colour in the light at that place.

    Returns:
        x1, y1, x2, y2 of the box around it, picture pixels, not cut at the picture's edge.
    """
    h = height_px * person.height
    w = h * 0.115 * person.girth
    jacket, trousers, skin = shade(JACKETS[person.jacket]), shade(person.trousers), shade(person.skin)
    fx, fy = feet
    stride = math.sin(pose.step) * 0.13 * h
    bob = abs(math.sin(pose.step)) * 0.012 * h
    hip = (fx, fy - _LEG * h - bob)
    neck = (fx + pose.lean * h, hip[1] - _TORSO * h)
    shoulders = {-1: (neck[0] - w * 1.02, neck[1] + 0.035 * h), 1: (neck[0] + w * 1.02, neck[1] + 0.035 * h)}
    xs, ys = [fx - w, fx + w], [fy + 0.02 * h]

    for side in (-1, 1):  # legs
        foot = (fx + side * w * 0.5 + side * stride, fy - max(0.0, side * math.cos(pose.step)) * 0.03 * h * (pose.step != 0.0))
        knee = ((hip[0] + side * w * 0.45 + foot[0]) / 2 + stride * 0.1, (hip[1] + foot[1]) / 2)
        pen.limb([(hip[0] + side * w * 0.42, hip[1]), knee, foot], w * 0.72, tint(trousers, 0.92 if side < 0 else 1.0))
        pen.oval((foot[0] + side * w * 0.12, foot[1]), (w * 0.42, w * 0.24), shade((30.0, 28.0, 28.0)))
        xs.append(foot[0])
    torso = [
        (shoulders[-1][0] - w * 0.05, shoulders[-1][1]), (neck[0] - w * 0.4, neck[1]), (neck[0] + w * 0.4, neck[1]),
        (shoulders[1][0] + w * 0.05, shoulders[1][1]), (hip[0] + w * 0.84, hip[1] + 0.03 * h),
        (hip[0] - w * 0.84, hip[1] + 0.03 * h),
    ]  # fmt: skip
    pen.shape(torso, jacket)
    pen.shape([torso[0], torso[1], (hip[0] - w * 0.3, hip[1] + 0.03 * h), torso[5]], tint(jacket, 0.86))
    pen.limb([neck, (hip[0], hip[1] + 0.02 * h)], 0.012 * h, tint(jacket, 0.62))
    head = (neck[0], neck[1] - _HEAD * h * 1.05)
    pen.limb([neck, head], w * 0.5, tint(skin, 0.85))
    pen.oval(head, (_HEAD * h * 0.82, _HEAD * h), skin)
    hair = shade((150.0, 40.0, 40.0)) if person.hat else shade(person.hair)
    pen.oval((head[0], head[1] - _HEAD * h * 0.52), (_HEAD * h * 0.86, _HEAD * h * 0.55), hair)
    ys.append(head[1] - _HEAD * h * 1.08)

    for side, arm in ((-1, pose.left), (1, pose.right)):  # arms, over the torso
        elbow = _reach(shoulders[side], arm[0], arm[1], _UPPER_ARM * h)
        hand = _reach(elbow, arm[2], arm[3], _FOREARM * h)
        pen.limb([shoulders[side], elbow, hand], w * 0.66, tint(jacket, 0.6))  # an outline keeps the arm apart from the torso
        pen.limb([shoulders[side], elbow, hand], w * 0.5, tint(jacket, 1.12))
        pen.disc(hand, w * 0.32, skin)
        xs += [elbow[0], hand[0]]
        ys += [elbow[1] - w * 0.3, hand[1] - w * 0.3]
    margin = w * 0.32
    return min(xs) - margin, min(ys), max(xs) + margin, max(ys)
