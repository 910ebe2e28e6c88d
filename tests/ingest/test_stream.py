"""Streams without a server: times tied to this machine's clock, packets without times, hanging readers, broken cameras."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from infra.clock import FakeClock
from infra.errors import DeviceError
from ingest.decoding import continues, format_of, is_sound, parameter_sets
from ingest.packets import PacketReader, StreamPacket, joined
from ingest.source import DAMAGED, RECORDER_SLOW, REOPENED, SOURCE_DROPPED, StreamFormat, pictures
from ingest.stream import Connection, StreamCamera
from ingest.stream_clock import SLEW, StreamClock, settled
from tests.ingest.encoded import FORMAT, EncodedCamera, frames, h264

S = 1_000_000_000
STEP = S // 10


def packet(pts_ns: int | None, dts_ns: int | None = None, **more: Any) -> StreamPacket:
    """Return a packet with these times."""
    return StreamPacket(b"", pts_ns, pts_ns if dts_ns is None else dts_ns, False, more.get("arrival_ns", 0))


class TestClock:
    def test_even_stream(self) -> None:
        """Packets that arrive late by up to 0.2 s keep their own distances; no frame is taken for missing."""
        clock, rng = StreamClock(), np.random.default_rng(3)
        late = rng.integers(0, S // 5, 600)
        tied = [clock.tie(n * STEP, n * STEP, 50 * S + n * STEP + int(late[n])) for n in range(600)]
        steps = np.diff([frame.sensor_ns for frame in tied])
        assert np.abs(steps - STEP).max() <= S // 5 * SLEW * 4 and not any(frame.n_missing for frame in tied)
        assert 50 * S <= tied[-1].sensor_ns - 599 * STEP < 50 * S + late[0] + 1

    def test_crystal_that_is_off(self) -> None:
        """A camera whose clock is slow by 100e-6 is still tied to this machine's after two hours."""
        clock = StreamClock()
        last = 0
        for n in range(7200):
            tied = clock.tie(n * S, n * S, 9 * S + n * S + n * 100_000)
            last = tied.sensor_ns
        assert abs(last - (9 * S + 7199 * S + 7199 * 100_000)) < 30 * 100_000 + 1

    def test_lost_frames(self) -> None:
        """A jump of the stream's time is so many frames, by their usual distance."""
        clock = StreamClock()
        for n in range(20):
            clock.tie(n * STEP, n * STEP, S + n * STEP)
        assert clock.tie(25 * STEP, 25 * STEP, S + 25 * STEP).n_missing == 5

    def test_variable_rate(self) -> None:
        """A stream whose distances vary claims no missing frames."""
        clock, now = StreamClock(), 0
        for step in [1, 3, 2, 5, 1, 4, 9, 2, 7, 1, 12]:
            now += step * STEP
            assert clock.tie(now, now, S + now).n_missing == 0

    @pytest.mark.parametrize("leap", [-5 * S, 3600 * S, -(10**6) * S])
    def test_time_that_leaps(self, leap: int) -> None:
        """Time that runs backwards or leaps ahead is tied anew: sensor times go on by arrival, growing."""
        clock = StreamClock()
        times = [clock.tie(n * STEP, n * STEP, S + n * STEP) for n in range(10)]
        times += [clock.tie(n * STEP + leap, n * STEP + leap, S + n * STEP) for n in range(10, 20)]
        assert [frame.leapt for frame in times].count(True) == 1
        assert all(b.sensor_ns - a.sensor_ns == pytest.approx(STEP, abs=10) for a, b in pairwise(times))

    def test_reopened(self) -> None:
        """A new connection counts from a new zero; what was missed is counted, at least one."""
        clock = StreamClock()
        for n in range(20):
            clock.tie(n * STEP, n * STEP, S + n * STEP)
        clock.reopened()
        assert clock.tie(0, 0, S + 30 * STEP).n_missing == 10
        assert clock.tie(STEP, STEP, S + 31 * STEP).n_missing == 0


class TestSettled:
    def test_first_without_time(self) -> None:
        """The first packet of an RTSP stream has no time: it is the stream's zero."""
        found = list(settled([packet(None), packet(STEP), packet(2 * STEP)], None))
        assert [times[1:] for times in found] == [(0, 0), (STEP, STEP), (2 * STEP, 2 * STEP)]

    def test_b_frames(self) -> None:
        """With B-frames the first decode times are missing too; they come out before their pictures, growing."""
        stream = [
            StreamPacket(b"", pts, dts, False, 0)
            for pts, dts in [(None, None), (3 * STEP, None), (STEP, None), (2 * STEP, STEP), (6 * STEP, 2 * STEP)]
        ]
        times = [(pts, dts) for _, pts, dts in settled(stream, None)]
        assert times == [(0, -2 * STEP), (3 * STEP, -STEP), (STEP, 0), (2 * STEP, STEP), (6 * STEP, 2 * STEP)]

    def test_no_times_at_all(self) -> None:
        """A stream without any times gets them by its rate."""
        found = list(settled([StreamPacket(b"", None, None, False, 0)] * 40, STEP))
        assert [pts for _, pts, _ in found] == [n * STEP for n in range(40)]


def test_pictures_in_pieces() -> None:
    """Slices of one picture that come as packets of their own are one frame again, also when the stream breaks."""
    first, rest = b"\x00\x00\x01\x65\x88\x84", b"\x00\x00\x01\x67\x01\x02\x00\x00\x01\x65\x0a\x84"
    assert not continues(first, "h264") and continues(rest, "h264")

    def packets() -> Iterator[StreamPacket]:
        for data, pts in ((first, None), (rest, None), (first, STEP), (first, STEP), (first, 2 * STEP), (rest, 3 * STEP)):
            yield StreamPacket(data, pts, pts, True, 7)
        raise DeviceError("gone")

    found = []
    with pytest.raises(DeviceError, match="gone"):
        for packet in joined(packets(), "h264"):
            found.append(packet.data)
    assert found == [first + rest, first + first, first + rest]


class Hanging:
    """A container that gives some packets of a stream and then does what `end` says."""

    def __init__(self, path: Path, n_packets: int, end: str) -> None:
        self.path, self.n_packets, self.end = path, n_packets, end
        self.released = threading.Event()

    def __enter__(self) -> Hanging:
        self._file = av.open(str(self.path))
        self.streams = self._file.streams
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def demux(self, stream: Any) -> Iterator[Any]:
        yield from islice(self._file.demux(stream), self.n_packets)
        if self.end == "hang":
            self.released.wait(10)
        if self.end == "fail":
            raise av.error.InvalidDataError(1, "rtsp://bob:canary@cam/ is bad")


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """An mpeg-ts of forty frames (its packets are Annex B, as a camera's are)."""
    path = tmp_path / "film.ts"
    with av.open(str(path), "w", format="mpegts") as out:
        stream: Any = out.add_mux_stream("h264", width=160, height=120)
        for data, pts_ns, _, is_keyframe in h264(40):
            unit: Any = av.Packet(data)
            unit.stream, unit.pts, unit.dts, unit.is_keyframe = stream, *[pts_ns * 9 // 100_000] * 2, is_keyframe
            out.mux(unit)
    return path


class TestReader:
    def test_hangs(self, film: Path) -> None:
        """A reader that hangs in the driver costs its deadline, and no more."""
        container = Hanging(film, 10, "hang")
        reader = PacketReader(lambda: container, "v4l2:///dev/video0")
        assert reader.format(5).width_px == 160
        began = time.monotonic()
        with pytest.raises(DeviceError, match=r"camera v4l2:///dev/video0: no frame for 0.2 s"):
            while True:
                reader.next(0.2)
        assert time.monotonic() - began < 1
        container.released.set()
        reader.close()

    @pytest.mark.parametrize(("end", "message"), [("end", "the stream ended"), ("fail", "what it sends cannot be read")])
    def test_ends(self, film: Path, end: str, message: str) -> None:
        """A stream that ends without a word, or with an error that shows a password, ends in our words."""
        reader = PacketReader(lambda: Hanging(film, 10, end), "cam")
        found = []
        with pytest.raises(DeviceError, match=message) as problem:
            while True:
                found.append(reader.next(1))
        assert len(found) == 10 and "canary" not in str(problem.value)
        reader.close()

    def test_recorder_too_slow(self, film: Path) -> None:
        """When nobody takes packets the queue stays bounded, and what is dropped is counted."""
        one_group = sum(len(data) for data, *_ in h264(40)[:10])
        container = Hanging(film, 40, "hang")
        reader = PacketReader(lambda: container, "cam", max_bytes=one_group + 5000)
        reader.format(5)
        found = [reader.next(1)]
        time.sleep(0.1)
        with pytest.raises(DeviceError, match="no frame"):
            while True:
                found.append(reader.next(0.1))
        assert 10 <= len(found) < 20 and len(found) + reader._n_dropped == 40
        container.released.set()
        reader.close()

    def test_no_video(self, tmp_path: Path) -> None:
        """What opens and holds nothing that can be read as video is told."""
        (tmp_path / "garbage").write_bytes(np.random.default_rng(1).bytes(100_000))
        reader = PacketReader(lambda: av.open(str(tmp_path / "garbage"), format="mjpeg"), "cam")
        with pytest.raises(DeviceError, match="camera cam: "):
            reader.format(5)
        reader.close()


class Played:
    """A reader that gives packets and then breaks."""

    period_ns = STEP

    def __init__(self, packets: list[StreamPacket]) -> None:
        self.packets = packets

    def next(self, timeout_s: float) -> StreamPacket:
        if not self.packets:
            raise DeviceError("camera cam: the stream ended")
        return self.packets.pop(0)

    def close(self) -> None:
        pass


def played(*, start: int = 0, n_frames: int = 20, arrival_ns: int = 0, **changes: StreamPacket) -> Connection:
    """Return a connection that plays frames [start, start + n_frames) of a film."""
    film = h264(40)[start:][:n_frames]
    packets = [StreamPacket(data, pts, dts, is_keyframe, arrival_ns + pts) for data, pts, dts, is_keyframe in film]
    for place, other in changes.items():
        packets[int(place[1:])] = other
    return Connection(Played(packets), FORMAT)  # type: ignore[arg-type]


class TestCamera:
    def camera(self, *connections: Connection | DeviceError, reopen_s: float = 5) -> StreamCamera:
        """Return a camera whose connections are these, one after the other; then it is gone."""
        waiting = list(connections)

        def connect(answer_s: float) -> Connection:
            found = waiting.pop(0) if waiting else DeviceError("camera cam: Connection refused")
            if isinstance(found, DeviceError):
                raise found
            return found

        return StreamCamera(connect, camera_id="cam", reopen_s=reopen_s, clock=FakeClock())

    def test_breaks_and_comes_back(self) -> None:
        """It starts with a keyframe; an outage is a gap of the same recording, counted; then it ends with one clear line."""
        away = DeviceError("camera cam: Connection refused")
        camera = self.camera(played(start=5, arrival_ns=S), away, played(arrival_ns=11 * S))
        found = []
        with pytest.raises(DeviceError, match=r"Connection refused; \d+ tries since it broke \(camera cam: the stream ended\)"):
            for frame in camera:
                found.append(frame)
        assert [frame.is_keyframe for frame in found[:2]] == [True, False] and len(found) == 15 + 20
        assert [(n, frame.lost) for n, frame in enumerate(found) if frame.lost != SOURCE_DROPPED] == [(15, REOPENED)]
        missing = round((found[15].sensor_ns - found[14].sensor_ns) / STEP) - 1
        assert found[15].frame_number - found[14].frame_number - 1 == missing > 50
        assert all(b.sensor_ns > a.sensor_ns for a, b in pairwise(found))

    def test_garbage_between(self) -> None:
        """What does not begin like a frame is left out and listed; what the reader had to drop is listed as ours."""
        junk = StreamPacket(b"\x01\x02\x03\x04\x05", 3 * STEP, 3 * STEP, False, 3 * STEP)
        slow = h264(40)[10]
        late = StreamPacket(slow[0], 14 * STEP, 14 * STEP, True, 14 * STEP, n_dropped=4)
        found = []
        with pytest.raises(DeviceError):
            for frame in self.camera(played(n_frames=11, _3=junk, _10=late), reopen_s=0.1):
                found.append(frame)
        assert [(f.frame_number, f.lost) for f in found if f.lost != SOURCE_DROPPED] == [(4, DAMAGED), (14, RECORDER_SLOW)]

    def test_new_size(self) -> None:
        """A keyframe with other parameter sets changes the format; one that cannot be decoded is left out."""
        first = h264(40)[0][0]
        assert format_of(first, FORMAT) == StreamFormat(
            codec="h264", width_px=160, height_px=120, extradata=parameter_sets(first, "h264")
        )
        assert format_of(parameter_sets(first, "h264"), FORMAT) is None
        assert is_sound(first, "h264") and not is_sound(b"\xff\xd8", "h264") and is_sound(b"\xff\xd8\xff", "mjpeg")


class TestPictures:
    @pytest.mark.parametrize("b_frames", [0, 2])
    def test_decoded(self, b_frames: int) -> None:
        """All frames come out as pictures, in the order in which they are shown, with their times and numbers."""
        sent = frames(25, b_frames=b_frames)
        shown = list(pictures(EncodedCamera(sent)))
        assert [frame.sensor_ns for frame in shown] == sorted(frame.sensor_ns for frame in sent)
        assert [frame.frame_number for frame in shown] == list(range(25))
        assert all(frame.rgb.shape == (120, 160, 3) for frame in shown)

    def test_damaged(self) -> None:
        """A frame that cannot be decoded is missing, and named as the cause of the jump."""
        sent = frames(25)
        object.__setattr__(sent[10], "data", b"\x00\x00\x00\x01\x65" + bytes(40))
        shown = list(pictures(EncodedCamera(sent)))
        assert len(shown) < 25 and shown[-1].frame_number == 24
        assert DAMAGED in {frame.lost for frame in shown}
