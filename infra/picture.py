"""Pictures in memory: the one conversion from decoded to RGB, and the one resizer. Reached through `infra.video`.

Everything here is libswscale with the same flags (`EXACT`), on a cluster and on a Pi alike: bilinear with a filter
that widens when a picture shrinks (so that small pictures do not alias), accurate rounding and bit-exact C-equal
code paths, so that x86 and ARM give the same bytes. `Picture.rgb(size_px)` converts and resizes in one pass; `resize`
does it for a live frame that is RGB already. The two differ by about one grey level, because the colour planes are
scaled before or after they are mixed: what must be equal to the last bit has to use the same one of the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from infra.errors import MediaError

Rgb = npt.NDArray[np.uint8]
"""uint8 (H, W, 3), RGB order, 0..255."""

EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
PAD_GREY = 114  # the grey that YOLO models are trained with around a letterboxed picture


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Decoded frames of one clip, in presentation order.

    Attributes:
        rgb: uint8 (T, H, W, 3), RGB.
        pts: int64 (T,), strictly increasing, ticks of `time_base`.
        time_base: seconds per tick.

    Raises:
        MediaError: shapes, types or order are not these.
    """

    rgb: npt.NDArray[np.uint8]
    pts: npt.NDArray[np.int64]
    time_base: Fraction

    def __post_init__(self) -> None:
        if self.rgb.dtype != np.uint8 or self.rgb.ndim != 4 or self.rgb.shape[3] != 3:
            raise MediaError(f"frames are {self.rgb.dtype} {self.rgb.shape}; legal: uint8 (T, H, W, 3)")
        if self.pts.dtype != np.int64 or self.pts.shape != (len(self.rgb),):
            raise MediaError(f"pts are {self.pts.dtype} {self.pts.shape}; legal: int64 ({len(self.rgb)},)")
        if not (np.diff(self.pts) > 0).all():
            raise MediaError(f"pts {self.pts[:8].tolist()}... do not increase")

    def __len__(self) -> int:
        return len(self.rgb)

    @property
    def pts_s(self) -> npt.NDArray[np.float64]:
        """float64 (T,): the frames' times in seconds, for people."""
        return (self.pts * float(self.time_base)).astype(np.float64)


class Converter:
    """Keeps one swscale context per wanted format and size, because setting one up costs more than using it."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, int, int], VideoReformatter] = {}

    def plane(self, frame: Any, pixels: str, size_px: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Return the only plane of `frame` as `pixels` ('rgb24' or 'gray') at (width, height): a view, uint8 (H, W*n)."""
        made = self._made.setdefault((pixels, *size_px), VideoReformatter())
        out = made.reformat(frame, width=size_px[0], height=size_px[1], format=pixels, interpolation=EXACT, threads=1)
        plane = out.planes[0]
        rows: npt.NDArray[np.uint8] = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        return rows[: size_px[1], : size_px[0] * (3 if pixels == "rgb24" else 1)]


@dataclass(slots=True, eq=False)
class Picture:
    """One decoded picture that has not been converted yet: it costs what is asked of it.

    Attributes:
        pts: ticks.
        time_base: seconds per tick.
        frame: the av.VideoFrame, as stored.
        rotation_deg: counter-clockwise rotation for showing it, 0, 90, 180 or 270.
    """

    pts: int
    time_base: Fraction
    frame: Any
    rotation_deg: int = 0
    converter: Converter = field(default_factory=Converter)

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) after the rotation."""
        size = (int(self.frame.width), int(self.frame.height))
        return size[::-1] if self.rotation_deg % 180 else size

    def rgb(self, size_px: tuple[int, int] | None = None) -> Rgb:
        """Return the picture, rotated, at `size_px` (width, height) or as large as it is: uint8 (H, W, 3), RGB, a view."""
        width, height = self._before_rotation(size_px)
        plane = self.converter.plane(self.frame, "rgb24", (width, height))
        rgb = plane.reshape(height, width, 3)
        return np.rot90(rgb, self.rotation_deg // 90) if self.rotation_deg else rgb

    def gray(self, size_px: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
        """Return the luma at full range, rotated: uint8 (H, W), a view."""
        plane = self.converter.plane(self.frame, "gray", self._before_rotation(size_px))
        return np.rot90(plane, self.rotation_deg // 90)

    def _before_rotation(self, size_px: tuple[int, int] | None) -> tuple[int, int]:
        width, height = size_px or self.size_px
        return (height, width) if self.rotation_deg % 180 else (width, height)


def resize(rgb: Rgb, size_px: tuple[int, int]) -> Rgb:
    """Return `rgb` at `size_px` (width, height): uint8 (H, W, 3), RGB.

    Args:
        rgb: uint8 (H, W, 3).
        size_px: (width, height) in pixels.

    Raises:
        MediaError: `rgb` is not uint8 (H, W, 3), or a side is below one pixel.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise MediaError(f"picture is {rgb.dtype} {rgb.shape}; legal: uint8 (H, W, 3)")
    if min(size_px) < 1:
        raise MediaError(f"size {size_px} has a side below 1 px")
    if (rgb.shape[1], rgb.shape[0]) == tuple(size_px):
        return rgb.copy()
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return Picture(0, Fraction(1), frame).rgb((int(size_px[0]), int(size_px[1])))


def rgb_of_yuv420(data: npt.NDArray[np.uint8], size_px: tuple[int, int], stride: int) -> Rgb:
    """Return a YUV420 buffer of a camera as a picture: uint8 (H, W, 3) RGB; BT.601, limited range.

    Args:
        data: uint8 (N,): H rows of luma, `stride` bytes each, then H/2 rows of U and of V, half as long.
        size_px: (width, height), even.
        stride: bytes from row to row of the luma; rows may be padded.
    """
    width, height = size_px
    frame = av.VideoFrame(width, height, "yuv420p")
    begin = 0
    for plane, shrink in zip(frame.planes, (1, 2, 2), strict=True):
        rows, row_bytes = height // shrink, stride // shrink
        source = data[begin : begin + rows * row_bytes].reshape(rows, row_bytes)
        target = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        target[:rows, : width // shrink] = source[:, : width // shrink]
        begin += rows * row_bytes
    return Picture(0, Fraction(1), frame).rgb()


def fit(size_px: tuple[int, int], box_px: tuple[int, int]) -> tuple[tuple[int, int], float, int, int]:
    """Say how a picture of `size_px` lies in a letterbox of `box_px` (both width, height).

    Returns:
        (size inside the box, scale, pad_x, pad_y): x_in_box = x * scale + pad_x, in pixels; the picture is centred.
    """
    scale = min(box_px[0] / size_px[0], box_px[1] / size_px[1])
    inner = max(1, round(size_px[0] * scale)), max(1, round(size_px[1] * scale))
    return inner, scale, (box_px[0] - inner[0]) // 2, (box_px[1] - inner[1]) // 2


def within(size_px: tuple[int, int], side_px: int) -> tuple[int, int]:
    """Return `size_px` (width, height), shrunk so that the longer side is at most `side_px`; never enlarged."""
    return size_px if max(size_px) <= side_px else fit(size_px, (side_px, side_px))[0]


def letterbox(rgb: Rgb, size_px: int | tuple[int, int]) -> tuple[Rgb, float, int, int]:
    """Return `rgb` scaled to fit `size_px`, centred on grey: the one letterbox of training, detector and Pi.

    Args:
        rgb: uint8 (H, W, 3).
        size_px: edge of the square, or (width, height), in pixels.

    Returns:
        (uint8 (H, W, 3), scale, pad_x, pad_y); a box maps back by x = (x_in_box - pad_x) / scale.
    """
    box = (size_px, size_px) if isinstance(size_px, int) else size_px
    inner, scale, pad_x, pad_y = fit((rgb.shape[1], rgb.shape[0]), box)
    return place(resize(rgb, inner), box, pad_x, pad_y), scale, pad_x, pad_y


def place(inner: Rgb, box_px: tuple[int, int], pad_x: int, pad_y: int) -> Rgb:
    """Return a grey picture of `box_px` (width, height) with `inner` at (pad_x, pad_y): uint8 (H, W, 3)."""
    out = np.full((box_px[1], box_px[0], 3), PAD_GREY, np.uint8)
    out[pad_y : pad_y + inner.shape[0], pad_x : pad_x + inner.shape[1]] = inner
    return out
