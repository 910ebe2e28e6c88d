"""The recorder: frame identity, segments, gaps, full disks, interruptions."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra import durable
from infra.demo.counter import read_counter
from infra.errors import DeviceError, UsageError
from infra.records import ClockQuality, Gap
from infra.video import decode, packets, probe
from ingest.recorder import Recorder
from ingest.source import SourceFrame, open_source
from ingest.spool import Spool
from tests.faults.disk import CountingDisk

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
NOISE = np.random.default_rng(7).integers(0, 256, (8, 240, 320, 3), np.uint8)


class Frames:
    """A source of noise with times and numbers as given."""

    camera_id, host_id, boot_id, recording_id = "cam1", "pi", "boot", "rec"
    site: str | None = None
    width_px, height_px = 320, 240
    clock: ClockQuality = "ntp"

    def __init__(self, frames: list[tuple[int, int]], end: BaseException | None = None) -> None:
        self.frames, self.end = frames, end

    def utc_ns(self, sensor_ns: int) -> int | None:
        return 1_700_000_000_000_000_000 + sensor_ns

    def __iter__(self) -> Iterator[SourceFrame]:
        for number, milliseconds in self.frames:
            yield SourceFrame(NOISE[number % 8], milliseconds * 1_000_000, number)
        if self.end is not None:
            raise self.end


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An empty spool."""
    with Spool(tmp_path / "spool") as made:
        yield made


def unfinished(spool: Spool) -> list[Path]:
    """Return what lies in the folder of unfinished files."""
    return list(spool.recording.iterdir())


class TestIdentity:
    def test_every_frame_has_its_number_and_time(self, spool: Spool) -> None:
        """Through camera, encoder, segment and decoder each frame keeps its burnt-in number and its sensor time: 0 errors."""
        url = "sim://7/harbour1-yard?seconds=5&counter=1"
        sent = {frame.frame_number: frame.sensor_ns for frame in open_source(url)}
        recorded = Recorder(open_source(url), spool, segment_s=2).record()
        assert (recorded.n_frames, recorded.n_clips, recorded.n_dropped) == (50, 3, 0)
        found: dict[int, int] = {}
        for clip in spool.pending():
            shape = probe(clip.path)
            assert shape.n_frames == len(clip.sidecar.sensor_ns)
            times = iter(clip.sidecar.sensor_ns)
            for frames in decode(clip.path):
                for rgb, pts in zip(frames.rgb, frames.pts, strict=True):
                    sensor_ns = next(times)
                    found[read_counter(rgb)[0]] = sensor_ns
                    at_ns = clip.sidecar.start_mono_ns + float(int(pts) * shape.time_base) * 1e9
                    assert abs(at_ns - sensor_ns) < 20_000
        assert found == sent

    def test_recording_again_gives_the_same_clips(self, tmp_path: Path) -> None:
        """The same source gives the same bytes, ids and sidecars, so sending them twice changes nothing."""
        found = []
        for name in ("a", "b"):
            with Spool(tmp_path / name) as spool:
                Recorder(open_source("sim://7/harbour1-hall?seconds=3"), spool, segment_s=2).record()
                found.append([clip.sidecar for clip in spool.pending()])
        assert found[0] == found[1]


class TestSegments:
    def test_cut(self, spool: Spool) -> None:
        """A segment closes before the first frame that is segment_s after its first, each begins with a keyframe and pts 0."""
        times = [(number, number * 100) for number in range(45)]
        Recorder(Frames(times), spool, segment_s=2, gop_s=1).record()
        clips = spool.pending()
        assert [len(clip.sidecar.sensor_ns) for clip in clips] == [20, 20, 5]
        assert [clip.sidecar.seq for clip in clips] == [0, 1, 2]
        for clip in clips:
            found = list(packets(clip.path))
            assert found[0].is_keyframe and found[0].pts == 0
            assert clip.sidecar.start_ns == 1_700_000_000_000_000_000 + clip.sidecar.start_mono_ns
            assert (clip.sidecar.clock, clip.sidecar.boot_id, clip.sidecar.trigger) == ("ntp", "boot", "always")
        assert sum(packet.is_keyframe for packet in packets(clips[0].path)) == 2

    def test_gaps(self, spool: Spool) -> None:
        """Frames that the sensor numbered and did not deliver stand in the sidecar, also across a segment's border."""
        times = [(0, 0), (1, 100), (4, 400), (5, 500), (30, 3000), (31, 3100)]
        recorded = Recorder(Frames(times), spool, segment_s=2).record()
        first, second = spool.pending()
        assert first.sidecar.gaps == (Gap(before_frame=2, n_missing=2, duration_ns=300_000_000, cause="source dropped"),)
        assert second.sidecar.gaps == (Gap(before_frame=0, n_missing=24, duration_ns=2_500_000_000, cause="source dropped"),)
        assert recorded.n_dropped == 26
        assert [packet.pts for packet in packets(first.path)] == [0, 9000, 36000, 45000]

    def test_label_and_limit(self, spool: Spool) -> None:
        """A label given at recording is kept; a limit of frames is exact."""
        recorded = Recorder(Frames([(n, n * 100) for n in range(9)]), spool, label="Door").record(max_frames=4)
        assert recorded.n_frames == 4
        assert spool.pending()[0].sidecar.label == "Door"

    @pytest.mark.parametrize(("segment_s", "gop_s"), [(0, 2), (1, 2), (5000, 2), (2, 0)])
    def test_bad_lengths(self, spool: Spool, segment_s: float, gop_s: float) -> None:
        """Lengths that make no sense are refused."""
        with pytest.raises(UsageError, match="legal: 0 < GOP <= segment"):
            Recorder(Frames([]), spool, segment_s=segment_s, gop_s=gop_s)

    def test_nothing_to_record(self, spool: Spool) -> None:
        """A source without frames makes no clip."""
        assert Recorder(Frames([]), spool).record().n_clips == 0
        assert spool.pending() == []


class TestInterruptions:
    @pytest.mark.parametrize("end", [KeyboardInterrupt(), DeviceError("the camera is gone")])
    def test_what_was_filmed_is_kept(self, spool: Spool, end: BaseException) -> None:
        """Ctrl-C and a camera that fails close the open segment first."""
        with pytest.raises(type(end)):
            Recorder(Frames([(n, n * 100) for n in range(15)], end), spool).record()
        assert [len(clip.sidecar.sensor_ns) for clip in spool.pending()] == [15]
        assert unfinished(spool) == []

    def test_clock_that_goes_back(self, spool: Spool) -> None:
        """A sensor time that goes back stops the recording with what was filmed until then."""
        with pytest.raises(DeviceError, match="does not come after"):
            Recorder(Frames([(0, 0), (1, 100), (2, 50)]), spool).record()
        assert [len(clip.sidecar.sensor_ns) for clip in spool.pending()] == [2]

    def test_leftovers_of_a_crash(self, spool: Spool) -> None:
        """A file that a killed recorder of this camera left is taken away, that of another camera stays."""
        mine, other = spool.recording / ".tmp-cam1-123.mp4", spool.recording / ".tmp-cam2-123.mp4"
        mine.write_bytes(b"x"), other.write_bytes(b"x")
        Recorder(Frames([(0, 0)]), spool).record()
        assert unfinished(spool) == [other]

    def test_one_recorder_per_camera(self, spool: Spool) -> None:
        """A second recorder of the same camera is refused."""
        with spool.locked("record-cam1"), pytest.raises(DeviceError, match="another process is at work"):
            Recorder(Frames([(0, 0)]), spool).record()


class TestFullDisk:
    def test_small_file_system(self, tmp_path: Path) -> None:
        """On a file system of 1 MB recording stops in one clear line; the clips before it are whole, nothing torn is left."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
        if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
            pytest.skip("a tmpfs of 1 MB cannot be mounted here (not root)")
        try:
            with Spool(disk / "spool") as spool:
                source = Frames([(n, n * 100) for n in range(400)])
                message = r"cam1 stopped: .*No space left.*free space.*clips before it are safe"
                with pytest.raises(DeviceError, match=message) as found:
                    Recorder(source, spool, segment_s=0.5, gop_s=0.5).record()
                assert "\n" not in str(found.value)
                assert unfinished(spool) == []
            with Spool(disk / "spool") as spool:
                clips = spool.pending()
                assert clips
                assert all(probe(clip.path).n_frames == len(clip.sidecar.sensor_ns) for clip in clips)
                assert spool.counts() == {"pending": len(clips)}
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_every_primitive(self, tmp_path: Path) -> None:
        """ENOSPC at durable primitives (12 of them, all in the nightly run): one line, and what the spool holds is whole."""
        frames = Frames([(n, n * 100) for n in range(8)])
        n_calls = self.record_on(tmp_path / "counted", frames, CountingDisk())
        chosen = range(1, n_calls + 1)
        for number in sorted(random.Random(7).sample(chosen, min(n_calls, 12 * COUNT))):
            folder = tmp_path / str(number)
            self.record_on(folder, frames, CountingDisk(number, OSError(errno.ENOSPC, "No space left on device")))
            with Spool(folder) as spool:
                assert all(probe(clip.path).n_frames == len(clip.sidecar.sensor_ns) for clip in spool.pending())
                seqs = [clip.sidecar.seq for clip in spool.pending()] + [entry.seq for entry in spool.ledger.entries()]
                assert sorted(seqs) == list(range(len(seqs)))

    def record_on(self, folder: Path, frames: Frames, disk: CountingDisk) -> int:
        """Record two clips on a disk, check what is left unfinished, and return how many primitives it took."""
        with Spool(folder) as spool:
            durable.disk = disk
            try:
                Recorder(frames, spool, segment_s=0.5, gop_s=0.5).record()
            except DeviceError as error:
                assert "No space left on device" in str(error)
            finally:
                durable.disk = durable.Disk()
            assert unfinished(spool) == []
        return disk.n_calls
