"""Parts of a picture that an owner names once and that hold at any resolution: boxes and polygons in shares of it.

A region is a flat list of numbers from 0 (left, top) to 1 (right, bottom): four are a box `[x1, y1, x2, y2]`, six or more
the corners of a polygon `[x1, y1, x2, y2, x3, y3, ...]`. A pixel belongs to a polygon when its centre does (even-odd
rule), to a box when the box covers any of it: what is masked for privacy must not shine through at an edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from infra.errors import SettingsError

Region = tuple[float, ...]


def check_regions(name: str, regions: Iterable[Region]) -> None:
    """Refuse what is no region.

    Raises:
        SettingsError: its first word is `name`, so that `settings.read_table` finds the line.
    """
    legal = "legal: [x1, y1, x2, y2] with x1 < x2 and y1 < y2, or 3 corners and more [x1, y1, x2, y2, x3, y3, ...], each 0 to 1"
    for region in regions:
        is_box = len(region) == 4
        if len(region) < 4 or len(region) % 2 or not all(0 <= value <= 1 for value in region):
            raise SettingsError(f"{name} has {list(region)}; {legal}")
        if is_box and not (region[0] < region[2] and region[1] < region[3]):
            raise SettingsError(f"{name} has {list(region)}, an empty box; {legal}")


def covered(regions: Iterable[Region], size_px: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels the regions cover: bool (height, width).

    Args:
        regions: as `check_regions` accepts them.
        size_px: (width, height) in pixels.
    """
    width, height = size_px
    mask = np.zeros((height, width), bool)
    for region in regions:
        if len(region) == 4:
            x1, y1, x2, y2 = region
            mask[math.floor(y1 * height) : math.ceil(y2 * height), math.floor(x1 * width) : math.ceil(x2 * width)] = True
        else:
            mask |= _inside(region, width, height)
    return mask


def _inside(corners: Region, width: int, height: int) -> NDArray[np.bool_]:
    """Say for each pixel whether a ray from its centre to the right crosses the polygon's edges an odd number of times."""
    x = (np.arange(width) + 0.5)[None, :]
    y = (np.arange(height) + 0.5)[:, None]
    points = [(corners[i] * width, corners[i + 1] * height) for i in range(0, len(corners), 2)]
    odd = np.zeros((height, width), bool)
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        if y1 == y2:
            continue
        crosses = (y1 > y) != (y2 > y)
        odd ^= crosses & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return odd
