"""Images, raw frames and features: recorded, read back exactly, whole up to the last member after a crash at any byte."""

from __future__ import annotations

import os
import random
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from infra import durable
from infra.errors import ArtefactError, DeviceError, MediaError, UsageError
from infra.images import decode_image, read_images, read_roll, read_vectors
from infra.records import ClockQuality, Sidecar
from infra.video import decode, probe, recorded_pts
from ingest import features, frames, members, raw
from ingest.recorder import Recorder
from ingest.segments import MakeSegment
from ingest.source import Camera, EncodedFrame, Frame, SourceFrame, StreamFormat
from ingest.spool import Spool
from tests.faults.disk import CountingDisk, PowerCut
from tests.ingest.extractors import write_extractor

UTC_NS = 1_700_000_000_123_456_789
RNG = np.random.default_rng(3)
PICTURES = RNG.integers(0, 256, (24, 32, 48, 3), np.uint8)
TIMES = [5_000_000_007 + number * 125_000_000 + int(RNG.integers(0, 1_000_000)) for number in range(len(PICTURES))]


class Camera24:
    """24 pictures of noise at about 8 frames a second."""

    camera_id, host_id, boot_id, recording_id = "cam1", "pi", "boot", "rec"
    site: str | None = None
    width_px, height_px = 48, 32
    clock: ClockQuality = "ntp"

    def __init__(self, knows_utc: bool = True) -> None:
        self.knows_utc = knows_utc

    def utc_ns(self, sensor_ns: int) -> int | None:
        return UTC_NS + sensor_ns if self.knows_utc else None

    def __iter__(self) -> Iterator[SourceFrame]:
        for number, (rgb, at_ns) in enumerate(zip(PICTURES, TIMES, strict=True)):
            yield SourceFrame(rgb, at_ns, number)


class Cut(CountingDisk):
    """A disk whose power is cut at a given call: half of a write is there, and nothing works afterwards."""

    def _step(self) -> bool:
        if self.fail_at is not None and self.n_calls >= self.fail_at:
            raise self.error
        return super()._step()


COUNT = os.environ.get("CAMLOOP_TEST_COUNT")
POINTS = sorted({1 + number * 69 // int(COUNT or "7") for number in range(int(COUNT or "7"))})  # of a recording's 69 writes
Make = Callable[[Camera, Path], MakeSegment]
KINDS: dict[str, Make] = {
    "png": lambda source, folder: frames.images(source, ".png"),
    "jpg": lambda source, folder: frames.images(source, ".jpg"),
    "raw": lambda source, folder: raw.raw_frames(source),
    "features": lambda source, folder: features.features(
        source, features.Extractor(write_extractor(folder / "tiny.onnx", dim=8)), thumbnail_s=1
    ),
}


def write(path: Path, make: MakeSegment) -> Path:
    """Write the 24 pictures as one file."""
    source = Camera24()
    pictures: list[Frame] = list(source)
    segment = make(path, pictures[0])
    for number, frame in enumerate(pictures):
        segment.add(frame, number)
    segment.close()
    segment.close()
    return path


def record(spool: Spool, kind: str, folder: Path, **options: float) -> list[tuple[Path, Sidecar]]:
    """Record the camera and return its clips."""
    source = Camera24()
    Recorder(source, spool, make_segment=KINDS[kind](source, folder), container="tar", **options).record()  # type: ignore[arg-type]
    return [(clip.path, clip.sidecar) for clip in spool.pending()]


class TestExact:
    @pytest.mark.parametrize("kind", ["png", "raw"])
    def test_lossless(self, kind: str, spool: Spool, tmp_path: Path) -> None:
        """PNG and raw frames decode to the very pictures that were filmed, at their very times, in two segments."""
        found, times = [], []
        clips = record(spool, kind, tmp_path, segment_s=1.45, gop_s=1)
        assert len(clips) == 2
        for path, sidecar in clips:
            truth = probe(path)
            assert (truth.container, truth.codec, truth.n_frames) == ("tar", {"png": "png", "raw": "rawvideo"}[kind], 12)
            assert (truth.width_px, truth.height_px, truth.start_ns) == (48, 32, UTC_NS + sidecar.start_mono_ns)
            for part in decode(path, batch=5):
                found.append(part.rgb.copy())
                times += [sidecar.start_mono_ns + int(pts) for pts in part.pts]
            assert list(sidecar.sensor_ns) == times[-12:]
        assert np.array_equal(np.concatenate(found), PICTURES)
        assert times == TIMES

    def test_a_frame_is_found_by_its_time(self, tmp_path: Path) -> None:
        """A raw clip is sought like any other: the frames at three times are those three."""
        path = write(tmp_path / "a.tar", KINDS["raw"](Camera24(), tmp_path))
        wanted = [TIMES[number] - TIMES[0] for number in (2, 11, 23)]
        (part,) = decode(path, pts=wanted)
        assert part.pts.tolist() == wanted
        assert np.array_equal(part.rgb, PICTURES[[2, 11, 23]])

    def test_jpeg_is_named_by_its_time(self, spool: Spool, tmp_path: Path) -> None:
        """Any tar program gives JPEG files named by UTC nanoseconds; a camera without UTC names them by sensor time."""
        ((path, _),) = record(spool, "jpg", tmp_path)
        with tarfile.open(path) as tar:
            names = [member.name for member in tar.getmembers()][1:]
        assert names == [f"{UTC_NS + at_ns}.jpg" for at_ns in TIMES]
        blind = Camera24(knows_utc=False)
        path = write(tmp_path / "blind.tar", frames.images(blind, ".jpg"))
        assert [image.name for image in read_roll(path).images] == [f"{at_ns:019d}.jpg" for at_ns in TIMES]
        assert recorded_pts(path) == [at_ns - TIMES[0] for at_ns in TIMES]
        assert read_roll(path).start_ns is None

    def test_jpegs_of_a_camera_are_kept(self, tmp_path: Path) -> None:
        """What a camera encoded as JPEG lies in the clip byte for byte; a stream of another codec is refused."""
        path = write(tmp_path / "a.tar", KINDS["jpg"](Camera24(), tmp_path))
        data = [data for _, data in read_images(path, read_roll(path).images)]
        kind = StreamFormat(codec="mjpeg", width_px=48, height_px=32, extradata=b"")
        segment = frames.ImageSegment(tmp_path / "b.tar", members.NameClock(0, None), ".jpg")
        for number, jpeg in enumerate(data):
            segment.add(EncodedFrame(data=jpeg, is_keyframe=True, sensor_ns=number, frame_number=number, format=kind), 0)
        segment.close()
        assert [kept for _, kept in read_images(tmp_path / "b.tar", read_roll(tmp_path / "b.tar").images)] == data
        h264 = StreamFormat(codec="h264", width_px=48, height_px=32, extradata=b"")
        with pytest.raises(UsageError, match=r"frames of h264 as \.jpg"):
            segment.add(EncodedFrame(data=b"x", is_keyframe=True, sensor_ns=99, frame_number=99, format=h264), 0)

    def test_features(self, spool: Spool, tmp_path: Path) -> None:
        """Vectors come back bit for bit with their times, under the extractor's name and hash, and thumbnails as a clip."""
        ((path, sidecar),) = record(spool, "features", tmp_path)
        extractor = features.Extractor(tmp_path / "tiny.onnx")
        roll = read_roll(path)
        batches = list(read_vectors(path, roll))
        assert [at for pts, _ in batches for at in pts] == [at_ns - TIMES[0] for at_ns in TIMES] == recorded_pts(path)
        vectors = np.concatenate([vectors for _, vectors in batches])
        assert vectors.dtype == np.float32
        assert np.array_equal(vectors, np.stack([extractor(rgb) for rgb in PICTURES]))
        assert roll.extractor == {"name": "tiny", "sha256": extractor.sha256, "dim": 8}
        assert len(sidecar.sensor_ns) == 24
        truth = probe(path)
        assert truth.n_frames == len(roll.images) == 3 and truth.codec == "mjpeg"
        assert truth.end_pts > TIMES[-1] - TIMES[0]
        assert sum(len(part) for part in decode(path)) == 3


def _everything(path: Path) -> None:
    for _ in decode(path):
        pass
    if (roll := read_roll(path)).kind == "features":
        list(read_vectors(path, roll))


class TestCrash:
    @pytest.mark.parametrize("kind", list(KINDS))
    def test_cut_at_any_byte(self, kind: str, tmp_path: Path) -> None:
        """A file cut anywhere, or ending in zeros after a power cut, is salvaged to a prefix of whole frames."""
        whole = write(tmp_path / "whole.tar", KINDS[kind](Camera24(), tmp_path)).read_bytes()
        everything = recorded_pts(tmp_path / "whole.tar")
        roll = read_roll(tmp_path / "whole.tar")
        images = {image.pts: data for image, data in read_images(tmp_path / "whole.tar", roll.images)}
        ends = [image.offset + image.n_bytes for image in (*roll.images, *roll.vectors)]
        cuts = [random.Random(5).randrange(len(whole)) for _ in range(int(COUNT or "12"))]
        path, n_served = tmp_path / "cut.tar", 0
        for cut in (*cuts, *ends, *(end - 1 for end in ends), len(whole)):
            for tail in (b"", b"\0" * 5000):
                path.write_bytes(whole[:cut] + tail)
                try:
                    times = members.salvage(path)
                except MediaError:
                    continue
                n_served += 1
                assert list(times) == everything[: len(times)] == recorded_pts(path)
                served = read_roll(path)
                for image, data in read_images(path, served.images):
                    assert data == images[image.pts]
                    decode_image(data, image.name)
        assert n_served >= (3 if kind == "features" else len(ends))

    def test_every_whole_frame_is_kept(self, tmp_path: Path) -> None:
        """A raw file cut one byte before the end of frame k keeps k frames, one byte later k + 1 once its padding is there."""
        path = write(tmp_path / "a.tar", KINDS["raw"](Camera24(), tmp_path))
        whole, images = path.read_bytes(), read_roll(path).images
        for number, image in enumerate(images):
            end = image.offset + image.n_bytes
            path.write_bytes(whole[: end - 1])
            if number:
                assert len(members.salvage(path)) == number
            path.write_bytes(whole[: end + -end % 512])
            assert len(members.salvage(path)) == number + 1

    @pytest.mark.parametrize("kind", ["png", "raw", "features"])
    def test_rot_is_noticed(self, kind: str, tmp_path: Path) -> None:
        """A flipped bit in any array, or in a PNG's data, is an error when it is read, never another picture."""
        path = write(tmp_path / "a.tar", KINDS[kind](Camera24(), tmp_path))
        whole, roll = path.read_bytes(), read_roll(path)
        chosen = random.Random(9)
        for image in chosen.sample(roll.vectors or roll.images, k=min(8, len(roll.vectors or roll.images))):
            at = image.offset + chosen.randrange(40, image.n_bytes - 12)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chosen.randrange(8)]) + whole[at + 1 :])
            with pytest.raises(MediaError, match=r"damaged|cannot be decoded|pictures"):
                _everything(path)

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(5, "Input/output error")])
    def test_a_disk_that_fails(self, error: OSError, tmp_path: Path) -> None:
        """At every write that fails, recording ends with one line; whatever is in the spool is whole and a prefix."""
        for fail_at in POINTS:
            with Spool(tmp_path / str(fail_at)) as spool:
                durable.disk = CountingDisk(fail_at, error)
                try:
                    record(spool, "png", tmp_path, segment_s=1.45, gop_s=1)
                except DeviceError as stopped:
                    assert "\n" not in str(stopped)
                durable.disk = durable.Disk()
                self.check(spool)

    @pytest.mark.parametrize("kind", ["png", "raw"])
    def test_power_cut_at_a_write(self, kind: str, tmp_path: Path) -> None:
        """After a cut at any write, half of it on the disk, the next recorder salvages whole frames and records all again."""
        n_salvaged = 0
        for fail_at in POINTS:
            with Spool(tmp_path / str(fail_at)) as spool:
                durable.disk = Cut(fail_at)
                with suppress(PowerCut, DeviceError):
                    record(spool, kind, tmp_path, segment_s=1.45, gop_s=1)
                durable.disk = durable.Disk()
            with Spool(tmp_path / str(fail_at)) as again:
                record(again, kind, tmp_path, segment_s=1.45, gop_s=1)
                self.check(again)
                assert not list(again.recording.glob(".tmp-cam1-*"))
                n_salvaged += sum(clip.sidecar.salvaged for clip in again.pending())
                whole = [clip.sidecar.sensor_ns for clip in again.pending() if not clip.sidecar.salvaged]
                assert sorted(at for times in whole for at in times) == TIMES
        assert n_salvaged > 0

    @staticmethod
    def check(spool: Spool) -> None:
        """Assert that every clip holds the very pictures of its times."""
        for clip in spool.pending():
            got = np.concatenate([part.rgb.copy() for part in decode(clip.path)])
            first = TIMES.index(clip.sidecar.sensor_ns[0])
            assert list(clip.sidecar.sensor_ns) == TIMES[first : first + len(got)]
            assert np.array_equal(got, PICTURES[first : first + len(got)])

    def test_killed_recorder_is_salvaged(self, spool: Spool, tmp_path: Path) -> None:
        """What a killed recorder leaves becomes a clip of the next one, with the exact sensor times of its whole frames."""

        class Dying(Camera24):
            def __iter__(self) -> Iterator[SourceFrame]:
                for frame in super().__iter__():
                    if frame.frame_number == 17:
                        os._exit(9)
                    yield frame

        child = os.fork()
        if child == 0:
            source = Dying()
            Recorder(source, spool, make_segment=raw.raw_frames(source), container="tar").record()
        os.waitpid(child, 0)
        spool.close()
        with Spool(spool.folder) as again:
            record(again, "raw", tmp_path)
            salvaged = next(clip for clip in again.pending() if clip.sidecar.salvaged)
        assert list(salvaged.sidecar.sensor_ns) == TIMES[:17]
        assert np.array_equal(np.concatenate([part.rgb.copy() for part in decode(salvaged.path)]), PICTURES[:17])
        assert not list(spool.recording.iterdir())


class TestExtractor:
    def test_another_extractor_is_refused(self, tmp_path: Path) -> None:
        """A named recording keeps to the extractor it was begun with; another recording may have another."""
        first = features.Extractor(write_extractor(tmp_path / "a.onnx", dim=8))
        other = features.Extractor(write_extractor(tmp_path / "b.onnx", dim=8, seed=8))
        features.claim(tmp_path, "day1", first)
        features.claim(tmp_path, "day1", first)
        features.claim(tmp_path, "day2", other)
        with pytest.raises(UsageError, match=rf"begun with extractor a@{first.sha256[:12]}, this is b@{other.sha256[:12]}"):
            features.claim(tmp_path, "day1", other)

    @pytest.mark.parametrize(
        ("options", "word"),
        [({"dtype": TensorProto.FLOAT}, r"takes frame tensor\(float\)"), ({"dim": 70_000, "side_px": 1}, "gives 70000")],
    )
    def test_other_models_are_refused(self, options: dict[str, int], word: str, tmp_path: Path) -> None:
        """A model with another input or an absurd output is refused with what is legal."""
        with pytest.raises(UsageError, match=word):
            features.Extractor(write_extractor(tmp_path / "odd.onnx", **{"side_px": 8, **options}))

    def test_garbage_is_refused(self, tmp_path: Path) -> None:
        """No file, an empty one and noise are one line each."""
        with pytest.raises(UsageError, match="no such file; give --extractor"):
            features.Extractor(tmp_path / "gone.onnx")
        for data in (b"", b"\0" * 100, random.Random(1).randbytes(500)):
            (tmp_path / "bad.onnx").write_bytes(data)
            with pytest.raises((ArtefactError, UsageError)):
                features.Extractor(tmp_path / "bad.onnx")


class TestForeign:
    @pytest.mark.parametrize(
        ("head", "name", "word"),
        [
            ({"version": 2, "pts_ns": "names", "kind": "raw"}, "5.00000000.npy", "damaged|0 images"),
            ({"version": 2, "pts_ns": "names", "kind": "film"}, "5.png", "a clip of 'film'"),
            ({"version": 2, "pts_ns": "names"}, "../../x.png", "legal: <nanoseconds>"),
            ({"version": 2, "pts_ns": "names"}, "99999999999999999999.png", "legal: <nanoseconds>"),
            ({"version": 2, "pts_ns": [1]}, "5.png", "version 2"),
            ({"version": 1, "pts_ns": "names"}, "5.png", "version 1"),
            ({"version": 2, "pts_ns": "names", "kind": "features"}, "5.jpg", "extractor None"),
        ],
    )
    def test_a_strangers_tar(self, head: dict[str, object], name: str, word: str, tmp_path: Path) -> None:
        """Heads and names that no recorder writes are refused in one line."""
        import json

        path = tmp_path / "a.tar"
        path.write_bytes(members.member_bytes("camloop.json", json.dumps(head).encode()) + members.member_bytes(name, b"x" * 9))
        with pytest.raises(MediaError, match=word):
            for _ in decode(path):
                pass

    def test_an_array_that_lies_about_its_size(self, tmp_path: Path) -> None:
        """A header that claims terabytes takes no memory."""
        from infra.arrays import array_name, frame_of, npy_bytes

        data = npy_bytes(PICTURES[0]).replace(b"(32, 48, 3), ", b"(99999999999, 48, 3)"[:13] + b"")
        with pytest.raises(MediaError):
            frame_of(data, array_name(1, data), 10**6)
