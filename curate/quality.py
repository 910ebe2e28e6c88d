"""What a picture is like: brightness, contrast, sharpness, colour, and the lighting that follows. Classical, pure functions.

All measures are taken at one size, longer side `SIDE_PX` (smaller pictures as they are): sharpness depends on the scale.

**Lighting** is named from brightness and colourfulness of one frame. The thresholds were fixed by reasoning, before they
were tried on any clip (`tests/real_lighting.toml`: ten clips as a person sees them; `tests/curate/test_scan.py`: the score):
  * an infra-red picture has no colour: grey, plus the chroma noise of the codec, which is 2 to 4 on Hasler's scale, where
    15 is called slightly colourful. Below `GREY` = 6 it is infrared - if it is bright enough to tell (`PITCH_DARK` = 15 of
    255), since in the dark everything is grey;
  * a camera exposes for middle grey (about 110 of 255) while it can. At less than half of that, `NIGHT` = 50, it no longer can;
  * between `NIGHT` and `DUSK` = 80 it can only just.
What it cannot know: a grey camera or dense fog by day looks infrared, a coloured infra-red tint does not, a black wall is
night, and a lit room at midnight is day.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from infra.errors import UsageError

SIDE_PX: Final = 640
PITCH_DARK: Final = 15.0
NIGHT: Final = 50.0
DUSK: Final = 80.0
GREY: Final = 6.0

Lighting = Literal["day", "dusk", "night", "infrared"]
LIGHTINGS: Final[tuple[Lighting, ...]] = ("day", "dusk", "night", "infrared")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Measures of one picture.

    Attributes:
        brightness: mean luma, 0 to 255.
        contrast: standard deviation of luma.
        blur: variance of the Laplacian of luma: low is blurred or flat, high is sharp or noisy.
        colourfulness: Hasler and Suesstrunk's M3 (2003): 0 is grey, 15 slightly, 33 moderately, 59 quite colourful.
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
    return Quality(
        brightness=float(luma.mean()),
        contrast=float(luma.std()),
        blur=laplacian_variance(luma),
        colourfulness=colourfulness(rgb),
    )


def laplacian_variance(luma: NDArray[np.uint8]) -> float:
    """Return the variance of the 4-neighbour Laplacian of uint8 (H, W); 0 for pictures below 3 pixels a side."""
    if min(luma.shape) < 3:
        return 0.0
    c = luma.astype(np.int32)
    edges = c[:-2, 1:-1] + c[2:, 1:-1] + c[1:-1, :-2] + c[1:-1, 2:] - 4 * c[1:-1, 1:-1]
    return float(edges.var())


def colourfulness(rgb: NDArray[np.uint8]) -> float:
    """Return Hasler and Suesstrunk's M3 of uint8 (H, W, 3) RGB (Measuring colourfulness in natural images, 2003, eq. 3)."""
    red, green, blue = (rgb[..., k].astype(np.float32) for k in range(3))
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))


def lighting(brightness: float, colourfulness: float) -> Lighting:
    """Name the lighting of one frame; the thresholds and their reasons are in the module's docstring.

    Args:
        brightness: mean luma, 0 to 255.
        colourfulness: as `Quality.colourfulness`.
    """
    if colourfulness < GREY and brightness >= PITCH_DARK:
        return "infrared"
    if brightness < NIGHT:
        return "night"
    return "dusk" if brightness < DUSK else "day"
