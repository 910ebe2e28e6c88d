"""Crops of boxes: which ones an embed stage takes, how they are cut, and how their vectors travel.

    boxes of the judge --classes, min_score--> crops of the letterboxed square at hand --> a vector each --> rows with det_id

**From which pixels.** A detector's square is in the batch already, so crops are cut from the largest one that a detect stage
of the cascade has; nothing more is decoded or scaled. That bounds what a crop can show: in the 640 px square of a 1920 x 1080
picture one pixel is 3 of the picture, so a person 240 px high has 80 px, enlarged to the 224 px of the model. Who needs more
says `crop_px`: then the decode stage makes a letterboxed square of that side, for every kept frame.

**How they are cut.** A square with the box's longer side, about the box's centre, moved as little as it takes to lie in the
picture; where the picture is too narrow for that, centred on it, and the grey of the letterbox fills the rest. So a person
keeps their shape, and some of the scene beside them. Then it is resized to the model's square.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from curate.detect import Batch
from infra import video

VERSION: Final = 1
LEAST_PX: Final = 32
MOST_PX: Final = 1920  # 11 MB a frame, and some frames travel together
AT_ONCE: Final = 64  # crops held at a time

Rgb = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crops:
    """Which boxes, and where they are cut from.

    Attributes:
        classes: class names that are taken; empty takes all.
        square_px: side of the letterboxed square that they are cut from.
    """

    classes: tuple[str, ...] = ()
    square_px: int


def chosen(packed: bytes, names: Sequence[str], classes: Sequence[str], min_score: float) -> NDArray[np.int64]:
    """Return int64 (n,): the places of the wanted boxes among those that `detect.pack` packed.

    Args:
        packed: boxes of one frame.
        names: class names of their detector, in index order.
        classes: those that are wanted; empty wants all.
        min_score: the least score.
    """
    rows = np.frombuffer(packed, dtype="<f4").reshape(-1, 6)
    indices = [number for number, name in enumerate(names) if not classes or name in classes]
    return np.flatnonzero(np.isin(rows[:, 5], indices) & (rows[:, 4] >= np.float32(min_score)))


def square(box: Sequence[float], size_px: tuple[int, int], square_px: int) -> tuple[int, int, int]:
    """Return (left, top, side) of a box's crop, in pixels of the letterboxed square (see the module).

    Args:
        box: x1 y1 x2 y2 in pixels of the stored picture.
        size_px: (width, height) of the stored picture.
        square_px: side of the square.
    """
    inner, scale, *pads = video.fit(size_px, (square_px, square_px))
    x1, y1, x2, y2 = (float(value) * scale for value in box)
    side = min(square_px, max(1, round(max(x2 - x1, y2 - y1))))
    corner = []
    for centre, length, pad in zip(((x1 + x2) / 2, (y1 + y2) / 2), inner, pads, strict=True):
        if side <= length:
            corner.append(pad + min(max(0, round(centre - side / 2)), length - side))
        else:
            corner.append(min(max(0, pad + round((length - side) / 2)), square_px - side))
    return corner[0], corner[1], side


def cut(rgb: Rgb, boxes: NDArray[np.float32], size_px: tuple[int, int], to_px: int) -> Rgb:
    """Return the crops of some boxes: uint8 (n, to_px, to_px, 3) RGB.

    Args:
        rgb: uint8 (S, S, 3), the letterboxed square.
        boxes: float32 (n, 4 or more): x1 y1 x2 y2 in pixels of the stored picture.
        size_px: (width, height) of the stored picture.
        to_px: side of the model's square.
    """
    made = np.empty((len(boxes), to_px, to_px, 3), np.uint8)
    for number, box in enumerate(boxes):
        left, top, side = square(box[:4], size_px, len(rgb))
        made[number] = video.resize(rgb[top : top + side, left : left + side], (to_px, to_px))
    return made


def embed(
    model: Callable[[Batch], Batch], batch: Batch, rows: Sequence[int], *, pixels: str, boxes: str, names: Sequence[str],
    crops: Crops, min_score: float, to_px: int,
) -> list[bytes]:  # fmt: skip
    """Return for each of some rows of a batch the vectors of its wanted boxes, packed.

    Args:
        model: takes `embed_rgb` uint8 (N, S, S, 3), gives `embedding`.
        batch: with the columns width_px, height_px and those named by the following.
        rows: which of its rows.
        pixels: the column with the letterboxed squares.
        boxes: the column with packed boxes.
        names: class names of their detector, in index order.
        crops: which ones.
        min_score: the least score.
        to_px: side of the model's square.
    """
    made = []
    for row in rows:
        numbers = chosen(batch[boxes][row], names, crops.classes, min_score)
        found = np.frombuffer(batch[boxes][row], dtype="<f4").reshape(-1, 6)[numbers]
        size_px = int(batch["width_px"][row]), int(batch["height_px"][row])
        vectors: list[bytes] = []
        for start in range(0, len(numbers), AT_ONCE):
            part = cut(batch[pixels][row], found[start : start + AT_ONCE], size_px, to_px)
            vectors += list(model({"embed_rgb": part})["embedding"])
        made.append(pack(numbers, vectors))
    return made


def pack(numbers: Sequence[int] | NDArray[np.int64], vectors: Sequence[bytes]) -> bytes:
    """Return the vectors of one frame's boxes, all of one length, with the places of their boxes."""
    return struct.pack(f"<I{len(vectors)}I", len(vectors), *(int(number) for number in numbers)) + b"".join(vectors)


def unpack(data: bytes) -> list[tuple[int, bytes]]:
    """Return (place of the box, vector) as `pack` packed them; none of a frame that was not looked at."""
    if not data:
        return []
    (n,) = struct.unpack_from("<I", data)
    numbers = struct.unpack_from(f"<{n}I", data, 4)
    start, each = 4 + 4 * n, (len(data) - 4 - 4 * n) // max(n, 1)
    return [(number, data[start + i * each : start + (i + 1) * each]) for i, number in enumerate(numbers)]
