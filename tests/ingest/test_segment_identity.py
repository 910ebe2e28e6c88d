"""A clip is its bytes: what is filmed at another time is another clip, also when nothing at all happens."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from infra.records import ClockQuality
from ingest.recorder import Recorder
from ingest.source import EncodedFrame, SourceFrame, StreamFormat
from ingest.spool import Spool

FRAME_NS = 100_000_000
SECONDS = 6


class Dark:
    """A live camera under a lens cap: the same black frame for ever, as pictures or as a stream whose packets are equal."""

    camera_id, host_id, boot_id, recording_id, site = "cap", "pi", "boot", "rec", None
    width_px, height_px = 64, 48
    clock: ClockQuality = "unknown"

    def utc_ns(self, sensor_ns: int) -> int | None:
        return None


class DarkPictures(Dark):
    """Pictures."""

    def __iter__(self) -> Iterator[SourceFrame]:
        for at in range(SECONDS * 10):
            yield SourceFrame(np.zeros((48, 64, 3), np.uint8), at * FRAME_NS, at)


class DarkStream(Dark):
    """Ten packets of a second, over and over: a keyframe and nine that say that nothing changed."""

    def __init__(self) -> None:
        encoder = av.CodecContext.create("libx264", "w")
        encoder.width, encoder.height, encoder.pix_fmt = 64, 48, "yuv420p"
        encoder.time_base, encoder.options = Fraction(1, 10), {"tune": "zerolatency", "g": "10"}
        black = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24").reformat(format="yuv420p")
        self._packets = []
        for at in range(10):
            black.pts = at
            self._packets += [bytes(packet) for packet in encoder.encode(black)]
        self.format = StreamFormat(codec="h264", width_px=64, height_px=48, extradata=b"")

    def __iter__(self) -> Iterator[EncodedFrame]:
        for at in range(SECONDS * 10):
            yield EncodedFrame(
                data=self._packets[at % 10],
                is_keyframe=at % 10 == 0,
                sensor_ns=at * FRAME_NS,
                frame_number=at,
                format=self.format,
            )


@pytest.mark.parametrize("make", [DarkPictures, DarkStream])
def test_the_same_darkness_at_another_time_is_another_clip(make: type[DarkPictures] | type[DarkStream], tmp_path: Path) -> None:
    """Six seconds of equal frames in segments of two are three clips, none taken for a duplicate of another."""
    with Spool(tmp_path / "spool") as spool:
        made = Recorder(make(), spool, segment_s=2.0, gop_s=1.0).record()
        clips = [(clip.sidecar.clip_id, len(clip.sidecar.sensor_ns)) for clip in spool.pending()]
    assert made.n_frames == 60 and [n for _, n in clips] == [20, 20, 20] and len({clip_id for clip_id, _ in clips}) == 3
