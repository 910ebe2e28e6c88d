"""Putting a scene into a time of day and a weather, and what the sensor makes of it.

A `LitScene` holds everything that does not change from frame to frame: the lit background in several phases of the wind,
the gain of light at every place (people and cars are coloured through it), fog by distance, tiles of rain and of noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from infra.demo.pen import SCALE
from infra.demo.scenes import HEIGHT_PX, INDOOR, WIDTH_PX, Scene
from infra.demo.truth import Lighting, Rgb, Weather

# Sensor noise in levels of 255, luma and chroma; chosen so that with the recorder's settings (infra.writer) P frames cost
# what they cost in real fixed-camera clips (figures in docs/adr/0010): .001 to .010 bytes per pixel.
NOISE: dict[Lighting, tuple[float, float]] = {
    "day": (1.2, 0.5), "dusk": (1.5, 0.7), "night": (1.8, 1.1), "infrared": (1.6, 0.0),
}  # fmt: skip
_SKY: dict[Lighting, Rgb] = {
    "day": (1.0, 1.0, 1.0), "dusk": (0.78, 0.5, 0.44), "night": (0.04, 0.055, 0.1), "infrared": (0.1, 0.1, 0.1),
}  # fmt: skip
# Night is as dark as real clips of people at night: mean luma of ../shared/data/actions/arid6_dark has quartiles 13, 17, 26.
_AMBIENT: dict[Lighting, Rgb] = {
    "day": (1.0, 1.0, 1.0), "dusk": (0.62, 0.49, 0.45), "night": (0.075, 0.09, 0.13), "infrared": (0.26, 0.26, 0.26),
}  # fmt: skip
_LAMP: dict[Lighting, float] = {"day": 0.12, "dusk": 0.4, "night": 0.17, "infrared": 0.0}
_LAMP_COLOUR = np.array([1.1, 0.9, 0.6], np.float32)
_GREY = np.array([0.42, 0.36, 0.22], np.float32)  # what an infrared camera makes of colours by day
_RAIN: dict[Lighting, float] = {"day": 70.0, "dusk": 62.0, "night": 30.0, "infrared": 96.0}  # brightness of its streaks
N_TILES, _MARGIN = 12, 48
WIND_PHASES = 9


@dataclass(slots=True)
class LitScene:
    """A scene in one light and weather; see the module docstring. Arrays are of canvas size unless told.

    Attributes:
        canvases: uint8 (H * SCALE, W * SCALE, 3), one per phase of the wind; a single one in still air.
        gain: float32 (H, W, 3), factor of light at every picture pixel.
        grey: infrared: everything is seen without colour.
        fog: (share at the feet's y, colour) of an object that stands there, or None.
        noise: pairs of uint8 tiles (H + margin, W + margin, 3): what is added, what is taken away.
        rain: uint8 tiles (H, W, 3) that are added, empty when dry.
    """

    scene: Scene
    lighting: Lighting
    canvases: list[NDArray[np.uint8]]
    gain: NDArray[np.float32]
    grey: bool
    fog: Callable[[float], float] | None
    fog_colour: Rgb
    noise: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]
    rain: list[NDArray[np.uint8]]

    def shade(self, x_px: float, y_px: float, feet_y_px: float) -> Callable[[Rgb], Rgb]:
        """Return what maps a daylight colour to the colour of a thing seen at (x, y) that stands at `feet_y_px`."""
        row, column = min(max(int(y_px), 0), HEIGHT_PX - 1), min(max(int(x_px), 0), WIDTH_PX - 1)
        r, g, b = (float(value) for value in self.gain[row, column])
        veil = self.fog(feet_y_px) if self.fog else 0.0
        fr, fg, fb = (value * veil for value in self.fog_colour)

        def shaded(colour: Rgb) -> Rgb:
            if self.grey:
                grey = colour[0] * 0.42 + colour[1] * 0.36 + colour[2] * 0.22 + 16.0
                colour = (grey, grey, grey)
            return (
                min(colour[0] * r * (1 - veil) + fr, 255.0),
                min(colour[1] * g * (1 - veil) + fg, 255.0),
                min(colour[2] * b * (1 - veil) + fb, 255.0),
            )

        return shaded

    def see(self, canvas: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return what the sensor makes of a finished canvas: uint8 (H, W, 3) RGB with rain and noise."""
        rgb: Any = cv2.resize(canvas, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_AREA)
        choice = rng.integers(0, 1 << 20, 4)
        if self.rain:
            rgb = cv2.add(rgb, np.roll(self.rain[int(choice[3]) % len(self.rain)], int(choice[2]) % WIDTH_PX, axis=1))
        more, less = self.noise[int(choice[0]) % N_TILES]
        y, x = int(choice[1]) % _MARGIN, int(choice[2]) % _MARGIN
        window = np.s_[y : y + HEIGHT_PX, x : x + WIDTH_PX]
        seen: Any = cv2.subtract(cv2.add(rgb, more[window]), less[window])
        return np.asarray(seen, np.uint8)


def _grid() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    y, x = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX].astype(np.float32)
    return x, y


def _gain(scene: Scene, lighting: Lighting, weather: Weather | None, level: float, lamp_on: bool) -> NDArray[np.float32]:
    """Light at every place, float32 (H, W, 3)."""
    x, y = _grid()
    gain: NDArray[Any] = np.ones((HEIGHT_PX, WIDTH_PX, 3), np.float32) * np.asarray(_AMBIENT[lighting], np.float32)
    if lighting == "infrared":  # the illuminator sits beside the lens: bright in the middle, dark towards the corners
        far = ((x - WIDTH_PX / 2) / 150) ** 2 + ((y - HEIGHT_PX * 0.56) / 112) ** 2
        gain = gain + (0.62 * np.exp(-1.25 * far))[..., None]
    elif scene.kind in INDOOR and lighting in ("day", "dusk"):  # light falls in through the window
        window = cv2.resize(scene.sky, (WIDTH_PX, HEIGHT_PX)).astype(np.float32)
        cx = float((window * x).sum() / max(window.sum(), 1))
        gain = gain * (0.8 + 0.34 * np.exp(-(((x - cx) / 95) ** 2)))[..., None]
    if weather in ("rain", "fog") and lighting != "infrared":
        gain = gain * np.float32(0.84)
    for lx, ly, reach in scene.lamps:
        if lamp_on:
            cone = np.exp(-(((x - lx) / reach) ** 2) * 1.6 - ((y - ly) / (reach * 1.15)) ** 2)
            gain = gain + (_LAMP[lighting] * cone)[..., None] * _LAMP_COLOUR
    return (gain * np.float32(level)).astype(np.float32)


def _lit(scene: Scene, lighting: Lighting, gain: NDArray[np.float32], level: float) -> NDArray[np.float32]:
    size = (WIDTH_PX * SCALE, HEIGHT_PX * SCALE)
    colour = scene.colour.astype(np.float32)
    if lighting == "infrared":
        shine: Any = cv2.erode(scene.leaves, np.ones((7, 7), np.uint8))  # leaves are bright in infrared
        grey = colour @ _GREY + 16 + 0.16 * shine
        colour = np.repeat(grey[..., None], 3, axis=2)
    lit = colour * cv2.resize(gain, size, interpolation=cv2.INTER_LINEAR)
    sky = (scene.sky.astype(np.float32) / 255)[..., None]
    return (lit * (1 - sky) + colour * np.asarray(_SKY[lighting], np.float32) * np.float32(level) * sky).astype(np.float32)


def _lamps(canvas: NDArray[np.float32], scene: Scene, lighting: Lighting) -> None:
    """A lamp that is on outshines its own picture."""
    if lighting in ("dusk", "night"):
        y, x = np.mgrid[0 : HEIGHT_PX * SCALE, 0 : WIDTH_PX * SCALE].astype(np.float32) / SCALE
        for lx, ly, _ in scene.lamps:
            near = np.exp(-((x - lx) ** 2 + (y - ly) ** 2) / 44)
            canvas += near[..., None] * np.array([235, 205, 140], np.float32) * (0.6 if lighting == "night" else 0.5)


def _wind(
    canvas: NDArray[np.uint8], leaves: NDArray[np.uint8], strength_px: float, rng: np.random.Generator
) -> list[NDArray[np.uint8]]:
    """Return the canvas in `WIND_PHASES` phases of moving leaves."""
    height, width = leaves.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    soft = cv2.GaussianBlur(leaves, (0, 0), 3).astype(np.float32) / 255 * (strength_px * SCALE)
    field_x = cv2.resize(rng.uniform(0, 6.3, (9, 12)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    phases: list[NDArray[np.uint8]] = []
    for i in range(WIND_PHASES):
        turn = 2 * np.pi * i / WIND_PHASES
        from_x, from_y = x + soft * np.sin(field_x + turn), y + 0.5 * soft * np.cos(field_x + turn)
        moved: Any = cv2.remap(canvas, from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        phases.append(moved)
    return phases


def _rain_tiles(rng: np.random.Generator, brightness: float) -> list[NDArray[np.uint8]]:
    tiles = []
    for _ in range(6):
        tile = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
        for _ in range(42):
            x, y, long = rng.uniform(0, WIDTH_PX), rng.uniform(-20, HEIGHT_PX), rng.uniform(9, 20)
            ends = [(round(x * 8), round(y * 8)), (round((x - 0.22 * long) * 8), round((y + long) * 8))]
            cv2.line(tile, ends[0], ends[1], float(rng.uniform(0.4, 1.0)) * brightness, 1, cv2.LINE_AA, 3)
        tiles.append(np.repeat(tile[..., None], 3, axis=2))
    return tiles


@functools.cache
def _noise_tiles(lighting: Lighting) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Tiles of noise, made once per process: a camera's noise does not depend on what it sees."""
    luma, chroma = NOISE[lighting]
    rng = np.random.default_rng([7, round(10 * luma), round(10 * chroma)])
    shape = (HEIGHT_PX + _MARGIN, WIDTH_PX + _MARGIN)
    tiles = []
    for _ in range(N_TILES):
        grain = rng.standard_normal((*shape, 1), np.float32) * luma
        if chroma:  # coarser than luma, as after a sensor's demosaicing
            small = rng.standard_normal((shape[0] // 2, shape[1] // 2, 3), np.float32) * (1.6 * chroma)
            grain = grain + cv2.resize(small, shape[::-1], interpolation=cv2.INTER_LINEAR)
        rounded = np.broadcast_to(np.rint(grain), (*shape, 3))
        tiles.append((np.clip(rounded, 0, 255).astype(np.uint8), np.clip(-rounded, 0, 255).astype(np.uint8)))
    return tiles


def light_scene(
    scene: Scene, lighting: Lighting, weather: Weather | None, level: float, seed: int, *, lamp_on: bool = True
) -> LitScene:
    """Light a scene.

    Args:
        scene: the place.
        lighting: the time of day, or a camera that sees by its own infrared light.
        weather: outdoors; None indoors.
        level: exposure, about 1.
        seed: of noise, rain and wind.
        lamp_on: whether the place's lamps burn.

    Returns:
        What `render` draws people into.
    """
    rng = np.random.default_rng(seed)
    gain = _gain(scene, lighting, weather, level, lamp_on)
    canvas = _lit(scene, lighting, gain, level)
    if lamp_on:
        _lamps(canvas, scene, lighting)
    fog, fog_colour = None, (0.0, 0.0, 0.0)
    if weather == "fog":
        veil = {"day": 206.0, "dusk": 132.0, "night": 26.0, "infrared": 118.0}[lighting] * level
        blue = 1.0 if lighting == "infrared" else 1.05
        fog_colour = (veil * (1.06 if lighting == "dusk" else 1.0), veil, veil * blue)
        thick = rng.uniform(0.8, 1.0)

        def fog(feet_y_px: float) -> float:
            near = min(max((feet_y_px - scene.horizon_px) / (HEIGHT_PX - scene.horizon_px), 0.0), 1.0)
            return float(thick * (0.32 + 0.5 * (1 - near)))

        rows = np.array([fog(y / SCALE) for y in range(HEIGHT_PX * SCALE)], np.float32)[:, None, None]
        canvas = canvas * (1 - rows) + np.asarray(fog_colour, np.float32) * rows
    still = np.clip(canvas, 0, 255).astype(np.uint8)
    outdoors = scene.kind not in INDOOR
    strength = {"wind": 2.6, "rain": 0.8}.get(weather or "", 0.0) if outdoors else 0.0
    return LitScene(
        scene=scene,
        lighting=lighting,
        canvases=_wind(still, scene.leaves, strength, rng) if strength else [still],
        gain=gain,
        grey=lighting == "infrared",
        fog=fog,
        fog_colour=fog_colour,
        noise=_noise_tiles(lighting),
        rain=_rain_tiles(rng, _RAIN[lighting]) if weather == "rain" else [],
    )
