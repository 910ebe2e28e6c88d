"""A camera that sends H.264, made of the encoder's own packets: for tests of recorders, gates and streams."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from infra.records import ClockQuality
from infra.video import Writer
from ingest.source import EncodedFrame, StreamFormat

FPS = 10
FORMAT = StreamFormat(codec="h264", width_px=160, height_px=120, extradata=b"")


@functools.cache
def h264(n_frames: int, gop_s: float = 1.0, b_frames: int = 0) -> tuple[tuple[bytes, int, int, bool], ...]:
    """Return (Annex B packet, pts_ns, dts_ns, is_keyframe) of `n_frames` frames at 10 a second, in decode order."""
    noise = np.random.default_rng(1).integers(0, 256, (120, 160, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.mp4"
        with Writer(path, 160, 120, Fraction(1, 90_000), gop_s=gop_s, b_frames=b_frames) as writer:
            for number in range(n_frames):
                writer.add(np.roll(noise, number, axis=1), number * 9000)
        return tuple(annex_b(path))


def annex_b(path: Path) -> Iterator[tuple[bytes, int, int, bool]]:
    """Yield (Annex B packet, pts_ns, dts_ns, is_keyframe) of an mp4's H.264 stream."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        to_annex_b = BitStreamFilterContext("h264_mp4toannexb", stream)
        for packet in container.demux(stream):
            for unit in to_annex_b.filter(packet) if packet.size else ():
                ns = [round(t * stream.time_base * 1_000_000_000) for t in (unit.pts, unit.dts)]
                yield bytes(unit), ns[0], ns[1], unit.is_keyframe


class EncodedCamera:
    """An `EncodedSource` of frames made beforehand; `end` is raised after the last one."""

    camera_id, host_id, boot_id, recording_id = "cam1", "pi", "boot", "rec"
    site: str | None = None
    width_px, height_px = 160, 120
    clock: ClockQuality = "ntp"
    format = FORMAT

    def __init__(self, frames: list[EncodedFrame], end: BaseException | None = None) -> None:
        self.frames, self.end = frames, end

    def utc_ns(self, sensor_ns: int) -> int | None:
        return 1_700_000_000_000_000_000 + sensor_ns

    def __iter__(self) -> Iterator[EncodedFrame]:
        yield from self.frames
        if self.end is not None:
            raise self.end


def frames(n_frames: int, *, gop_s: float = 1.0, b_frames: int = 0, start_ns: int = 5_000_000_000) -> list[EncodedFrame]:
    """Return frames whose first is shown at `start_ns`."""
    return [
        EncodedFrame(
            data=data, is_keyframe=is_keyframe, sensor_ns=start_ns + pts_ns, frame_number=number, format=FORMAT,
            decode_ns=start_ns + dts_ns if b_frames else None,
        )
        for number, (data, pts_ns, dts_ns, is_keyframe) in enumerate(h264(n_frames, gop_s, b_frames))
    ]  # fmt: skip
