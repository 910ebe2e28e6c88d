"""How frames are taken from a camera: rate, size, length, memory, and an end at the right place. The status line."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.clock import FakeClock
from infra.errors import UsageError
from infra.records import Gap, Sidecar
from ingest import memory, take
from ingest.source import EncodedFrame, SourceFrame, StreamFormat
from ingest.status_line import Progress, StatusLine

RGB = np.zeros((4, 6, 3), np.uint8)


def frames(times_ms: list[float], rgb: np.ndarray = RGB) -> list[SourceFrame]:
    """Return frames at these milliseconds, numbered from 0."""
    return [SourceFrame(rgb, round(at * 1e6), number) for number, at in enumerate(times_ms)]


class TestRate:
    @pytest.mark.parametrize(
        ("times_ms", "fps", "kept", "ticks"),
        [
            ([0, 33, 67, 100, 133, 167, 200, 233], 10, [0, 3, 6], [0, 1, 2]),
            ([0, 40, 80, 120, 160, 200], 10, [0, 2, 5], [0, 1, 2]),  # the first that is not more than a quarter tick early
            ([0, 99, 201, 298, 402], 10, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),  # jitter is no gap
            ([0, 100, 400, 500], 10, [0, 1, 2, 3], [0, 1, 4, 5]),  # a hole of two ticks is one
            ([0, 1000, 2000, 3000, 4000], 0.5, [0, 2, 4], [0, 1, 2]),
        ],
    )
    def test_ticks(self, times_ms: list[float], fps: float, kept: list[int], ticks: list[int]) -> None:
        """Each tick has its frame, numbered by it; a tick without one shows as a jump of the number."""
        came = frames(times_ms)
        got = list(take.thinned(came, fps))
        assert [frame.frame_number for frame in got] == ticks
        assert [frame.sensor_ns for frame in got] == [came[number].sensor_ns for number in kept]

    def test_wrong_rate(self) -> None:
        """Zero frames a second are refused."""
        with pytest.raises(UsageError, match="legal: more than 0"):
            list(take.thinned(frames([0]), 0))

    def test_paced(self) -> None:
        """A file is played at its own speed: each frame when its sensor time has passed."""
        clock, seen = FakeClock(), []
        for frame in take.paced(frames([5000, 5100, 5400]), clock):
            seen.append((frame.frame_number, clock.mono_ns() // 1_000_000))
        assert seen == [(0, 0), (1, 100), (2, 400)]


class TestLength:
    def test_seconds_and_frames(self) -> None:
        """Half-open in seconds: the frame at exactly S seconds is the next recording's."""
        came = frames([1000, 1500, 1999, 2000, 2500])
        assert len(list(take.limited(came, seconds=1))) == 3
        assert len(list(take.limited(came, n_frames=2))) == 2
        assert len(list(take.limited(came))) == 5

    def test_taken_keeps_who_films(self) -> None:
        """Steps stand between camera and recorder; everything else is the camera's."""

        class Camera:
            camera_id, host_id, boot_id, recording_id, site = "c", "h", "b", "r", "s"
            width_px, height_px, clock, is_replay = 6, 4, "ntp", True

            def utc_ns(self, sensor_ns: int) -> int | None:
                return sensor_ns + 1

            def __iter__(self) -> Iterator[SourceFrame]:
                yield from frames([0, 100, 200])

        got = take.taken(Camera(), lambda came: take.limited(came, n_frames=2), lambda came: take.resized(came, (3, 2)))  # type: ignore[arg-type]
        assert (got.camera_id, got.site, got.clock, got.is_replay, got.utc_ns(1)) == ("c", "s", "ntp", True, 2)  # type: ignore[attr-defined]
        assert [frame.rgb.shape for frame in got] == [(2, 3, 3), (2, 3, 3)]


class TestUsb:
    @pytest.mark.parametrize(("size_px", "kept"), [(None, True), ((48, 32), True), ((24, 16), False)])
    def test_jpeg_of_a_camera(
        self, size_px: tuple[int, int] | None, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """JPEG of a USB camera is kept byte for byte, every other frame here; another size is made of its pictures."""
        from infra.images import ImageEncoder, read_images, read_roll
        from ingest import recording
        from ingest.spool import Spool

        encoder = ImageEncoder(".jpg", 48, 32)
        files = [encoder.encode(np.full((32, 48, 3), 40 * number, np.uint8)) for number in range(6)]
        kind = StreamFormat(codec="mjpeg", width_px=48, height_px=32, extradata=b"")

        class Usb:
            camera_id, host_id, boot_id, recording_id, site = "usb", "h", "b", "r", None
            width_px, height_px, clock, format = 48, 32, "ntp", kind

            def utc_ns(self, sensor_ns: int) -> int | None:
                return None

            def __iter__(self) -> Iterator[EncodedFrame]:
                for number, data in enumerate(files):
                    yield EncodedFrame(data=data, is_keyframe=True, sensor_ns=number * 10**8, frame_number=number, format=kind)

        monkeypatch.setattr(recording, "open_camera", lambda url, **options: Usb())
        wish = recording.Wish(kind="jpeg", size_px=size_px, fps=5)
        camera = recording.open_for(wish, "v4l2:///dev/video0", camera_id=None, host_id="h")
        with Spool(tmp_path / "spool") as spool:
            made = recording.record(camera, spool, wish, stop=take.Stop(), clock=FakeClock())
            (clip,) = spool.pending()
        assert (made.n_frames, made.n_dropped) == (3, 0)
        stored = [data for _, data in read_images(clip.path, read_roll(clip.path).images)]
        assert (stored == files[::2]) is kept


class TestStop:
    def test_between_frames(self) -> None:
        """A signal while a frame is written ends the recording after it; the signal's old handler comes back."""
        stop, before, got = take.Stop(), signal.getsignal(signal.SIGTERM), []
        with stop.on_signals():
            for frame in stop.frames(frames([0, 1, 2, 3])):
                got.append(frame.frame_number)
                if frame.frame_number == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
        assert got == [0, 1]
        assert signal.getsignal(signal.SIGTERM) is before

    def test_while_waiting(self) -> None:
        """A signal while the camera is waited for ends the waiting."""

        def hanging() -> Iterator[SourceFrame]:
            yield from frames([0])
            os.kill(os.getpid(), signal.SIGINT)
            yield from frames([0, 1])

        stop = take.Stop()
        with stop.on_signals():
            assert len(list(stop.frames(hanging()))) == 1
        assert stop.is_asked

    def test_twice(self) -> None:
        """A second signal interrupts whatever is going on."""
        stop = take.Stop()
        with stop.on_signals():
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)


class TestMemory:
    def test_everything_is_filmed_before_anything_is_written(self) -> None:
        """All frames are taken first; what comes out is what came in, even where the camera uses its picture again."""
        picture = np.zeros((4, 6, 3), np.uint8)
        n_filmed = 0

        def camera() -> Iterator[SourceFrame]:
            nonlocal n_filmed
            for number in range(20):
                picture[:] = number
                n_filmed += 1
                yield SourceFrame(picture, number, number)

        for number, frame in enumerate(memory.in_memory(camera(), 10**6, pytest.fail)):
            assert n_filmed == 20
            assert frame.frame_number == number and (frame.rgb == number).all()  # type: ignore[union-attr]

    def test_cap(self) -> None:
        """At the cap filming ends with one line, and what was filmed comes out; the camera is not asked again."""
        said: list[str] = []
        weight = memory.weight_bytes(frames([0])[0])
        camera = iter(frames([float(at) for at in range(100)]))
        got = list(memory.in_memory(camera, 10 * weight + 5, said.append))
        assert len(got) == 10 and next(camera).frame_number == 11
        assert len(said) == 1 and f"10 frames fill {10 * weight} of {10 * weight + 5} bytes" in said[0]

    def test_too_small(self) -> None:
        """A cap below one frame is refused with what it would need."""
        with pytest.raises(UsageError, match="holds no frame of 672"):
            list(memory.in_memory(frames([0]), 10, pytest.fail))

    def test_encoded_frames_weigh_their_bytes(self) -> None:
        """An encoded frame weighs its data and its small picture."""
        kind = StreamFormat(codec="h264", width_px=6, height_px=4, extradata=b"")
        frame = EncodedFrame(data=b"x" * 100, is_keyframe=True, sensor_ns=0, frame_number=0, format=kind, small=RGB)
        assert memory.weight_bytes(frame) == memory.FRAME_BYTES + 100 + RGB.nbytes

    def test_what_the_machine_has_not(self, tmp_path: Path) -> None:
        """More than is free, nothing, and a machine that does not say."""
        meminfo = tmp_path / "meminfo"
        meminfo.write_text("MemTotal: 2000 kB\nMemAvailable:    1000 kB\n")
        assert memory.checked_cap(None, meminfo) == 512_000
        assert memory.checked_cap(1_024_000, meminfo) == 1_024_000
        for wrong in (0, -5, 1_024_001):
            with pytest.raises(UsageError, match=f"--buffer-bytes {wrong}; legal: 1 to the free memory, 1024000 bytes now"):
                memory.checked_cap(wrong, meminfo)
        assert memory.checked_cap(None, tmp_path / "none") == 1 << 28


class TestStatusLine:
    def test_figures(self) -> None:
        """Frames, seconds, rate, size an hour and losses, by sensor time; at most four lines a second."""
        progress, stream, clock = Progress(), io.StringIO(), FakeClock()
        line = StatusLine(stream, clock, "day1/light", progress, lambda: 500_000)
        for frame in [*frames([0, 100, 200, 300]), SourceFrame(RGB, 600_000_000, 6)]:
            progress.see(frame)
            line.update()
            clock.advance_s(0.1)
        assert (progress.n_missing, progress.seconds, progress.fps) == (2, 0.75, pytest.approx(6.67, abs=0.01))
        assert stream.getvalue().count("\r") == 2
        assert line.text(500_000) == "day1/light  5 frames  0.8 s    6.67 fps  2,400 MB/h  2 dropped"
        line.close()
        assert stream.getvalue().endswith("\r\x1b[K")

    def test_nothing_yet_and_no_terminal(self) -> None:
        """Before the second frame no rate is claimed; without a terminal nothing is written."""
        progress = Progress()
        line = StatusLine(None, FakeClock(), "yard", progress)
        line.update(), line.say("3 ..."), line.close()
        assert line.text(0) == "yard  0 frames  0.0 s  0 dropped"

    def test_gaps_are_kept(self) -> None:
        """Each finished clip brings its bytes and gaps."""
        progress, gap = Progress(), Gap(before_frame=3, n_missing=2, duration_ns=5, cause="source dropped")
        sidecar = Sidecar(
            clip_id="a", camera_id="c", host_id="h", boot_id="b", recording_id="r", seq=0, sha256="", n_bytes=7,
            container="tar", start_ns=None, start_mono_ns=0, clock="unknown", gaps=(gap,),
        )  # fmt: skip
        progress.add(sidecar)
        assert (progress.n_bytes, progress.gaps) == (7, [("a", gap)])
