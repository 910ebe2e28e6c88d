"""Drawing with sub-pixel positions on a canvas that is larger than the picture.

Everything in the world is drawn in picture pixels (x to the right, y down, float); the pen multiplies by `SCALE` and
hands cv2 fixed-point numbers, and the canvas is averaged down at the end: smooth edges at the price of one resize.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from infra.demo.truth import Rgb

SCALE = 2  # canvas pixels per picture pixel
_SHIFT = 3  # cv2 fixed point: positions in 1/8 canvas pixels
_UNIT = SCALE << _SHIFT

Point = tuple[float, float]


def _fixed(point: Point) -> tuple[int, int]:
    return round(point[0] * _UNIT), round(point[1] * _UNIT)


def tint(colour: Rgb, factor: float) -> Rgb:
    """Return `colour` (0-255) made darker or brighter by `factor`."""
    return (min(colour[0] * factor, 255.0), min(colour[1] * factor, 255.0), min(colour[2] * factor, 255.0))


class Pen:
    """Draws on `canvas`, uint8 (H * SCALE, W * SCALE, 3) RGB, in place."""

    def __init__(self, canvas: NDArray[np.uint8]) -> None:
        self.canvas = canvas

    def limb(self, points: Sequence[Point], width_px: float, colour: Rgb) -> None:
        """Draw a round-ended line through `points`."""
        path = np.array([_fixed(point) for point in points], np.int32)
        thickness = max(1, round(width_px * SCALE))
        cv2.polylines(self.canvas, [path], False, colour, thickness, cv2.LINE_AA, _SHIFT)

    def disc(self, centre: Point, radius_px: float, colour: Rgb) -> None:
        """Draw a filled circle."""
        cv2.circle(self.canvas, _fixed(centre), max(1, round(radius_px * _UNIT)), colour, -1, cv2.LINE_AA, _SHIFT)

    def oval(self, centre: Point, axes_px: Point, colour: Rgb, angle_deg: float = 0.0) -> None:
        """Draw a filled ellipse with half-axes `axes_px`."""
        cv2.ellipse(self.canvas, _fixed(centre), _fixed(axes_px), angle_deg, 0, 360, colour, -1, cv2.LINE_AA, _SHIFT)

    def shape(self, points: Sequence[Point], colour: Rgb) -> None:
        """Draw a filled polygon."""
        cv2.fillPoly(self.canvas, [np.array([_fixed(point) for point in points], np.int32)], colour, cv2.LINE_AA, _SHIFT)

    def box(self, x1: float, y1: float, x2: float, y2: float, colour: Rgb) -> None:
        """Draw a filled rectangle."""
        self.shape([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], colour)

    def glow(self, centre: Point, axes_px: Point, colour: Rgb, strength: float) -> None:
        """Blend a soft ellipse of `colour` into the canvas (a shadow when the colour is dark, a light when bright)."""
        height, width = self.canvas.shape[:2]
        cx, cy = centre[0] * SCALE, centre[1] * SCALE
        rx, ry = axes_px[0] * SCALE, axes_px[1] * SCALE
        x1, x2 = max(int(cx - rx), 0), min(int(cx + rx) + 1, width)
        y1, y2 = max(int(cy - ry), 0), min(int(cy + ry) + 1, height)
        if x2 <= x1 or y2 <= y1:
            return
        dx = (np.arange(x1, x2, dtype=np.float32) - cx) / rx
        dy = (np.arange(y1, y2, dtype=np.float32) - cy) / ry
        soft = np.clip(1.0 - dx[None, :] ** 2 - dy[:, None] ** 2, 0.0, 1.0)[..., None] * np.float32(strength)
        part = self.canvas[y1:y2, x1:x2]
        part[...] = (part * (1.0 - soft) + np.asarray(colour, np.float32) * soft).astype(np.uint8)
