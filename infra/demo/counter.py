"""Frame numbers burnt into the picture, readable after H.264 and after resizing.

The top 8 rows hold 32 blocks of equal width: a white and a black one, 14 bits of the frame number, 10 bits of the
recording's number, 6 bits of a check sum; most significant bit first.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from infra.errors import MediaError

_N_BLOCKS, _ROWS_OF_192 = 32, 8
_FRAME_BITS, _RECORDING_BITS, _CHECK_BITS = 14, 10, 6
_DARK, _BRIGHT = 24, 232


def _check(frame_number: int, recording_number: int) -> int:
    return (frame_number * 37 + recording_number * 11 + 5) % 61


def burn_counter(rgb: NDArray[np.uint8], frame_number: int, recording_number: int) -> None:
    """Write both numbers into the top rows of `rgb` (H, W, 3), in place; they are taken modulo 2**14 and 2**10."""
    frame_number, recording_number = frame_number % (1 << _FRAME_BITS), recording_number % (1 << _RECORDING_BITS)
    word = ((frame_number << _RECORDING_BITS | recording_number) << _CHECK_BITS) | _check(frame_number, recording_number)
    bits = [1, 0, *((word >> i) & 1 for i in reversed(range(_N_BLOCKS - 2)))]
    height, width = rgb.shape[:2]
    levels = np.where(np.array(bits) == 1, _BRIGHT, _DARK).astype(np.uint8)
    row = levels[np.arange(width) * _N_BLOCKS // width]
    rgb[: height * _ROWS_OF_192 // 192] = row[None, :, None]


def read_counter(rgb: NDArray[np.uint8]) -> tuple[int, int]:
    """Return (frame number, recording number) from a picture of any size with the counter burnt in.

    Raises:
        MediaError: there is no counter, or its check sum is wrong.
    """
    height, width = rgb.shape[:2]
    rows = max(1, height * _ROWS_OF_192 // 192)
    middle_rows = slice(rows // 4, max(rows // 4 + 1, rows - rows // 4))
    edges = np.arange(_N_BLOCKS + 1) * width / _N_BLOCKS
    luma = rgb[middle_rows].astype(np.float32).mean(axis=(0, 2))
    blocks = np.array(
        [luma[int(a + (b - a) * 0.25) : max(int(a + (b - a) * 0.25) + 1, int(np.ceil(b - (b - a) * 0.25)))].mean()
         for a, b in itertools.pairwise(edges)]
    )  # fmt: skip
    if blocks[0] - blocks[1] < 60:
        raise MediaError("no frame counter in the top rows of this picture: film with counter=True")
    bits = blocks > (blocks[0] + blocks[1]) / 2
    word = int("".join("1" if bit else "0" for bit in bits[2:]), 2)
    check, rest = word & ((1 << _CHECK_BITS) - 1), word >> _CHECK_BITS
    frame_number, recording_number = rest >> _RECORDING_BITS, rest & ((1 << _RECORDING_BITS) - 1)
    if check != _check(frame_number, recording_number):
        raise MediaError(f"frame counter reads {frame_number} of recording {recording_number}, but its check sum is wrong")
    return frame_number, recording_number
