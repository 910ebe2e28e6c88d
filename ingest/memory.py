"""Recording into memory first, for a card that is slower than the camera (seed 000's in-RAM list, bounded).

    frames = in_memory(camera, max_bytes=200_000_000, on_full=print)    # filmed until the camera ends or memory is full
    ...                                                                 # and only then handed on, to be written

The buffer has a cap in bytes. At the cap filming ends with one line and what was filmed is written; the process is never
killed for its memory, because a cap that the machine has not free is refused before the first frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from infra.errors import UsageError
from ingest.source import EncodedFrame, Frame

SHARE: Final = 0.5  # of the free memory that is taken when nobody says how much
FRAME_BYTES: Final = 600  # of a frame beside its picture: the record, its array's header, its place in the queue
_MEMINFO: Final = Path("/proc/meminfo")


def in_memory(frames: Iterable[Frame], max_bytes: int, on_full: Callable[[str], None]) -> Iterator[Frame]:
    """Take all frames into memory, then yield them.

    Args:
        frames: they end by themselves (`take.limited`, `take.Stop`) or at the cap.
        max_bytes: what they may weigh together.
        on_full: is told in one line that the cap ended the filming.

    Raises:
        UsageError: not even one frame fits.
    """
    held: deque[Frame] = deque()
    n_bytes = 0
    for frame in frames:
        weight = weight_bytes(frame)
        if n_bytes + weight > max_bytes:
            if not held:
                raise UsageError(f"a memory buffer of {max_bytes} bytes holds no frame of {weight}; give --buffer-bytes more")
            on_full(
                f"memory buffer full: {len(held)} frames fill {n_bytes} of {max_bytes} bytes; filming ends here and what was "
                "filmed is written (--buffer-bytes holds more, --size and --fps need less)"
            )
            break
        held.append(_owned(frame))
        n_bytes += weight
    while held:
        yield held.popleft()


def weight_bytes(frame: Frame) -> int:
    """Return what a frame weighs in memory."""
    pixels = frame.small if isinstance(frame, EncodedFrame) else frame.rgb
    data = len(frame.data) if isinstance(frame, EncodedFrame) else 0
    return FRAME_BYTES + data + (0 if pixels is None else pixels.nbytes)


def checked_cap(max_bytes: int | None, meminfo: Path = _MEMINFO) -> int:
    """Return the cap to use: the one asked for, or half of the memory that is free.

    Raises:
        UsageError: more is asked for than is free, or nothing.
    """
    free_bytes = available_bytes(meminfo)
    if max_bytes is None:
        return round((1 << 28) if free_bytes is None else SHARE * free_bytes)
    if max_bytes < 1 or (free_bytes is not None and max_bytes > free_bytes):
        free = "unknown" if free_bytes is None else str(free_bytes)
        raise UsageError(f"--buffer-bytes {max_bytes}; legal: 1 to the free memory, {free} bytes now")
    return max_bytes


def available_bytes(meminfo: Path = _MEMINFO) -> int | None:
    """Return what the kernel says new work may take without swapping; None where nobody says."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024


def _owned(frame: Frame) -> Frame:
    """Return the frame with a picture that shares its memory with nobody: cameras and decoders use theirs again."""
    return frame if isinstance(frame, EncodedFrame) else replace(frame, rgb=frame.rgb.copy())
