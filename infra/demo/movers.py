"""Cars and animals: what they look like and how they cross the picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from infra.demo.pen import Pen, tint
from infra.demo.truth import Rgb

PAINTS: dict[str, Rgb] = {
    "red": (178.0, 38.0, 38.0), "blue": (44.0, 76.0, 166.0), "white": (224.0, 224.0, 220.0),
    "black": (40.0, 42.0, 46.0), "silver": (158.0, 162.0, 168.0),
}  # fmt: skip
COATS: dict[str, Rgb] = {"dog": (122.0, 88.0, 58.0), "fox": (200.0, 104.0, 44.0)}
Xyxy = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Mover:
    """Something that crosses the picture: at frame f its centre is at x = `x_px` + f * `px_per_frame`."""

    colour: str
    x_px: float
    y_px: float
    px_per_frame: float
    size_px: float

    def x_at(self, frame_number: float) -> float:
        """Centre of the thing in a frame, picture pixels; it may be outside the picture."""
        return self.x_px + frame_number * self.px_per_frame


def draw_mover(
    rng: np.random.Generator, colours: list[str], y_px: float, direction: int, speed: float, size_px: float, n_frames: int,
    width_px: int,
) -> Mover:  # fmt: skip
    """Draw something that is inside the picture at some moment of the recording."""
    px = direction * speed * float(rng.uniform(0.75, 1.35))
    meets = float(rng.uniform(0.15, 0.85)) * n_frames
    return Mover(str(rng.choice(colours)), float(rng.uniform(0.2, 0.8)) * width_px - meets * px, y_px, px, size_px)


def paint_car(pen: Pen, car: Mover, frame_number: int, lamps_on: bool, shade: Callable[[Rgb], Rgb]) -> Xyxy:
    """Draw a car seen from the side, wheels on `y_px`; return its box."""
    x, y, long = car.x_at(frame_number), car.y_px, car.size_px
    tall, way = long * 0.34, 1.0 if car.px_per_frame > 0 else -1.0
    paint = shade(PAINTS[car.colour])
    pen.glow((x, y + 1), (long * 0.56, tall * 0.2), (8, 8, 10), 0.55)
    roof = [(-0.34, -0.52), (-0.22, -0.98), (0.14, -0.98), (0.3, -0.52)]
    pen.shape([(x + way * u * long, y + v * tall) for u, v in roof], tint(paint, 0.9))
    panes = [(-0.28, -0.54), (-0.19, -0.9), (0.12, -0.9), (0.24, -0.54)]
    pen.shape([(x + way * u * long, y + v * tall) for u, v in panes], shade((74, 90, 108)))
    pen.limb([(x - way * 0.03 * long, y - 0.92 * tall), (x - way * 0.03 * long, y - 0.5 * tall)], 1.4, tint(paint, 0.9))
    body = [(-0.5, -0.2), (-0.49, -0.5), (-0.34, -0.56), (0.3, -0.56), (0.48, -0.44), (0.5, -0.18)]
    pen.shape([(x + way * u * long, y + v * tall) for u, v in body], paint)
    pen.box(x - 0.48 * long, y - 0.26 * tall, x + 0.48 * long, y - 0.16 * tall, tint(paint, 0.68))
    for u in (-0.3, 0.3):
        pen.disc((x + u * long, y - 0.15 * tall), 0.2 * tall, shade((26, 26, 28)))
        pen.disc((x + u * long, y - 0.15 * tall), 0.09 * tall, shade((150, 152, 156)))
    if lamps_on:
        pen.glow((x + way * 0.72 * long, y - 0.3 * tall), (0.3 * long, 0.3 * tall), (255, 244, 205), 0.5)
        pen.disc((x + way * 0.48 * long, y - 0.38 * tall), 1.8, (255, 250, 225))
        pen.disc((x - way * 0.49 * long, y - 0.42 * tall), 1.3, (230, 30, 24))
    return x - 0.5 * long, y - tall, x + 0.5 * long, y + 0.06 * tall


def paint_animal(pen: Pen, animal: Mover, frame_number: int, eyes_shine: bool, shade: Callable[[Rgb], Rgb]) -> Xyxy:
    """Draw a dog or a fox that trots, paws on `y_px`; return its box."""
    x, y, long = animal.x_at(frame_number), animal.y_px, animal.size_px
    way = 1.0 if animal.px_per_frame > 0 else -1.0
    coat = shade(COATS[animal.colour])
    gait = frame_number * 1.15 + animal.x_px
    y_body = y - 0.42 * long + 0.02 * long * math.sin(2 * gait)
    pen.glow((x, y), (0.45 * long, 0.07 * long), (10, 12, 8), 0.45)
    for u, phase in ((-0.3, 0.0), (-0.22, math.pi), (0.24, 0.5), (0.3, math.pi + 0.5)):
        paw = (x + way * u * long + 0.12 * long * math.sin(gait + phase), y)
        pen.limb([(x + way * u * long, y_body + 0.06 * long), paw], 0.085 * long, tint(coat, 0.74 if phase else 0.9))
    tail = (x - way * 0.62 * long, y_body - 0.1 * long + 0.05 * long * math.sin(1.3 * gait))
    pen.limb([(x - way * 0.38 * long, y_body - 0.04 * long), tail], 0.1 * long, coat)
    if animal.colour == "fox":
        pen.disc(tail, 0.06 * long, shade((232, 226, 214)))
    pen.oval((x, y_body), (0.4 * long, 0.17 * long), coat)
    head = (x + way * 0.46 * long, y_body - 0.2 * long)
    pen.limb([(x + way * 0.32 * long, y_body - 0.06 * long), head], 0.17 * long, coat)
    pen.disc(head, 0.12 * long, coat)
    pen.limb([head, (head[0] + way * 0.15 * long, head[1] + 0.04 * long)], 0.1 * long, tint(coat, 0.86))
    pen.shape([(head[0] - way * 0.1 * long, head[1] - 0.06 * long), (head[0] - way * 0.06 * long, head[1] - 0.25 * long),
               (head[0] + way * 0.04 * long, head[1] - 0.08 * long)], tint(coat, 0.7))  # fmt: skip
    eye = (head[0] + way * 0.05 * long, head[1] - 0.02 * long)
    pen.disc(eye, 1.3 if eyes_shine else 0.8, (255, 255, 255) if eyes_shine else (12, 12, 12))
    left, right = sorted((tail[0] - way * 0.05 * long, head[0] + way * 0.2 * long))
    return left, head[1] - 0.25 * long, right, y + 0.04 * long
