"""What one segment of a recording is written into, and what of it can be read after the recorder died in the middle.

A `SegmentFile` takes frames and their times and becomes one file. `segment_file` chooses it by the first frame: an encoded
frame is kept as it came (`PacketSegment`), a picture is encoded (`PictureSegment`). Other recorders (images, raw frames,
features) hand their own maker to the `Recorder`, and stand in `CONTAINERS` with how their files are counted and salvaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final, Protocol

from infra import durable
from infra.errors import DeviceError
from ingest.source import Camera, EncodedFrame, Frame, SourceFrame

TIME_BASE: Final = Fraction(1, 90_000)
NS_PER_TICK: Final = Fraction(1_000_000_000) * TIME_BASE


class SegmentFile(Protocol):
    """One file of a recording while it is written.

    `container` is its suffix and the sidecar's word for it. `survives` says that what was written can be read before the
    file is closed: the recorder then forces it to the medium every few seconds.
    """

    container: str
    survives: bool

    def add(self, frame: Frame, pts: int) -> None:
        """Take a frame, `pts` ticks of 1/90000 s after the segment's first one."""
        ...

    def close(self) -> None:
        """Finish the file. Calling it again does nothing."""
        ...


Busy = Callable[[], None]
MakeSegment = Callable[[Path, Frame], SegmentFile]
"""(path to write, first frame) -> the file; the frame itself is added afterwards."""


@dataclass(frozen=True, slots=True)
class Container:
    """How files of one container are read by the recorder itself.

    `count` returns how many frames a finished file holds. `salvage` cuts an unfinished file in place to its readable part
    and returns the time of each frame in it, in nanoseconds from the segment's first; it raises MediaError when there is none.
    Both call `busy` often: a long file takes a Pi longer than a watchdog waits for a frame.
    """

    count: Callable[[Path, Busy], int]
    salvage: Callable[[Path, Busy], tuple[int, ...]]


class PictureSegment:
    """Pictures, encoded as H.264 into an mp4."""

    container = "mp4"

    def __init__(
        self, path: Path, first: SourceFrame, *, gop_s: float, survives: bool, options: Mapping[str, str] | None
    ) -> None:
        from infra.writer import Writer

        height_px, width_px = first.rgb.shape[:2]
        self.survives = survives
        self._writer = Writer(
            path, width_px, height_px, TIME_BASE, gop_s=gop_s, fragmented=survives, options=options,
            comment=_begins(first) if survives else "",
        )  # fmt: skip

    def add(self, frame: Frame, pts: int) -> None:
        """Encode a picture."""
        if not isinstance(frame, SourceFrame):
            raise DeviceError("the camera sent a picture first and an encoded frame now; restart the recorder")
        self._writer.add(frame.rgb, pts)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


class PacketSegment:
    """Frames as the camera encoded them, in a fragmented mp4. The first one is a keyframe."""

    container = "mp4"
    survives = True

    def __init__(self, path: Path, first: EncodedFrame) -> None:
        from infra.remux import PacketWriter

        kind = first.format
        self._first_ns = first.sensor_ns
        self._writer = PacketWriter(
            path, kind.codec, kind.width_px, kind.height_px, TIME_BASE, extradata=kind.extradata, comment=_begins(first)
        )

    def add(self, frame: Frame, pts: int) -> None:
        """Write the packet of a frame."""
        if not isinstance(frame, EncodedFrame):
            raise DeviceError("the camera sent an encoded frame first and a picture now; restart the recorder")
        dts = None if frame.decode_ns is None else round((frame.decode_ns - self._first_ns) / NS_PER_TICK)
        self._writer.add(frame.data, pts, is_keyframe=frame.is_keyframe, dts=dts)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


def _begins(first: Frame) -> str:
    """Say in the file when it began. A clip is its bytes: without this, two minutes of the same black frames were one clip."""
    return f"camloop: begins at {first.sensor_ns} ns of the sensor's clock"


def segment_file(source: Camera, *, gop_s: float, options: Mapping[str, str] | None) -> MakeSegment:
    """Return the maker of mp4 segments for a source of pictures or of encoded frames.

    What can be played again (`is_replay`) is written as one piece, byte for byte as ever; what happens once is fragmented.
    """
    survives = not getattr(source, "is_replay", False)

    def make(path: Path, first: Frame) -> SegmentFile:
        if isinstance(first, EncodedFrame):
            return PacketSegment(path, first)
        return PictureSegment(path, first, gop_s=gop_s, survives=survives, options=options)

    return make


def _count_packets(path: Path, busy: Busy) -> int:
    from infra.reader import demux, opened

    with opened(path) as (container, stream):
        n_packets = 0
        for _ in demux(container, stream, path):
            n_packets += 1
            busy()
        return n_packets


def _salvage_mp4(path: Path, busy: Busy) -> tuple[int, ...]:
    from infra.remux import readable_bytes

    n_bytes, times = readable_bytes(path, busy)
    durable.cut(path, n_bytes)
    return tuple(round(pts * NS_PER_TICK) for pts in times)


def _count_members(path: Path, busy: Busy) -> int:
    from ingest.members import count

    return count(path, busy)


def _salvage_tar(path: Path, busy: Busy) -> tuple[int, ...]:
    from ingest.members import salvage

    return salvage(path, busy)


CONTAINERS: Final[Mapping[str, Container]] = {
    "mp4": Container(_count_packets, _salvage_mp4),
    "tar": Container(_count_members, _salvage_tar),
}
