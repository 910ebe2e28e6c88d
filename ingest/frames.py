"""One image a frame: PNG (lossless) or JPEG files, each named by its time, in a tar that is a clip.

    Recorder(source, spool, make_segment=images(source, ".png")).record()

`camloop ingest` reads such a clip like any other; `tar xf` gives the files to whoever wants them. A camera that sends
JPEG itself has its own bytes kept, nothing is encoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from infra.errors import UsageError
from infra.images import ImageEncoder
from ingest.members import MemberFile, NameClock
from ingest.source import Camera, EncodedFrame, Frame

CONTAINER: Final = "tar"
ImageSuffix = Literal[".png", ".jpg"]


class ImageSegment:
    """One tar of images, made while it is filmed.

    Args:
        path: the file to make.
        clock: how its images are named.
        suffix: ".png" or ".jpg".

    Raises:
        OSError: the disk refused.
    """

    container, survives = CONTAINER, True

    def __init__(self, path: Path, clock: NameClock, suffix: ImageSuffix) -> None:
        self._file = MemberFile(path, clock, {"kind": "images"})
        self._suffix, self._clock = suffix, clock
        self._encoder: ImageEncoder | None = None

    def add(self, frame: Frame, pts: int) -> None:
        """Append one frame; `pts` is not used, an image's time is its name.

        Raises:
            UsageError: a frame of another size, or one of a stream that is not made of JPEG files.
            OSError: the disk refused.
        """
        name = f"{self._clock.name_ns(frame.sensor_ns):019d}{self._suffix}"
        self._file.add(name, self._image(frame))

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def _image(self, frame: Frame) -> bytes:
        if isinstance(frame, EncodedFrame):
            if frame.format.codec != "mjpeg" or self._suffix != ".jpg":
                raise UsageError(f"frames of {frame.format.codec} as {self._suffix}; legal: pictures, or mjpeg as .jpg")
            return frame.data
        if self._encoder is None:
            height_px, width_px = frame.rgb.shape[:2]
            self._encoder = ImageEncoder(self._suffix, width_px, height_px)
        return self._encoder.encode(frame.rgb)


def images(source: Camera, suffix: ImageSuffix) -> Callable[[Path, Frame], ImageSegment]:
    """Return what starts a tar of images for the recorder."""
    return lambda path, first: ImageSegment(path, name_clock(source, first), suffix)


def name_clock(source: Camera, first: Frame) -> NameClock:
    """Return how the members of a file that begins with `first` are named."""
    start_ns = source.utc_ns(first.sensor_ns)
    return NameClock(first.sensor_ns, start_ns if start_ns is not None and start_ns >= 0 else None)
