"""What a picture is like: brightness, contrast, sharpness, colour, and the lighting that follows. Classical, pure functions.

All measures are taken at one size, longer side `SIDE_PX` (smaller pictures as they are): sharpness depends on the scale.

**Lighting** is named from brightness and colourfulness of one frame. Middle grey, which a camera exposes for while it can,
is about 118 of 255; a stop is a factor of 2 of light and of 2^(1/2.2) of luma.
  * below `PITCH_DARK` = 25 (5 stops under middle grey) it is night, whatever the colour: 4 % of 25, the tint that would
    count, is one step of an 8-bit value, so grey cannot be told from a colour that is too dim to be stored;
  * a grey picture is infrared: colourfulness below `GREY` = 4 % of brightness. Exposure scales both alike, so a dim colour
    picture keeps its share (9 % and more where this was developed); a grey one has a step or two of the codec's at most;
  * below `NIGHT` = 50 (2.7 stops under) the camera can no longer expose, below `DUSK` = 80 only just; else it is day.
What it does not tell: a grey camera by day, or asphalt that fills the picture, is called infrared; an infrared picture
with a tint is not; a black wall is night; a lit room at midnight is day, and so is most dusk that the camera exposes for.
Such a camera's clips are better tagged by hand (`label import`, factor lighting).

History. Version 1 was Hasler and Suesstrunk's M3 (2003) over all pixels, grey below 6: right on 6 of 10 clips listed before
(`tests/real_lighting.toml`): a logo in the margin coloured grey pictures, and dim colour was taken for grey. Version 2,
this one, was developed on those ten and on simulated footage, and fixed before a second list was drawn up and measured
(`tests/real_lighting_2.toml`): right on 9 of the first ten and on 8 of the second, where all ten were the target. It was not
changed after that. The misses stand in `tests/curate/test_scan.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from infra.errors import UsageError

SIDE_PX: Final = 640
PITCH_DARK: Final = 25.0
NIGHT: Final = 50.0
DUSK: Final = 80.0
GREY: Final = 0.04
MARGIN: Final = 0.12  # of each side: logos, clocks and black bars stand there
BLOCKS: Final = 40  # along the longer side
SHARE: Final = 90  # percentile: anything smaller than a tenth of the picture does not colour it

_LEVELS: Final = np.arange(256)

Lighting = Literal["day", "dusk", "night", "infrared"]
LIGHTINGS: Final[tuple[Lighting, ...]] = ("day", "dusk", "night", "infrared")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Measures of one picture.

    Attributes:
        brightness: mean luma, 0 to 255.
        contrast: standard deviation of luma.
        blur: variance of the Laplacian of luma: low is blurred or flat, high is sharp or noisy.
        colourfulness: 0 is grey; how far the most coloured tenth of the picture is from grey, see `colourfulness`.
    """

    brightness: float
    contrast: float
    blur: float
    colourfulness: float


def measure(rgb: NDArray[np.uint8], luma: NDArray[np.uint8]) -> Quality:
    """Return the measures of one picture.

    Args:
        rgb: uint8 (H, W, 3), RGB, longer side at most `SIDE_PX`.
        luma: uint8 (H, W) of the same picture, full range.

    Raises:
        UsageError: arrays of other shapes.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or luma.shape != rgb.shape[:2]:
        raise UsageError(f"pictures are {rgb.shape} and {luma.shape}; legal: (H, W, 3) and (H, W)")
    counts = np.bincount(luma.ravel(), minlength=256)  # exact, and faster than `std`
    total, squares = int(counts @ _LEVELS), int(counts @ _LEVELS**2)
    return Quality(
        brightness=total / luma.size,
        contrast=math.sqrt(luma.size * squares - total * total) / luma.size,
        blur=laplacian_variance(luma),
        colourfulness=colourfulness(rgb),
    )


def laplacian_variance(luma: NDArray[np.uint8]) -> float:
    """Return the variance of the 4-neighbour Laplacian of uint8 (H, W); 0 for pictures below 3 pixels a side."""
    if min(luma.shape) < 3:
        return 0.0
    import cv2

    edges = cv2.Laplacian(luma, cv2.CV_16S, ksize=1)[1:-1, 1:-1]
    return float(cv2.meanStdDev(edges)[1][0, 0]) ** 2


def colourfulness(rgb: NDArray[np.uint8]) -> float:
    """Return how coloured a picture is, whatever is burnt into its margins: 0 is grey, 255 the purest colours.

    The picture without its margins (`MARGIN`) is averaged in square blocks, so that chroma noise cancels out; of the blocks'
    distances from grey, hypot(R - G, (R + G) / 2 - B) - the axes of Hasler and Suesstrunk (2003) - the 90th percentile.

    Args:
        rgb: uint8 (H, W, 3), RGB.
    """
    top, left = (round(MARGIN * side) for side in rgb.shape[:2])
    inner = rgb[top : rgb.shape[0] - top, left : rgb.shape[1] - left]
    block = max(1, min(max(rgb.shape[:2]) // BLOCKS, *inner.shape[:2]))
    height, width = (side // block * block for side in inner.shape[:2])
    rows = np.add.reduceat(inner[:height, :width], np.arange(0, height, block), axis=0, dtype=np.uint32)
    red, green, blue = np.moveaxis(np.add.reduceat(rows, np.arange(0, width, block), axis=1) / block**2, -1, 0)
    return float(np.percentile(np.hypot(red - green, (red + green) / 2 - blue), SHARE))


def lighting(brightness: float, colourfulness: float) -> Lighting:
    """Name the lighting of one frame; the thresholds and their reasons are in the module's docstring.

    Args:
        brightness: mean luma, 0 to 255.
        colourfulness: as `Quality.colourfulness`.
    """
    if brightness < PITCH_DARK:
        return "night"
    if colourfulness < GREY * brightness:
        return "infrared"
    if brightness < NIGHT:
        return "night"
    return "dusk" if brightness < DUSK else "day"
