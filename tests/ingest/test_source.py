"""Sources: a video file, a simulated camera."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from infra.demo.counter import read_counter
from infra.errors import CamloopError, DeviceError, MediaError, UsageError
from infra.video import Writer
from ingest.source import SourceFrame, check_frame, open_source


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video of five frames at uneven times, first pts not 0."""
    path = tmp_path / "barn.mp4"
    with Writer(path, 64, 48, Fraction(1, 1000)) as writer:
        for number, pts in enumerate((40, 140, 240, 500, 600)):
            writer.add(np.full((48, 64, 3), 40 * number, np.uint8), pts)
    return path


class TestFile:
    def test_times(self, clip: Path) -> None:
        """Sensor times are those of the file from its first frame on; its name is the camera's."""
        source = open_source(str(clip), host_id="pi")
        frames = list(source)
        assert [frame.sensor_ns // 1_000_000 for frame in frames] == [0, 100, 200, 460, 560]
        assert [frame.frame_number for frame in frames] == [0, 1, 2, 3, 4]
        assert frames[2].rgb.shape == (48, 64, 3)
        assert (source.camera_id, source.host_id, source.width_px, source.height_px) == ("barn", "pi", 64, 48)
        assert source.utc_ns(0) is None and source.clock == "unknown"

    def test_ids_come_from_the_content(self, clip: Path) -> None:
        """Playing the same file again is the same recording."""
        assert open_source(str(clip)).recording_id == open_source(str(clip), camera_id="x").recording_id

    def test_real_clip(self, shared_data: Path) -> None:
        """A real fixed-camera video plays with growing times."""
        path = next(iter(sorted((shared_data / "videos").rglob("*hallway_person*"))))
        source = open_source(str(path), camera_id="hall")
        before = None
        for _, frame in zip(range(30), source, strict=False):
            check_frame(before, frame)
            before = frame
        assert before is not None and before.frame_number == 29


class TestSimulated:
    def test_camera(self) -> None:
        """The address names seed, camera, recording and length; frames carry their numbers."""
        source = open_source("sim://7/harbour1-hall?recording=1&seconds=2&counter=1&lighting=day")
        frames = list(source)
        assert len(frames) == 20
        assert [read_counter(frame.rgb)[0] for frame in frames] == list(range(20))
        assert (source.camera_id, source.site, source.clock) == ("harbour1-hall", "harbour1", "sensor")
        utc = source.utc_ns(frames[10].sensor_ns)
        assert utc is not None and utc - source.utc_ns(frames[0].sensor_ns) == 10**9  # type: ignore[operator]

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("sim://7/nowhere-hall", "has no camera 'nowhere-hall'; it has .*harbour1-hall"),
            ("sim://x/harbour1-hall", r"address is not understood; legal: sim://SEED/CAMERA"),
            ("sim://7/harbour1-hall?wether=fog", r"option 'wether' is not understood"),
            ("sim://7/harbour1-hall?lighting=noon", r"lighting 'noon'; legal: day, dusk, night, infrared"),
            ("sim://7/harbour1-hall?seconds=long", r"are numbers"),
            ("sim://7/harbour1-hall?seconds=0", r"legal: 0 or more, and \(0, 3600\]"),
            ("http://bob:pw@cam/1", r"'http://\*\*\*@cam/1' is not understood; legal: a video file, sim://SEED/CAMERA, rtsp://"),
        ],
    )
    def test_bad_addresses(self, url: str, message: str) -> None:
        """Each wrong address is refused in one line with what is legal."""
        with pytest.raises(UsageError, match=message):
            open_source(url)


class TestBadInput:
    def test_files(self, tmp_path: Path, clip: Path) -> None:
        """A missing file, a text named .mp4, an empty file and a name that is no camera's are told apart."""
        (tmp_path / "text.mp4").write_text("hello")
        (tmp_path / "empty.mp4").write_bytes(b"")
        odd = clip.rename(tmp_path / "my barn.mp4")
        cases: list[tuple[str, type[CamloopError], str]] = [
            ("gone.mp4", UsageError, "no such file"), ("text.mp4", MediaError, "text.mp4"),
            ("empty.mp4", MediaError, "empty.mp4"), (odd.name, UsageError, "--camera ID"),
        ]  # fmt: skip
        for name, kind, message in cases:
            with pytest.raises(kind, match=message):
                open_source(str(tmp_path / name))
        assert open_source(str(odd), camera_id="barn").camera_id == "barn"

    def test_sensor_clock(self) -> None:
        """A sensor whose clock stands still or goes back is a fault of the device."""
        rgb = np.zeros((2, 2, 3), np.uint8)
        before = SourceFrame(rgb, 100, 5)
        check_frame(before, SourceFrame(rgb, 101, 6))
        for bad in (SourceFrame(rgb, 100, 6), SourceFrame(rgb, 101, 5)):
            with pytest.raises(DeviceError, match="restart the camera"):
                check_frame(before, bad)
