"""The recorder and encoded frames: packets kept bit for bit, segments from keyframe to keyframe, gaps with their causes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from infra.errors import DeviceError
from infra.picture import Rgb
from infra.video import decode, packets, probe
from ingest.decoding import format_of
from ingest.gate import Gate, Seen
from ingest.recorder import Recorder
from ingest.source import NO_KEYFRAME, REOPENED, EncodedFrame, StreamFormat
from ingest.spool import Spool
from tests.ingest.encoded import EncodedCamera, annex_b, frames


def stored(spool: Spool) -> list[bytes]:
    """Return the packets of all clips, in order."""
    return [data for clip in spool.pending() for data, *_ in annex_b(clip.path)]


class TestPassThrough:
    @pytest.mark.parametrize("b_frames", [0, 2])
    def test_bit_for_bit(self, spool: Spool, b_frames: int) -> None:
        """What comes out of the clips are the camera's own packets, times and keyframes, with B-frames too."""
        sent = frames(45, b_frames=b_frames)
        recorded = Recorder(EncodedCamera(sent), spool, segment_s=2).record()
        assert (recorded.n_frames, recorded.n_dropped) == (45, 0)
        assert stored(spool) == [frame.data for frame in sent]
        times = [ns for clip in spool.pending() for ns in clip.sidecar.sensor_ns]
        assert times == sorted(frame.sensor_ns for frame in sent)
        for clip in spool.pending():
            found = probe(clip.path)
            assert (found.first_pts, found.n_frames, found.index) == (0, len(clip.sidecar.sensor_ns), "packets")
            assert sum(len(batch.pts) for batch in decode(clip.path)) == found.n_frames

    def test_cut_at_keyframes(self, spool: Spool) -> None:
        """Segments close at the first keyframe from segment_s on, or from max_segment_bytes on."""
        sent = frames(45)
        Recorder(EncodedCamera(sent), spool, segment_s=2.5, gop_s=1).record()
        assert [len(clip.sidecar.sensor_ns) for clip in spool.pending()] == [30, 15]
        assert all(next(iter(packets(clip.path))).is_keyframe for clip in spool.pending())

    def test_cut_by_bytes(self, spool: Spool) -> None:
        """On a slow link clips stay small: one group of pictures each when that is enough."""
        Recorder(EncodedCamera(frames(30)), spool, max_segment_bytes=1).record()
        assert [len(clip.sidecar.sensor_ns) for clip in spool.pending()] == [10, 10, 10]

    def test_change_of_format(self, spool: Spool) -> None:
        """A stream that changes its resolution begins a new segment of the same recording."""
        other = StreamFormat(codec="h264", width_px=80, height_px=60, extradata=b"")
        sent = frames(20)
        sent[10:] = [dataclasses.replace(frame, format=other) for frame in sent[10:]]
        Recorder(EncodedCamera(sent), spool).record()
        clips = spool.pending()
        assert [len(clip.sidecar.sensor_ns) for clip in clips] == [10, 10]
        assert len({clip.sidecar.recording_id for clip in clips}) == 1


class TestGaps:
    def test_causes(self, spool: Spool) -> None:
        """A gap has the cause that its frame names; frames that nothing can be decoded from are listed as well."""
        sent = frames(40)
        late = [dataclasses.replace(f, frame_number=f.frame_number + 7, lost=REOPENED) for f in sent[20:]]
        lost_number = [dataclasses.replace(f, frame_number=f.frame_number + 8) for f in late[5:]]
        recorded = Recorder(EncodedCamera(sent[3:20] + late[:5] + lost_number), spool).record()
        (clip,) = spool.pending()
        assert [(gap.before_frame, gap.n_missing, gap.cause) for gap in clip.sidecar.gaps] == [
            (0, 7, NO_KEYFRAME), (10, 7, REOPENED), (15, 8, REOPENED),
        ]  # fmt: skip
        assert recorded.n_dropped == 22 and recorded.n_frames == 30

    def test_camera_that_fails(self, spool: Spool) -> None:
        """What came before the camera failed is kept."""
        with pytest.raises(DeviceError, match="is gone"):
            Recorder(EncodedCamera(frames(15), DeviceError("the camera is gone")), spool).record()
        assert len(stored(spool)) == 15


class Happening:
    """An event of given frames."""

    def __init__(self, found: list[EncodedFrame], n_skipped: int) -> None:
        self.found, self.n_skipped, self.trigger = found, n_skipped, "motion"

    def __iter__(self) -> Iterator[EncodedFrame]:
        return iter(self.found)

    def facts(self) -> dict[str, object]:
        return {"kind": "motion", "peak": 0.5}


def test_events(spool: Spool) -> None:
    """Each event is a segment of its own with what the trigger said; frames that were not kept are no gap."""
    sent = frames(60)
    events = [Happening(sent[:20], 0), Happening(sent[40:], 20)]
    recorded = Recorder(EncodedCamera(sent), spool).record_events(events)
    first, second = (clip.sidecar for clip in spool.pending())
    assert (recorded.n_clips, recorded.n_dropped, first.gaps + second.gaps) == (2, 0, ())
    assert (second.trigger, second.event) == ("motion", {"kind": "motion", "peak": 0.5, "n_skipped": 20})
    assert first.event == {"kind": "motion", "peak": 0.5}


def test_settings_per_frame(spool: Spool) -> None:
    """What was set on the sensor is kept: once where it never changed, else for each frame."""
    sent = [dataclasses.replace(f, controls={"gain": 2.0, "exposure_us": 100.0 + f.frame_number}) for f in frames(5)]
    Recorder(EncodedCamera(sent), spool).record()
    (clip,) = spool.pending()
    assert clip.sidecar.controls == {"gain": (2.0,), "exposure_us": (100.0, 101.0, 102.0, 103.0, 104.0)}


def test_hevc(spool: Spool) -> None:
    """HEVC with B-frames is kept as it comes, too, its size read from its parameter sets."""
    try:
        encoder: Any = av.CodecContext.create("libx265", "w")
    except ValueError:
        pytest.skip("this FFmpeg has no HEVC encoder to make a stream with")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 160, 120, "yuv420p", Fraction(1, 10)
    encoder.options = {"preset": "ultrafast", "x265-params": "keyint=10:bframes=2:log-level=error:repeat-headers=1"}
    noise = np.random.default_rng(1).integers(0, 256, (120, 160, 3), np.uint8)
    made: list[Any] = []
    for number in range(20):
        picture: Any = av.VideoFrame.from_ndarray(np.roll(noise, number, axis=1), format="rgb24").reformat(format="yuv420p")
        picture.pts = number
        made += encoder.encode(picture)
    made += encoder.encode(None)
    kind = format_of(bytes(made[0]), StreamFormat(codec="hevc", width_px=0, height_px=0, extradata=b""))
    assert kind is not None and (kind.width_px, kind.height_px) == (160, 120)
    sent = [
        EncodedFrame(
            data=bytes(packet), is_keyframe=packet.is_keyframe, sensor_ns=packet.pts * 10**8 + 10**9, frame_number=number,
            format=kind, decode_ns=packet.dts * 10**8 + 10**9,
        )
        for number, packet in enumerate(made)
    ]  # fmt: skip
    Recorder(EncodedCamera(sent), spool).record()
    (clip,) = spool.pending()
    shape = probe(clip.path)
    assert (shape.codec, shape.n_frames, shape.index) == ("hevc", 20, "packets")
    assert clip.sidecar.sensor_ns == tuple(10**9 + n * 10**8 for n in range(20))


def test_behind_a_gate(spool: Spool) -> None:
    """Behind a gate only what happened is recorded, from the keyframe before it on; what was not kept is counted."""
    sent = [dataclasses.replace(f, small=np.full((4, 4, 3), 255 * (30 <= f.frame_number < 33), np.uint8)) for f in frames(60)]
    gate: Gate[EncodedFrame] = Gate(Bright(), small=lambda frame: frame.small, pre_roll_s=0.5, post_roll_s=0.5)
    recorded = Recorder(EncodedCamera(sent), spool).record_events(gate.events(sent))
    (clip,) = spool.pending()
    assert stored(spool) == [frame.data for frame in sent[20 : 20 + recorded.n_frames]] and 18 <= recorded.n_frames <= 20
    assert (clip.sidecar.trigger, clip.sidecar.event["peak"], clip.sidecar.gaps) == ("bright", 1.0, ())


class Bright:
    """A trigger that is on while its picture is bright."""

    name, small_px = "bright", (4, 4)

    def see(self, small: Rgb, sensor_ns: int, utc_ns: int | None) -> Seen:
        return Seen(on=bool(small.max()), score=float(small.max()) / 255, reason="bright")
