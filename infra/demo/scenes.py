"""The four kinds of places that are filmed, each laid out afresh by a layout seed: hall, workshop, yard, street.

A `Scene` is the place in flat light with nobody in it; `light` puts it into a time of day and a weather.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from infra.demo.pen import SCALE, Pen, Point, tint
from infra.demo.truth import Rgb

WIDTH_PX, HEIGHT_PX = 256, 192
Kind = Literal["hall", "workshop", "yard", "street"]
KINDS: tuple[Kind, ...] = ("hall", "workshop", "yard", "street")
INDOOR: frozenset[Kind] = frozenset(("hall", "workshop"))


@dataclass(slots=True)
class Scene:
    """One place.

    Attributes:
        kind: which of the four.
        colour: uint8 (H * SCALE, W * SCALE, 3) RGB, the place in flat light.
        sky: uint8 mask, 255 where light comes from outside (sky, window panes).
        leaves: uint8 mask, 255 where wind moves the picture.
        horizon_px: y at which the ground would end.
        person_px: height of an average person whose feet stand at y = `feet_px`.
        feet_px: y of that person's feet.
        stage_px: (x1, x2, y1, y2) within which feet of acting people stand.
        lanes: (y of the wheels, direction +1 or -1) of cars.
        lamps: (x, y, reach) of lamps, picture pixels.
    """

    kind: Kind
    colour: NDArray[np.uint8]
    sky: NDArray[np.uint8]
    leaves: NDArray[np.uint8]
    horizon_px: float
    person_px: float
    feet_px: float
    stage_px: tuple[float, float, float, float]
    lanes: tuple[tuple[float, int], ...] = ()
    lamps: list[tuple[float, float, float]] = field(default_factory=list)

    def height_at(self, feet_y_px: float) -> float:
        """Return the height of an average person whose feet are at `feet_y_px` (perspective of a level ground)."""
        return self.person_px * (feet_y_px - self.horizon_px) / (self.feet_px - self.horizon_px)


def _colour(rng: np.random.Generator, low: float, high: float, spread: float = 26.0) -> Rgb:
    base = rng.uniform(low, high)
    r, g, b = base + rng.uniform(-spread, spread, 3)
    return (float(np.clip(r, 0, 255)), float(np.clip(g, 0, 255)), float(np.clip(b, 0, 255)))


class _Layout:
    """A scene being drawn: the pen and the masks that follow it."""

    def __init__(self, rng: np.random.Generator) -> None:
        shape = (HEIGHT_PX * SCALE, WIDTH_PX * SCALE)
        self.rng = rng
        self.pen = Pen(np.zeros((*shape, 3), np.uint8))
        self.sky = np.zeros((*shape, 3), np.uint8)
        self.leaves = np.zeros((*shape, 3), np.uint8)
        self.lamps: list[tuple[float, float, float]] = []

    def blend(self, y1: float, y2: float, top: Rgb, bottom: Rgb) -> None:
        """Fill rows [y1, y2) with a gradient."""
        a, b = round(y1 * SCALE), round(y2 * SCALE)
        share = np.linspace(0, 1, max(b - a, 1), dtype=np.float32)[:, None, None]
        rows = np.asarray(top, np.float32) * (1 - share) + np.asarray(bottom, np.float32) * share
        self.pen.canvas[a:b] = rows.astype(np.uint8)

    def open_to_sky(self, draw: Callable[[Pen], None]) -> None:
        """Draw the same shape into the mask of light from outside."""
        draw(Pen(self.sky))

    def window(self, x: float, y: float, w: float, h: float) -> None:
        self.pen.box(x - 3, y - 3, x + w + 3, y + h + 4, (232, 230, 224))
        self.pen.box(x, y, x + w, y + h, (186, 214, 238))
        self.pen.shape([(x, y + h), (x, y + h * 0.62), (x + w, y + h * 0.74), (x + w, y + h)], (122, 150, 104))
        self.open_to_sky(lambda pen: pen.box(x, y, x + w, y + h, (255, 255, 255)))
        self.pen.box(x + w / 2 - 1, y, x + w / 2 + 1, y + h, (232, 230, 224))
        self.pen.box(x, y + h / 2 - 1, x + w, y + h / 2 + 1, (232, 230, 224))

    def tree(self, x: float, ground: float, height: float) -> None:
        rng = self.rng
        self.pen.limb([(x, ground), (x + rng.uniform(-3, 3), ground - height * 0.6)], height * 0.075, _colour(rng, 70, 90, 10))
        green = (float(rng.uniform(38, 84)), float(rng.uniform(92, 134)), float(rng.uniform(34, 62)))
        for _ in range(26):
            angle, radius = rng.uniform(0, 2 * np.pi), height * 0.3 * np.sqrt(rng.uniform())
            spot = (x + radius * 1.1 * np.cos(angle), ground - height * 0.74 + radius * np.sin(angle))
            size = height * rng.uniform(0.06, 0.13)
            self.pen.disc(spot, size, tint(green, rng.uniform(0.72, 1.3)))
            Pen(self.leaves).disc(spot, size + 2, (255, 255, 255))

    def bush(self, x: float, ground: float, size: float) -> None:
        rng = self.rng
        for _ in range(12):
            spot = (x + rng.uniform(-1, 1) * size, ground - rng.uniform(0.15, 0.75) * size)
            self.pen.disc(spot, size * rng.uniform(0.2, 0.42), (float(rng.uniform(40, 80)), float(rng.uniform(86, 128)), 50.0))
            Pen(self.leaves).disc(spot, size * 0.45, (255, 255, 255))

    def done(self, kind: Kind, *, horizon: float, person: float, feet: float, stage: tuple[float, float, float, float],
             lanes: tuple[tuple[float, int], ...] = (), grain: float = 3.5) -> Scene:  # fmt: skip
        """Add grain and hand the scene over."""
        canvas = self.pen.canvas
        fine = cv2.GaussianBlur(self.rng.normal(0, 1, canvas.shape[:2]).astype(np.float32), (0, 0), 1.1) * 2.4
        blotches = self.rng.normal(0, 1, (12, 16)).astype(np.float32)
        coarse = cv2.resize(blotches, canvas.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        rough = canvas.astype(np.float32) * (1 + 0.01 * grain * (fine + 0.9 * coarse))[..., None]
        colour = np.clip(rough, 0, 255).astype(np.uint8)
        return Scene(kind, colour, self.sky[..., 0], self.leaves[..., 0], horizon, person, feet, stage, lanes, self.lamps)


def _hall(layout: _Layout) -> Scene:
    """A room seen straight on from the height of a shelf: back wall, floor boards, window, door, pictures, a plant."""
    rng, pen = layout.rng, layout.pen
    edge = rng.uniform(104, 120)
    wall, floor = _colour(rng, 165, 215, 22), _colour(rng, 110, 160, 18)
    layout.blend(0, edge, tint(wall, 0.93), tint(wall, 1.06))
    layout.blend(edge, HEIGHT_PX, tint(floor, 0.78), tint(floor, 1.12))
    vanish = (rng.uniform(90, 166), edge - 40)
    for x in range(-160, 420, 26):
        far = x + (vanish[0] - x) * (HEIGHT_PX - edge) / (HEIGHT_PX - vanish[1])
        pen.limb([(x, HEIGHT_PX + 2), (far, edge)], 0.6, tint(floor, 0.72))
    pen.box(0, edge - 4, WIDTH_PX, edge, tint(wall, 0.7))
    places = [18.0, 76.0, 136.0, 194.0]
    rng.shuffle(places)
    layout.window(places[0] + rng.uniform(0, 8), rng.uniform(14, 26), rng.uniform(34, 44), rng.uniform(40, 54))
    door_x, door = places[1] + rng.uniform(0, 10), _colour(rng, 95, 165, 40)
    pen.box(door_x - 2, edge - 88, door_x + 36, edge, tint(door, 0.6))
    pen.box(door_x, edge - 86, door_x + 34, edge, door)
    for panel in (78, 40):
        pen.box(door_x + 6, edge - panel, door_x + 28, edge - panel + 30, tint(door, 0.86))
    pen.disc((door_x + 30, edge - 42), 1.7, (214, 190, 110))
    pen.box(places[2] + 2, 24, places[2] + 34, 50, (70, 54, 42))
    pen.box(places[2] + 5, 27, places[2] + 31, 47, _colour(rng, 120, 200, 50))
    pen.oval((places[2] + 18, 40), (8, 5), _colour(rng, 60, 140, 60))
    cabinet, shade = places[3], _colour(rng, 80, 140, 30)
    pen.box(cabinet, edge - 26, cabinet + 44, edge + 7, shade)
    pen.box(cabinet + 2, edge - 23, cabinet + 21, edge + 3, tint(shade, 1.16))
    pen.box(cabinet + 23, edge - 23, cabinet + 42, edge + 3, tint(shade, 1.16))
    pen.box(cabinet + 10, edge - 40, cabinet + 13, edge - 26, (90, 80, 70))
    lampshade = [(cabinet + 4, edge - 38), (cabinet + 19, edge - 38), (cabinet + 16, edge - 52), (cabinet + 7, edge - 52)]
    pen.shape(lampshade, (240, 224, 184))
    layout.lamps.append((cabinet + 12, edge - 44, 120.0))
    pen.oval((rng.uniform(90, 166), HEIGHT_PX - 16), (rng.uniform(58, 84), 15), _colour(rng, 90, 170, 50))
    plant = float(rng.choice((8.0, 246.0)))
    layout.bush(plant, HEIGHT_PX - 28, 15)
    top, foot = HEIGHT_PX - 32, HEIGHT_PX - 14
    pen.shape([(plant - 8, top), (plant + 8, top), (plant + 6, foot), (plant - 6, foot)], (168, 96, 64))
    return layout.done("hall", horizon=40, person=118, feet=172, stage=(72, 184, 162, 184))


def _workshop(layout: _Layout) -> Scene:
    """A room seen from high up in a corner: two walls meet, a bench, shelves with boxes, a roller door."""
    rng, pen = layout.rng, layout.pen
    corner, top = rng.uniform(84, 172), rng.uniform(70, 84)
    wall, floor = _colour(rng, 135, 185, 18), _colour(rng, 110, 140, 8)
    left_y, right_y = top + 0.24 * corner, top + 0.24 * (WIDTH_PX - corner)
    pen.box(0, 0, WIDTH_PX, HEIGHT_PX, floor)
    for i in range(-6, 14):  # slabs
        pen.limb([(corner + (i - 4) * 34, top), (corner + (i - 4) * 34 - 150, HEIGHT_PX + 20)], 0.6, tint(floor, 0.84))
        pen.limb([(corner + (i - 4) * 34, top), (corner + (i - 4) * 34 + 150, HEIGHT_PX + 20)], 0.6, tint(floor, 0.84))
    pen.shape([(0, 0), (corner, 0), (corner, top), (0, left_y)], tint(wall, 0.86))
    pen.shape([(corner, 0), (WIDTH_PX, 0), (WIDTH_PX, right_y), (corner, top)], tint(wall, 1.1))
    stripe = _colour(rng, 90, 160, 60)
    pen.shape([(0, left_y - 16), (corner, top - 12), (corner, top), (0, left_y)], tint(stripe, 0.8))
    pen.shape([(corner, top - 12), (WIDTH_PX, right_y - 16), (WIDTH_PX, right_y), (corner, top)], stripe)
    shelf_left = bool(rng.random() < 0.5)
    x1, x2 = (6.0, corner - 14) if shelf_left else (corner + 14, WIDTH_PX - 6.0)
    for row in range(3):
        y = 16 + row * 18
        for x in np.arange(x1, x2 - 8, 10.5):
            tall = rng.uniform(5, 13)
            pen.box(float(x), y + 14 - tall, float(x) + rng.uniform(6, 10), y + 14, _colour(rng, 70, 180, 60))
        pen.box(x1 - 2, y + 14, x2 + 2, y + 16, (92, 72, 54))
    wx = corner + 20 if shelf_left else max(corner - 62, 4)
    layout.window(wx, rng.uniform(12, 20), rng.uniform(36, 46), rng.uniform(26, 34))
    bench = float(rng.choice((-14.0, WIDTH_PX - 44.0)))
    by = rng.uniform(100, 120)
    pen.box(bench + 4, by + 12, bench + 8, by + 44, (70, 56, 44))
    pen.box(bench + 50, by + 12, bench + 54, by + 44, (70, 56, 44))
    pen.shape([(bench, by), (bench + 58, by), (bench + 62, by + 13), (bench - 4, by + 13)], (154, 116, 74))
    pen.box(bench + 18, by - 12, bench + 34, by + 3, _colour(rng, 60, 150, 60))
    layout.lamps.append((corner + rng.uniform(-30, 30), 8.0, 150.0))
    pen.limb([(layout.lamps[0][0], 0), (layout.lamps[0][0], 6)], 1, (40, 40, 40))
    pen.oval((layout.lamps[0][0], 9), (11, 4), (236, 236, 226))
    return layout.done("workshop", horizon=-60, person=100, feet=168, stage=(74, 182, 152, 182), grain=4.0)


def _yard(layout: _Layout) -> Scene:
    """Behind a house: sky, fence, trees, grass, a path, a house wall on one side."""
    rng, pen = layout.rng, layout.pen
    horizon = rng.uniform(66, 80)
    layout.blend(0, horizon, (148, 188, 226), (212, 226, 234))
    layout.open_to_sky(lambda sky: sky.box(0, 0, WIDTH_PX, horizon, (255, 255, 255)))
    hide = Pen(layout.sky)
    for x in np.arange(-10, 270, 22):
        size = rng.uniform(16, 34)
        pen.oval((float(x), horizon), (18, size), (float(rng.uniform(84, 104)), float(rng.uniform(118, 138)), 104.0))
        hide.oval((float(x), horizon), (18, size), (0, 0, 0))
    grass = (float(rng.uniform(92, 128)), float(rng.uniform(132, 158)), float(rng.uniform(66, 88)))
    layout.blend(horizon, HEIGHT_PX, tint(grass, 0.76), tint(grass, 1.06))
    for _ in range(260):
        blade, y = rng.uniform(0, WIDTH_PX), rng.uniform(horizon + 12, HEIGHT_PX)
        pen.limb([(blade, y), (blade + rng.uniform(-2, 2), y - 4)], 0.7, tint(grass, rng.uniform(0.7, 1.25)))
    fence = _colour(rng, 120, 180, 26)
    for x in np.arange(-4, 262, 11):
        pen.box(float(x), horizon - 14, float(x) + 8, horizon + 14, tint(fence, rng.uniform(0.88, 1.1)))
    pen.box(0, horizon - 6, WIDTH_PX, horizon - 3, tint(fence, 0.72))
    path, path_x = _colour(rng, 150, 185, 12), rng.uniform(80, 176)
    far, near = horizon + 14, HEIGHT_PX
    pen.shape([(path_x - 10, far), (path_x + 10, far), (path_x + 66, near), (path_x - 66, near)], path)
    side = int(rng.integers(2))
    house, wide = _colour(rng, 150, 200, 40), rng.uniform(44, 58)
    edge = wide if side == 0 else WIDTH_PX - wide
    out = 0 if side == 0 else WIDTH_PX
    corners: list[Point] = [(out, 0), (edge, 14), (edge, horizon + 30), (out, HEIGHT_PX - 24)]
    pen.shape(corners, house)
    hide.shape(corners, (0, 0, 0))
    wx = 8.0 if side == 0 else WIDTH_PX - 34.0
    layout.window(wx, 44, 26, 34)
    layout.lamps.append((edge + (6 if side == 0 else -6), 34.0, 150.0))
    pen.disc((edge, 34), 3, (250, 240, 200))
    for tree_x in (rng.uniform(150, 180), rng.uniform(212, 246)) if side == 0 else (rng.uniform(10, 44), rng.uniform(76, 106)):
        layout.tree(tree_x, horizon + rng.uniform(16, 34), rng.uniform(80, 108))
    layout.bush(rng.uniform(60, 196), horizon + 18, 13)
    return layout.done("yard", horizon=horizon - 26, person=104, feet=172, stage=(80, 178, 160, 184), grain=5.0)


def _street(layout: _Layout) -> Scene:
    """A street from across: house fronts, pavement with trees and a lamp post, a road with two lanes."""
    rng, pen = layout.rng, layout.pen
    kerb = rng.uniform(98, 108)
    layout.blend(0, kerb, (150, 186, 222), (206, 220, 232))
    layout.open_to_sky(lambda sky: sky.box(0, 0, WIDTH_PX, kerb, (255, 255, 255)))
    x = float(-rng.uniform(0, 30))
    while x < WIDTH_PX:
        w, top, front = rng.uniform(44, 76), rng.uniform(4, 36), _colour(rng, 120, 195, 40)
        Pen(layout.sky).box(x, top, x + w, kerb, (0, 0, 0))
        pen.box(x, top, x + w, kerb, front)
        pen.box(x, top, x + w, top + 4, tint(front, 0.65))
        for wy in np.arange(top + 12, kerb - 34, 22):
            for wx in np.arange(x + 8, x + w - 12, 17):
                pen.box(float(wx), float(wy), float(wx) + 9, float(wy) + 12, (84, 98, 116))
                pen.box(float(wx) + 1, float(wy) + 1, float(wx) + 8, float(wy) + 5, (132, 152, 172))
        door = x + rng.uniform(8, w - 18)
        pen.box(door, kerb - 26, door + 12, kerb, tint(_colour(rng, 60, 140, 50), 0.9))
        x += w
    layout.blend(kerb, kerb + 24, (150, 146, 140), (174, 170, 162))
    for slab in np.arange(0, WIDTH_PX, 18):
        pen.limb([(float(slab), kerb), (float(slab) - 6, kerb + 24)], 0.5, (128, 124, 118))
    asphalt = _colour(rng, 84, 104, 5)
    layout.blend(kerb + 24, HEIGHT_PX, tint(asphalt, 0.9), tint(asphalt, 1.1))
    pen.box(0, kerb + 23, WIDTH_PX, kerb + 26, (196, 192, 184))
    middle = (kerb + 26 + HEIGHT_PX) / 2 + 4
    for mark in np.arange(float(rng.uniform(-30, 0)), WIDTH_PX, 38):
        pen.box(float(mark), middle - 1, float(mark) + 20, middle + 1, (222, 220, 210))
    for tree_x in (rng.uniform(10, 60), rng.uniform(196, 246)):
        layout.tree(tree_x, kerb + 8, rng.uniform(62, 86))
    post = rng.uniform(96, 160)
    pen.limb([(post, kerb + 12), (post, 26), (post + 12, 22)], 2, (62, 64, 68))
    pen.oval((post + 14, 23), (6, 2.4), (240, 236, 210))
    layout.lamps.append((post + 14, 24.0, 140.0))
    return layout.done("street", horizon=30, person=62, feet=kerb + 19, stage=(40, 216, kerb + 14, kerb + 22),
                       lanes=((middle - 6, 1), (HEIGHT_PX - 8, -1)), grain=4.0)  # fmt: skip


_MAKERS: dict[Kind, Callable[[_Layout], Scene]] = {"hall": _hall, "workshop": _workshop, "yard": _yard, "street": _street}


def make_scene(kind: Kind, layout_seed: int) -> Scene:
    """Lay a place out; a pure function of its arguments."""
    return _MAKERS[kind](_Layout(np.random.default_rng([layout_seed, KINDS.index(kind)])))
