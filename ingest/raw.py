"""Raw frames: each picture as it came, a checksummed `.npy` file in a tar that is a clip (seed 000's HDF5, at a fifth).

Nothing is encoded, so nothing is lost and nothing costs CPU time; it costs bytes: 49 KB a frame of 128x128. A crash costs
at most the frame that was being written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from infra.arrays import array_name, npy_bytes
from infra.errors import UsageError
from ingest.frames import CONTAINER, name_clock
from ingest.members import MemberFile, NameClock
from ingest.source import Camera, EncodedFrame, Frame


class RawSegment:
    """One tar of raw frames, uint8 (H, W, 3) RGB each.

    Args:
        path: the file to make.
        clock: how its frames are named.

    Raises:
        OSError: the disk refused.
    """

    container, survives = CONTAINER, True

    def __init__(self, path: Path, clock: NameClock) -> None:
        self._file, self._clock = MemberFile(path, clock, {"kind": "raw"}), clock

    def add(self, frame: Frame, pts: int) -> None:
        """Append one frame; `pts` is not used, a frame's time is its name.

        Raises:
            UsageError: a frame that is not a picture.
            OSError: the disk refused.
        """
        if isinstance(frame, EncodedFrame):
            raise UsageError(f"frames of {frame.format.codec} as raw; legal: pictures (decode the stream first)")
        data = npy_bytes(frame.rgb)
        self._file.add(array_name(self._clock.name_ns(frame.sensor_ns), data), data)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def raw_frames(source: Camera) -> Callable[[Path, Frame], RawSegment]:
    """Return what starts a tar of raw frames for the recorder."""
    return lambda path, first: RawSegment(path, name_clock(source, first))
