"""What a recorder does when the spool does not take a clip, and how long its files get."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pytest

from infra.errors import DeviceError
from infra.records import Sidecar
from infra.video import probe
from ingest.frames import images
from ingest.policy import SpoolLimits
from ingest.recorder import Recorder
from ingest.segments import MakeSegment
from ingest.spool import Spool
from tests.ingest.encoded import EncodedCamera, frames
from tests.ingest.test_recorder import Frames


class Refusing(Spool):
    """A spool whose adoptions fail, as often as told."""

    error: OSError = OSError(errno.EMFILE, "Too many open files")
    n_failures = 10**9

    def __enter__(self) -> Refusing:
        return self

    def adopt(self, path: Path, sidecar: Sidecar, *, value: float | None = None) -> bool:
        if self.n_failures:
            self.n_failures -= 1
            raise DeviceError(f"spool: {self.error.strerror}") from self.error
        return super().adopt(path, sidecar, value=value)


def test_a_refused_segment_waits(tmp_path: Path) -> None:
    """A finished segment that the spool refuses stays, with its draft and number, until a recorder can salvage it."""
    with Refusing(tmp_path / "spool") as spool:
        with pytest.raises(DeviceError, match="Too many open files; 30 frames of the open segment wait for the next recorder"):
            Recorder(EncodedCamera(frames(30)), spool).record()
        assert len(list(spool.recording.iterdir())) == 2
        recorded = Recorder(EncodedCamera([]), spool).record()  # refused again: it waits on, its number with it
        assert recorded.n_salvaged == 0 and len(list(spool.recording.iterdir())) == 2
        assert list(spool.ledger.entries()) == []
    with Spool(tmp_path / "spool") as spool:
        assert Recorder(EncodedCamera([]), spool).record().n_salvaged == 1
        (clip,) = spool.pending()
        assert probe(clip.path).n_frames == 30 and clip.sidecar.seq == 0
        assert list(spool.ledger.entries()) == [] and not list(spool.recording.iterdir())


def test_what_fills_the_disk_goes(tmp_path: Path) -> None:
    """On a full disk the segment goes, and its number has the reason."""
    with Refusing(tmp_path / "spool") as spool:
        spool.error = OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises(DeviceError, match="30 frames of the open segment are lost"):
            Recorder(EncodedCamera(frames(30)), spool).record()
        assert not list(spool.recording.iterdir())
        assert [(entry.seq, entry.kind) for entry in spool.ledger.entries()] == [(0, "forfeited")]


def test_a_decoder_without_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that could not be opened just now is not taken for a broken one."""
    import av

    def no_descriptor(*_: object, **__: object) -> None:
        raise av.error.OSError(errno.EMFILE, "Too many open files")

    with Refusing(tmp_path / "spool") as spool:
        with pytest.raises(DeviceError):
            Recorder(EncodedCamera(frames(30)), spool).record()
        spool.n_failures = 0
        with monkeypatch.context() as patched:
            patched.setattr(av, "open", no_descriptor)
            assert Recorder(EncodedCamera([]), spool).record().n_salvaged == 0
        assert Recorder(EncodedCamera([]), spool).record().n_salvaged == 1


def test_newest(tmp_path: Path) -> None:
    """With policy newest a full spool refuses what is finished, recording goes on, and what was refused is told apart."""
    told: list[Sidecar] = []
    limits = SpoolLimits(max_bytes=1, max_share_of_disk=1.0, keep_free_bytes=0, policy="newest")
    with Spool(tmp_path / "spool", limits=limits) as spool:
        recorded = Recorder(EncodedCamera(frames(30)), spool, segment_s=1, gop_s=1).record(on_clip=told.append)
        assert (recorded.n_clips, recorded.n_refused, recorded.n_duplicates) == (0, 3, 0)
        assert (recorded.n_frames, recorded.n_bytes, told) == (30, 0, [])
        assert [entry.kind for entry in spool.ledger.entries()] == ["evicted"] * 3
        assert not list(spool.recording.iterdir()) and spool.counts() == {"evicted": 3}


def test_known_already(tmp_path: Path) -> None:
    """The same film again is no new clip, and is not called one."""
    with Spool(tmp_path / "spool") as spool:
        for expected in ((3, 0, 0), (0, 0, 3)):
            recorded = Recorder(EncodedCamera(frames(30)), spool, segment_s=1, gop_s=1).record()
            assert (recorded.n_clips, recorded.n_refused, recorded.n_duplicates) == expected
        assert spool.counts() == {"pending": 3}


def test_half_a_frame_of_tolerance(tmp_path: Path) -> None:
    """A keyframe that comes a few microseconds before the end of a segment begins the next one; pictures stay exact."""
    early = [dataclasses.replace(frame, sensor_ns=frame.sensor_ns - 40 * number) for number, frame in enumerate(frames(60))]
    with Spool(tmp_path / "spool") as spool:
        Recorder(EncodedCamera(early), spool, segment_s=2, gop_s=1).record()
        assert [len(clip.sidecar.sensor_ns) for clip in spool.pending()] == [20, 20, 20]
    with Spool(tmp_path / "pictures") as spool:
        Recorder(Frames([(n, n * 100 - (n == 10)) for n in range(20)]), spool, segment_s=1, gop_s=1).record()
        assert [len(clip.sidecar.sensor_ns) for clip in spool.pending()] == [11, 9]


@pytest.mark.parametrize("kind", ["mp4", "tar"])
def test_bytes_of_every_format(tmp_path: Path, kind: str) -> None:
    """Pictures, too, are cut where their file has grown over max_segment_bytes."""
    camera = Frames([(n, n * 100) for n in range(150)])
    make: MakeSegment | None = images(camera, ".png") if kind == "tar" else None
    with Spool(tmp_path / "spool") as spool:
        Recorder(camera, spool, max_segment_bytes=2 << 20, make_segment=make, container=kind).record()
        sizes = [clip.sidecar.n_bytes for clip in spool.pending()]
        assert len(sizes) > 1 and all(n_bytes < 6 << 20 for n_bytes in sizes)


@pytest.mark.parametrize("kind", ["mp4", "tar"])
def test_busy(tmp_path: Path, kind: str) -> None:
    """Counting, hashing and salvaging say that they work, once a packet or member and more."""
    beats: list[None] = []
    camera = Frames([(n, n * 100) for n in range(12)])
    make: MakeSegment | None = images(camera, ".png") if kind == "tar" else None
    with Refusing(tmp_path / "spool") as spool:
        with pytest.raises(DeviceError):
            Recorder(camera, spool, make_segment=make, container=kind, busy=lambda: beats.append(None)).record()
        assert len(beats) >= 2 * 12  # counted, and the salvage that was tried
        beats.clear()
        spool.n_failures = 0
        assert Recorder(Frames([]), spool, busy=lambda: beats.append(None)).record().n_salvaged == 1
        assert len(beats) >= 12
