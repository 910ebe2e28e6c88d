"""What a clip shows of its camera: noise, colour cast, flicker, an outline, sharpness by place. Classical, pure functions.

    a kept picture -> noise, cast           -> medians over the clip ------------------+
         \\-> at `WIDE_PX` -> median picture -> outline, sharpness of each cell -------+--> a row of table `scenes`
    it and the 3 pictures after it -> flicker -> median over the clip -----------------+

    outlines of two clips -> `fields` -> `displacement` (turned?), `structure` (covered?); cells -> dirt: `curate/usual.py`

Medians, so that people who walk through, one lamp that is switched or one damaged picture do not count. A number here means
little by itself and much against the same camera's usual (`curate/usual.py`). What could not be measured is null.

Sources. Noise: Immerkaer, Fast Noise Variance Estimation (1996), in the smoothest tenth of blocks. Cast: grey world
(Buchsbaum 1980), by the median. Displacement: correlation of gradient directions (Fitch et al., Orientation Correlation,
2002) with doubled angles, which neither light nor infrared, that turns dark leaves bright, changes. Sharpness: what is fine
against what there is at all, as in no-reference blur measures (Crete et al. 2007): a shadow changes both.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from curate import quality
from infra import video

VERSION: Final = 2  # 2: every second kept picture; a row, though of nulls, for every clip
SMALL_PX: Final = 160  # longer side of the outline, of the pictures that cast and flicker are measured in
LEAST_PX: Final = 12  # a side, for anything to be known
WIDE_PX: Final = 2 * SMALL_PX  # and of the median picture
EVERY: Final = 2  # kept pictures one is measured: a few hundredths of the scan,
MOST_PICTURES: Final = 16  # up to so many; of a longer clip every fourth, eighth, ... kept one
CELLS: Final = (9, 16)  # rows, columns of the sharpness map and of flicker

PLANAR: Final = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray"})
BANDS, BAND_PX, BLOCK_PX = 16, 10, 16  # noise is measured in so many bands of rows, at the size of the file
SMOOTH: Final = 10  # percentile of the blocks' noise: the others have texture, or rain
UNCLIPPED: Final = (4, 251)  # luma of blocks that show noise at all
LIT: Final = 10.0  # mean of a pixel that shows a cast; a white one counts, or shade over it would be a cast
LEAST_LIT: Final = 0.1  # of the picture
FOLLOWING: Final = 3  # pictures after a kept one
FOLLOWING_S: Final = 0.5  # the longest time that they may take
DARK_LUMA: Final = 16.0  # added before light is compared, so that black does not flicker
EDGE_LEVELS: Final = 3.0  # grey levels per pixel of the outline from which a gradient is an edge more than not
FLAT_LEVELS: Final = 4.0  # standard deviation within a cell below which it has nothing to be sharp
MOST_SHIFT: Final = 0.25  # of the longer side: how far a displacement is looked for

_MEASURED: Final = (
    "noise", "cast_red", "cast_blue", "flicker", "outline", "outline_width_px", "outline_height_px", "sharpness",
)  # fmt: skip

Luma = NDArray[np.uint8]
Field = NDArray[np.complex64]


def noise(luma: Luma) -> float | None:
    """Return the standard deviation of pixel noise in grey levels, as stored: what the encoder smoothed away is gone.

    Args:
        luma: uint8 (H, W) at the size of the file: resizing averages noise away.

    Returns:
        Immerkaer's estimate of the smoothest tenth of blocks; None where all is clipped or the picture is tiny.
    """
    height, width = luma.shape
    if height < BAND_PX or width < BLOCK_PX + 2:
        return None
    starts = np.linspace(0, height - BAND_PX, BANDS).astype(int)
    bands = np.stack([luma[start : start + BAND_PX] for start in starts]).astype(np.int16)
    down = bands[:, :-2] - 2 * bands[:, 1:-1] + bands[:, 2:]
    mask = np.abs(down[..., :-2] - 2 * down[..., 1:-1] + down[..., 2:])
    n = mask.shape[2] // BLOCK_PX * BLOCK_PX
    means = mask[..., :n].mean(axis=1).reshape(BANDS, -1, BLOCK_PX).mean(axis=2)
    inner = bands[:, 1:-1, 1 : n + 1]
    low = inner.min(axis=1).reshape(BANDS, -1, BLOCK_PX).min(axis=2)
    high = inner.max(axis=1).reshape(BANDS, -1, BLOCK_PX).max(axis=2)
    shown = means[(low >= UNCLIPPED[0]) & (high <= UNCLIPPED[1])]
    return float(np.percentile(shown, SMOOTH) * math.sqrt(math.pi / 2) / 6) if shown.size else None


def cast(rgb: NDArray[np.uint8]) -> tuple[float, float] | None:
    """Return the colour cast (red, blue): medians of (R - G) / M and (B - G) / M with M = (R + G + B) / 3; 0 is grey.

    Args:
        rgb: uint8 (H, W, 3), RGB, small.

    Returns:
        None for a picture that is too dark, or grey altogether: infrared has no cast.
    """
    flat = rgb.reshape(-1, 3).astype(np.float32)
    mean = flat.mean(axis=1)
    shown = mean >= LIT
    if shown.mean() < LEAST_LIT or quality.colourfulness(rgb) < quality.GREY * float(mean.mean()):
        return None
    red, green, blue = flat[shown].T
    return float(np.median((red - green) / mean[shown])), float(np.median((blue - green) / mean[shown]))


def flicker(luma: NDArray[np.uint8]) -> float:
    """Return the share by which pictures are brighter or darker than the mean of their two neighbours, where nothing moves.

    Of each row of cells the median counts: things move in some of its cells, light changes in all. A step or a slow change of
    the light gives one difference at most, flicker gives all. The bands of a rolling shutter count.

    Args:
        luma: uint8 (T, H, W), T >= 3, small, neighbouring pictures in order.
    """
    light = np.log(np.stack([_means(picture.astype(np.float32)) for picture in luma]) + DARK_LUMA)
    bent = light[1:-1] - (light[:-2] + light[2:]) / 2
    by_picture = np.abs(np.median(bent, axis=2)).mean(axis=1)
    return float(by_picture.mean())


def sharpness(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how sharp each of `CELLS` is: its fine structure (rms of the Laplacian) / (its structure + `FLAT_LEVELS`).

    Args:
        luma: float32 (H, W), the median picture, at least 48 px a side.

    Returns:
        float32 (9, 16): about 0 where a cell is flat or blurred, about 1 where it is sharp; light changes it little.
    """
    inner = luma[1:-1, 1:-1]
    fine = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
    spread = np.sqrt(np.maximum(_means(inner * inner) - _means(inner) ** 2, 0))
    made: NDArray[np.float32] = (np.sqrt(_means(fine * fine)) / (spread + FLAT_LEVELS)).astype(np.float32)
    return made


def _means(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of each of `CELLS`."""
    rows, columns = (np.linspace(0, side, n + 1).astype(int) for side, n in zip(values.shape, CELLS, strict=True))
    sums = np.add.reduceat(np.add.reduceat(values, rows[:-1], axis=0), columns[:-1], axis=1)
    made: NDArray[np.float32] = (sums / np.outer(np.diff(rows), np.diff(columns))).astype(np.float32)
    return made


def field(outline: Luma) -> Field:
    """Return gradient directions, angles doubled, of length 0 (flat) to 1 (an edge), of the inside of an outline.

    Args:
        outline: uint8 (H, W).

    Returns:
        complex64 (H - 2, W - 2); linear: the mean of the fields of many clips is what they have in common.
    """
    luma = outline.astype(np.float32)
    gradient = (luma[1:-1, 2:] - luma[1:-1, :-2] + 1j * (luma[2:, 1:-1] - luma[:-2, 1:-1])) / 2
    made: Field = (gradient**2 / (np.abs(gradient) ** 2 + EDGE_LEVELS**2)).astype(np.complex64)
    return made


def structure(found: Field) -> float:
    """Return how much of a picture is edges, 0 to 1: about 0 where the lens is covered."""
    return float(np.abs(found).mean())


def agreement(one: Field, other: Field) -> float:
    """Return how well two fields agree where they lie, about 0 (nothing in common) to 1 (the same view)."""
    a, b = one - one.mean(), other - other.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(b, a).real) / norm if norm else 0.0


def displacement(one: Field, other: Field) -> tuple[float, float, float]:
    """Return (right, down, agreement): how far the view of `one` lies beside that of `other` where they agree best.

    Args:
        one: of the clip.
        other: of the same shape: what is usual.

    Returns:
        Shares of the picture's width and height, within `MOST_SHIFT` of the longer side; the agreement there.
    """
    height, width = one.shape
    most = round(MOST_SHIFT * max(height, width))
    shape = (height + most, width + most)
    a, b = one - one.mean(), other - other.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not norm:
        return 0.0, 0.0, 0.0
    found = np.fft.ifft2(np.fft.fft2(a, shape) * np.conj(np.fft.fft2(b, shape))).real / norm
    down, right = (np.r_[0 : min(most, side - 1) + 1, -min(most, side - 1) : 0] for side in (height, width))
    near = found[np.ix_(down, right)]
    row, column = np.unravel_index(int(near.argmax()), near.shape)
    return float(right[column] / width), float(down[row] / height), float(near[row, column])


class Look:
    """Watches the pictures of one clip, in order within each stretch, and makes its row."""

    def __init__(self) -> None:
        self._noise: list[float | None] = []
        self._cast: list[tuple[float, float] | None] = []
        self._flicker: list[float] = []
        self._wide: list[Luma] = []
        self._every, self._n = EVERY, 0
        self._following: list[Luma] = []
        self._since_s = 0.0

    def needed(self, all_pts: Sequence[int], kept: Collection[int]) -> set[int]:
        """Return the pts of a stretch that `see` wants besides the kept ones: the pictures after each that is measured."""
        places = [place for place, pts in enumerate(all_pts) if pts in kept]
        measured = [place for number, place in enumerate(places) if (self._n + number) % self._every == 0]
        return {pts for place in measured for pts in all_pts[place + 1 : place + 1 + FOLLOWING]}

    def see(self, picture: video.Picture, is_kept: bool) -> None:
        """Take a picture; costs nothing unless it is measured or one of those right after one that is."""
        is_measured = is_kept and self._n % self._every == 0
        self._n += is_kept
        self._follow(picture, is_measured)
        if not is_measured:
            return
        self._noise.append(noise(_stored(picture)))
        self._cast.append(cast(picture.rgb(video.within(picture.size_px, SMALL_PX))[::2, ::2]))
        self._wide.append(picture.gray(video.within(picture.size_px, WIDE_PX)).copy())
        if len(self._wide) == MOST_PICTURES:
            self._noise, self._cast, self._wide = self._noise[::2], self._cast[::2], self._wide[::2]
            self._every *= 2

    def _follow(self, picture: video.Picture, is_measured: bool) -> None:
        """Gather a measured picture and those right after it, and measure their flicker."""
        time_s = float(picture.pts * picture.time_base)
        if self._following and not 0 < time_s - self._since_s <= FOLLOWING_S:
            self._following = []
        if not self._following and not is_measured:
            return
        if not self._following:
            self._since_s = time_s
        self._following.append(picture.gray(video.within(picture.size_px, SMALL_PX)).copy())
        if len(self._following) > FOLLOWING:
            if min(self._following[0].shape) >= max(CELLS):
                self._flicker.append(flicker(np.stack(self._following)))
            self._following = []

    def row(self) -> dict[str, Any]:
        """Return the clip's row of `scenes` without clip_id, outline as text (`unpacked`); nulls of tiny or no pictures.

        Every clip has one: that it is there says that the clip's motion is score 2 (`curate.scores.motion_versions`).
        """
        if not self._wide or min(self._wide[0].shape) < LEAST_PX:
            return {"n_pictures": self._n, **dict.fromkeys(_MEASURED)}
        median = np.median(np.stack(self._wide), axis=0).astype(np.float32)
        outline = _halved(median)
        casts, noises = ([one for one in found if one is not None] for found in (self._cast, self._noise))
        red, blue = np.median(casts, axis=0).tolist() if casts else (None, None)
        is_large = min(median.shape) >= 3 * max(CELLS)
        return {
            "n_pictures": self._n,
            "noise": float(np.median(noises)) if noises else None,
            "cast_red": red,
            "cast_blue": blue,
            "flicker": float(np.median(self._flicker)) if self._flicker else None,
            "outline": base64.b64encode(outline.tobytes()).decode(),
            "outline_width_px": outline.shape[1],
            "outline_height_px": outline.shape[0],
            "sharpness": sharpness(median).ravel().tolist() if is_large else None,
        }


def unpacked(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of `Look.row`, which travels as JSON, as the table has it: the outline as bytes."""
    return {**row, "outline": None if row["outline"] is None else base64.b64decode(row["outline"])}


def outline_of(row: dict[str, Any]) -> Luma:
    """Return the outline of a row of table `scenes` that has one: uint8 (H, W)."""
    return np.frombuffer(row["outline"], np.uint8).reshape(row["outline_height_px"], row["outline_width_px"])


def _stored(picture: video.Picture) -> Luma:
    """Return the luma of a picture as it is stored, unturned: uint8 (H, W); a view where the decoder gives luma by itself."""
    frame = picture.frame
    if frame.format.name not in PLANAR:
        return picture.gray()
    plane = frame.planes[0]
    rows: Luma = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: frame.height, : frame.width]


def _halved(luma: NDArray[np.float32]) -> Luma:
    """Return the means of 2 x 2 pixels as uint8; an odd row or column at the end is left out."""
    height, width = (side // 2 * 2 for side in luma.shape)
    quads = luma[:height, :width].reshape(height // 2, 2, width // 2, 2)
    made: Luma = np.rint(quads.mean(axis=(1, 3))).astype(np.uint8)
    return made
