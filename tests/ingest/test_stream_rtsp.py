"""RTSP against a real server (GStreamer's): exact recording, a server that dies, freezes, comes back, changes its picture."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from infra.errors import CamloopError, DeviceError
from infra.remux import units
from infra.video import Writer, decode, probe
from ingest.decoding import SmallPictures
from ingest.recorder import Recorder
from ingest.source import REOPENED, EncodedFrame, EncodedSource, open_camera, open_source, pictures
from ingest.spool import Spool
from ingest.stream import StreamCamera, open_rtsp
from tests.ingest.encoded import annex_b
from tests.ingest.rtsp_rig import Rtsp, serving

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
ALLOW = ["127.0.0.1"]
SLICES = {1, 5}  # H.264 units that hold pictures


@pytest.fixture
def live() -> Iterator[Rtsp]:
    """A camera of 320x240 at 15 frames a second."""
    with serving("--live", "320x240@15") as server:
        yield server


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty frames at 30 a second with B-frames, a keyframe every half second."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    noise = np.random.default_rng(1).integers(0, 256, (120, 160, 3), np.uint8)
    with Writer(path, 160, 120, Fraction(1, 90_000), gop_s=0.5, b_frames=2) as writer:
        for number in range(40):
            writer.add(np.roll(noise, number, axis=1), number * 3000)
    return path


def camera(url: str, **options: object) -> StreamCamera:
    """Open a camera on this machine."""
    return open_rtsp(url, camera_id="yard", allow=ALLOW, **options)  # type: ignore[arg-type]


def picture_units(path: Path) -> list[bytes]:
    """Return the coded pictures of an mp4, without the parameter sets that a server puts between them."""
    found = (unit for data, *_ in annex_b(path) for unit in units(data))
    return [unit for unit in found if unit[0] & 0x1F in SLICES]


class TestPlays:
    def test_exactly(self, film: Path, spool: Spool) -> None:
        """What is recorded of a file that a server plays are its own coded pictures, bit for bit, at its own times."""
        with serving("--file", str(film)) as server:
            recorded = Recorder(camera(server.url), spool).record(max_frames=40)
        (clip,) = spool.pending()
        assert picture_units(clip.path) == picture_units(film)
        shape = probe(clip.path)
        assert (shape.n_frames, shape.first_pts, recorded.n_dropped) == (40, 0, 0)
        steps = np.diff(clip.sidecar.sensor_ns)
        assert np.abs(steps - 1e9 / 30).max() < 120_000, "a tick is 11,111 ns, the tie moves by 500e-6 at most"
        assert clip.sidecar.start_mono_ns <= time.monotonic_ns() and clip.sidecar.boot_id

    def test_pictures_in_slices(self, live: Rtsp, spool: Spool) -> None:
        """A server that sends a picture as slices with parameter sets between them still gives one frame a picture."""
        Recorder(camera(live.url), spool).record(max_frames=25)
        (clip,) = spool.pending()
        shape = probe(clip.path)
        assert (shape.n_frames, shape.index) == (25, "packets")
        assert np.diff(clip.sidecar.sensor_ns).min() > 50_000_000

    def test_small_pictures_and_whole_ones(self, live: Rtsp) -> None:
        """The trigger's pictures come with keyframes; `pictures` decodes everything; `open_camera` knows the address."""
        found = open_camera(live.url, camera_id="yard", allow=ALLOW, small_px=(64, 48))
        frames = list(islice(iter(found), 12))
        assert isinstance(frames[0], EncodedFrame) and frames[0].is_keyframe
        small = [frame.small for frame in frames if isinstance(frame, EncodedFrame) and frame.small is not None]
        assert small and all(picture.shape == (48, 64, 3) and picture.max() > 100 for picture in small)
        whole = list(islice(iter(open_source(live.url, camera_id="yard", allow=ALLOW)), 3))
        assert [picture.rgb.shape for picture in whole] == [(240, 320, 3)] * 3
        assert np.diff([picture.sensor_ns for picture in whole]).min() > 0

    def test_every_frame_decoded_for_the_trigger(self, live: Rtsp) -> None:
        """A trigger may see more than keyframes, at a price."""
        small = SmallPictures((64, 48), of="all", max_fps=30)
        frames = list(islice(iter(camera(live.url, small=small)), 8))
        assert sum(frame.small is not None for frame in frames) >= 7

    def test_motion_jpeg(self, spool: Spool) -> None:
        """A stream of JPEGs is kept as it comes too."""
        with serving("--live", "160x120@15", "--codec", "mjpeg") as server:
            Recorder(camera(server.url), spool).record(max_frames=6)
        (clip,) = spool.pending()
        shape = probe(clip.path)
        assert (shape.codec, shape.n_frames, shape.width_px) == ("mjpeg", 6, 160)

    def test_new_size(self, live: Rtsp, spool: Spool) -> None:
        """A stream that changes its size goes on in a new clip of the same recording."""

        class Watched:
            def __init__(self, source: EncodedSource) -> None:
                self.source = source

            def __getattr__(self, name: str) -> object:
                return getattr(self.source, name)

            def __iter__(self) -> Iterator[EncodedFrame]:
                for number, frame in enumerate(self.source):
                    if number == 5:
                        live.order("size 160x120")
                    yield frame
                    if frame.format.width_px == 160 and frame.is_keyframe and number > 12:
                        return

        Recorder(Watched(camera(live.url)), spool).record(max_frames=60)  # type: ignore[arg-type]
        clips = spool.pending()
        assert [probe(clip.path).width_px for clip in clips] == [320, 160]
        assert len({clip.sidecar.recording_id for clip in clips}) == 1


class TestBreaks:
    def test_killed_and_back(self, live: Rtsp, spool: Spool) -> None:
        """A server that dies and comes back within reopen_s is a gap of the same recording; time goes on."""
        source = camera(live.url, stall_s=1, reopen_s=10)
        frames = iter(source)
        before = list(islice(frames, 10))
        live.kill()
        with serving("--live", "320x240@15", "--port", str(live.port)):
            after = list(islice((frame for frame in frames if frame.lost == REOPENED), 1))
        assert after[0].is_keyframe and after[0].sensor_ns > before[-1].sensor_ns
        missing_s = (after[0].sensor_ns - before[-1].sensor_ns) / 1e9
        assert after[0].frame_number - before[-1].frame_number == pytest.approx(missing_s * 15, rel=0.5, abs=3)
        source.close()

    def test_killed_for_good(self, live: Rtsp, spool: Spool) -> None:
        """A server that stays away ends the recording within its time, and what came before is a clip."""
        source = camera(live.url, stall_s=1, reopen_s=0.5)

        def dying() -> Iterator[EncodedFrame]:
            for number, frame in enumerate(source):
                if number == 5:
                    live.kill()
                yield frame

        began = time.monotonic()
        with pytest.raises(DeviceError, match=r"Connection refused.*tries since it broke"):
            Recorder(_with_frames(source, dying()), spool).record()
        assert time.monotonic() - began < 8
        assert len(spool.pending()[0].sidecar.sensor_ns) >= 5

    def test_frozen(self, live: Rtsp) -> None:
        """A server that freezes, sockets open, ends the recording within its time: nothing hangs."""
        source = camera(live.url, stall_s=0.7, reopen_s=0.5)
        frames = iter(source)
        list(islice(frames, 3))
        live.freeze()
        began = time.monotonic()
        with pytest.raises(DeviceError, match=r"nothing came for 0.7 s|no frame for 0.7 s"):
            list(frames)
        assert time.monotonic() - began < 8

    def test_wrong_password(self) -> None:
        """A camera that wants another password says so, and no message shows the one that was given."""
        with serving("--user", "bob:right", secret="bob:s3cret-canary@") as server, pytest.raises(DeviceError) as found:
            camera(server.url)
        assert "wants a user and a password" in str(found.value) and "canary" not in str(found.value)

    @pytest.mark.parametrize("how", [[], ["--digest"]])
    def test_right_password(self, how: list[str]) -> None:
        """With the right one it plays, asked for plainly or as a digest; signs in a password are escaped."""
        with serving("--user", "bob:a/b@c", *how, secret="bob:a%2Fb%40c@") as server:
            assert next(iter(camera(server.url))).is_keyframe

    def test_no_such_stream(self, live: Rtsp) -> None:
        """A path that is not there is said."""
        with pytest.raises(CamloopError, match="no stream under this path"):
            camera(live.url + "era")


@pytest.mark.slow
def test_again_and_again(tmp_path: Path) -> None:
    """A camera that is killed, frozen and back again, many times: every clip is whole, times grow, numbers have no holes."""
    port = "0"
    rng = random.Random(11)
    with Spool(tmp_path / "spool") as spool:
        for _ in range(3 * COUNT):
            with serving("--live", "320x240@15", "--port", port) as server:
                port = str(server.port)
                source = camera(server.url, stall_s=1, reopen_s=0.5)
                timer = threading.Timer(rng.uniform(1, 3), rng.choice([server.kill, server.freeze]))
                timer.start()
                with pytest.raises(DeviceError):
                    Recorder(source, spool, segment_s=2, gop_s=1).record()
                timer.join()
        clips = spool.pending()
        assert [clip.sidecar.seq for clip in clips] == list(range(len(clips)))
        assert len({clip.sidecar.recording_id for clip in clips}) == 3 * COUNT
        times = [ns for clip in clips for ns in clip.sidecar.sensor_ns]
        assert times == sorted(set(times))
        for clip in clips:
            shape = probe(clip.path)
            assert shape.n_frames == len(clip.sidecar.sensor_ns) == sum(len(batch.pts) for batch in decode(clip.path))


def _with_frames(source: StreamCamera, frames: Iterator[EncodedFrame]) -> EncodedSource:
    class Same:
        def __getattr__(self, name: str) -> object:
            return getattr(source, name)

        def __iter__(self) -> Iterator[EncodedFrame]:
            return frames

    return Same()  # type: ignore[return-value]


def test_pictures_of_pictures() -> None:
    """A source of pictures stays what it is."""
    source = open_source("sim://7/harbour1-hall?seconds=1")
    assert pictures(source) is source
