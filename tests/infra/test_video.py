"""The only decoder and resizer: timestamps, limits, hostile files, clips of images, the encoder."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from infra import reader
from infra.errors import MediaError, UsageError
from infra.video import (
    Frames,
    Grid,
    Probe,
    Writer,
    complete_bytes,
    decode,
    letterbox,
    pack_images,
    packets,
    probe,
    resize,
)

VFR_PTS = [7, 40, 73, 200, 1006, 1007, 1500, 3000]
MS = Fraction(1, 1000)
LEGAL = (".mp4", ".avi", ".mkv")


def _scene(n: int, width: int = 96, height: int = 64) -> np.ndarray:
    """Return uint8 (n, height, width, 3): a bright block that moves over a smooth ground."""
    y, x = np.mgrid[0:height, 0:width]
    ground = np.stack([x * 2, y * 3, (x + y)], axis=-1).astype(np.uint8)
    frames = np.repeat(ground[None], n, axis=0)
    for k, frame in enumerate(frames):
        left = (5 * k) % (width - 16)
        frame[20:36, left : left + 16] = (250, 40, 40)
    return frames


def _write(path: Path, pts: list[int] = VFR_PTS, **options: object) -> Path:
    with Writer(path, 96, 64, MS, gop_s=1.0, **options) as writer:  # type: ignore[arg-type]
        for rgb, at in zip(_scene(len(pts)), pts, strict=True):
            writer.add(rgb, at)
    return path


def _by_pts(frames: Iterator[Frames]) -> dict[int, np.ndarray]:
    return {int(p): rgb for some in frames for rgb, p in zip(some.rgb, some.pts, strict=True)}


def _all_pts(frames: Iterator[Frames]) -> list[int]:
    return [int(p) for some in frames for p in some.pts]


def test_writer_keeps_variable_times_and_makes_keyframes_by_time(tmp_path: Path) -> None:
    """Uneven pts that do not start at 0 come back, and a keyframe stands where a GOP's time is over."""
    for fragmented in (False, True):
        found = probe(_write(tmp_path / "clip.mp4", fragmented=fragmented))
        assert (found.first_pts, found.end_pts, found.n_frames, found.time_base) == (7, 4500, 8, MS)
        assert (found.container, found.codec, found.index, found.has_b_frames) == ("mp4", "h264", "packets", False)
        assert [p.pts for p in packets(tmp_path / "clip.mp4") if p.is_keyframe] == [7, 1007, 3000]
        assert _all_pts(decode(tmp_path / "clip.mp4")) == VFR_PTS


def test_writer_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    """The encoder is deterministic and names no version of the muxer."""
    first, second = _write(tmp_path / "a.mp4").read_bytes(), _write(tmp_path / "b.mp4").read_bytes()
    assert first == second
    assert b"Lavf" not in first


def test_writer_refuses_what_the_file_cannot_hold(tmp_path: Path) -> None:
    """Odd sides, a time base that is not 1/N, pts that go back and frames of another size are refused."""
    with pytest.raises(UsageError, match="even"):
        Writer(tmp_path / "x.mp4", 95, 64, MS)
    with pytest.raises(UsageError, match="1/N"):
        Writer(tmp_path / "x.mp4", 96, 64, Fraction(2, 15))
    with Writer(tmp_path / "x.mp4", 96, 64, MS) as writer:
        writer.add(_scene(1)[0], 5)
        with pytest.raises(UsageError, match="increase"):
            writer.add(_scene(1)[0], 5)
        with pytest.raises(UsageError, match="uint8"):
            writer.add(np.zeros((10, 10, 3), np.uint8), 6)


def test_b_frames_come_in_presentation_order(tmp_path: Path) -> None:
    """With B-frames packets are out of order, frames are not, and any frame is found by seeking."""
    pts = list(range(0, 4000, 40))
    path = _write(tmp_path / "b.mp4", pts, b_frames=2)
    found = probe(path)
    assert found.has_b_frames
    assert found.index == "packets"
    assert [p.pts for p in packets(path)] != pts
    assert _all_pts(decode(path)) == pts
    whole, some = _by_pts(decode(path)), _by_pts(decode(path, pts=[3960, 0, 1000, 1960, 2000, 2040]))
    assert list(some) == [0, 1000, 1960, 2000, 2040, 3960]
    assert all((rgb == whole[p]).all() for p, rgb in some.items())


def test_frames_that_are_kept_are_never_written_again(tmp_path: Path) -> None:
    """The decoder reuses memory, but not while anybody holds a batch or a view of it."""
    path = _write(tmp_path / "clip.mp4", list(range(0, 1600, 40)))
    kept, alone = [], []
    for some in decode(path, batch=2):
        kept.append((some.rgb[1:], some.rgb[1].copy()))
    for some in decode(path, batch=2):
        alone.append(some.rgb[1].copy())
    assert all((view[0] == copy).all() for view, copy in kept)
    assert all((copy == other).all() for (_, copy), other in zip(kept, alone, strict=True))


def test_ranges_are_half_open(tmp_path: Path) -> None:
    """start_pts is in, end_pts is out; batches hold what they are told."""
    path = _write(tmp_path / "clip.mp4")
    assert _all_pts(decode(path, start_pts=40, end_pts=1007)) == [40, 73, 200, 1006]
    assert _all_pts(decode(path, start_pts=1001)) == [1006, 1007, 1500, 3000]
    assert [len(some) for some in decode(path, batch=3)] == [3, 3, 2]
    assert _all_pts(decode(path, end_pts=7)) == []


def test_a_frame_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Exact means exact: no nearest frame is handed out."""
    path = _write(tmp_path / "clip.mp4")
    with pytest.raises(MediaError, match="no frame at pts 41; the next one is at 73"):
        list(decode(path, pts=[41]))
    with pytest.raises(MediaError, match="ends before pts 9000"):
        list(decode(path, pts=[9000]))
    with pytest.raises(UsageError, match="pts alone"):
        list(decode(path, pts=[7], every_s=1.0))


def test_grid_keeps_the_first_frame_at_or_after_each_multiple() -> None:
    """Multiples count from pts 0; the first frame is kept; a frame after a gap serves several multiples once."""
    grid = Grid(0.5, MS)
    assert [p for p in VFR_PTS if grid.is_due(p)] == [7, 1006, 1500, 3000]
    late = Grid(0.5, MS, start_pts=1001)
    assert [p for p in (1006, 1007, 1500, 3000) if late.is_due(p)] == [1500, 3000]
    third = Grid(1 / 3, Fraction(1, 30))
    assert [p for p in range(31) if third.is_due(p)] == [0, 10, 20, 30]
    with pytest.raises(UsageError, match="positive"):
        Grid(0, MS)


def test_every_s_is_the_grid(tmp_path: Path) -> None:
    """decode(every_s) keeps the grid's frames."""
    assert _all_pts(decode(_write(tmp_path / "clip.mp4"), every_s=0.5)) == [7, 1006, 1500, 3000]


def test_rotation_of_the_container_is_applied(tmp_path: Path) -> None:
    """A clip whose header says a quarter turn comes out turned, also when resized, and probe says so."""
    path = _write(tmp_path / "clip.mp4", [0, 40, 80])
    plain = next(decode(path)).rgb
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix stands 40 bytes into the box's content
    assert struct.unpack(">9i", data[at : at + 36])[0] == 0x10000
    data[at : at + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    found, turned = probe(path), next(decode(path)).rgb
    assert (found.width_px, found.height_px, found.rotation_deg) == (64, 96, 270)
    assert (turned == np.rot90(plain, 3, axes=(1, 2))).all()
    assert next(decode(path, size_px=(32, 48))).rgb.shape == (3, 48, 32, 3)


def test_resize_is_one_path_for_live_frames_and_clips(tmp_path: Path) -> None:
    """A resized clip and its resized frames differ by rounding only; the same size is a copy; shapes are checked."""
    path = _write(tmp_path / "clip.mp4", [0, 40])
    whole, small = next(decode(path)).rgb[1], next(decode(path, size_px=(48, 32))).rgb[1]
    assert np.abs(resize(whole, (48, 32)).astype(int) - small).mean() < 2.0
    assert (resize(whole, (96, 64)) == whole).all()
    with pytest.raises(MediaError, match="uint8"):
        resize(whole.astype(np.float32), (4, 4))  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="below 1 px"):
        resize(whole, (0, 4))


def test_resize_gives_the_same_bytes_on_every_machine() -> None:
    """The bit-exact path: a checksum of the bytes made on x86-64 with FFmpeg 8."""
    rgb = _scene(1)[0]
    assert int((resize(rgb, (37, 23)).astype(np.int64) * np.arange(37 * 23 * 3).reshape(23, 37, 3)).sum()) == 347398304


def test_letterbox_maps_boxes_back() -> None:
    """The picture is centred on grey 114 and scale and pads give the place of each pixel."""
    rgb = np.full((50, 100, 3), 200, np.uint8)
    boxed, scale, pad_x, pad_y = letterbox(rgb, 64)
    assert (boxed.shape, scale, pad_x, pad_y) == ((64, 64, 3), 0.64, 0, 16)
    assert (boxed[:16] == 114).all()
    assert (boxed[48:] == 114).all()
    assert (boxed[16:48] == 200).all()
    assert letterbox(rgb, (200, 200))[1] == 2.0


def test_frames_check_themselves() -> None:
    """Wrong type, shape or order is refused when Frames are made."""
    rgb = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(MediaError, match="uint8"):
        Frames(rgb.astype(np.float32), np.array([0, 1]), MS)  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="int64"):
        Frames(rgb, np.array([0, 1], np.int32), MS)  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="increase"):
        Frames(rgb, np.array([1, 1]), MS)


@pytest.mark.parametrize("text", [b"", b"not a video\n" * 100, b"\x00" * 4096, b"RIFF\x00\x00", b"\x1a\x45\xdf\xa3"])
def test_files_that_are_not_clips_are_media_errors(tmp_path: Path, text: bytes) -> None:
    """Empty, text, zeroes and bare signatures give one MediaError with the file's name."""
    path = tmp_path / "bad.mp4"
    path.write_bytes(text)
    for use in (probe, lambda p: list(packets(p)), lambda p: list(decode(p))):
        with pytest.raises(MediaError, match=r"bad\.mp4"):
            use(path)


def test_a_missing_file_is_a_media_error(tmp_path: Path) -> None:
    """No file is no clip."""
    with pytest.raises(MediaError, match="No such file"):
        probe(tmp_path / "none.mp4")


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    """Every length below the whole is a MediaError: nothing is read as if it were complete."""
    data = _write(tmp_path / "whole.mp4", list(range(0, 400, 40))).read_bytes()
    cut = tmp_path / "cut.mp4"
    for n_bytes in [*range(0, len(data), len(data) // 40), len(data) - 1]:
        cut.write_bytes(data[:n_bytes])
        with pytest.raises(MediaError):
            probe(cut)


def test_a_fragmented_clip_is_readable_up_to_its_last_whole_fragment(tmp_path: Path) -> None:
    """After a power cut the recorder keeps `complete_bytes` of it, which is a sound clip."""
    path = _write(tmp_path / "frag.mp4", list(range(0, 4000, 40)), fragmented=True)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"mdat") + 40])
    with pytest.raises(MediaError, match="cut off"):
        probe(path)
    path.write_bytes(data[: complete_bytes(path)])
    found = probe(path)
    assert found.n_frames == 75
    assert _all_pts(decode(path)) == list(range(0, 3000, 40))


def test_limits_are_checked_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many pixels or frames: a MediaError that says the limit."""
    path = _write(tmp_path / "clip.mp4")
    monkeypatch.setattr(reader, "MAX_FRAMES", 5)
    with pytest.raises(MediaError, match="more than 5 frames"):
        probe(path)
    monkeypatch.setattr(reader, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(MediaError, match="legal: 1 to 6143 pixels"):
        probe(path)


@pytest.mark.parametrize("kind", ["hls", "dash", "concat", "sdp"])
def test_playlists_named_mp4_reach_nothing(tmp_path: Path, kind: str) -> None:
    """Playlists that point at this machine's own port are refused and no connection is made."""
    hits: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as catcher:
        port = catcher.getsockname()[1]
        watcher = threading.Thread(target=_count_hits, args=(catcher, hits), daemon=True)
        watcher.start()
        url = f"http://127.0.0.1:{port}/x.ts"
        secret = _write(tmp_path / "secret.mp4")
        text = {
            "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{url}\n#EXTINF:5,\n{secret}\n#EXT-X-ENDLIST\n",
            "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"'
            ' mediaPresentationDuration="PT5S"><Period>'
            f'<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{url}</BaseURL>'
            f"</Representation></AdaptationSet></Period></MPD>",
            "concat": f"ffconcat version 1.0\nfile '{url}'\nfile '{secret}'\n",
            "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
            f"m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        }[kind]
        path = tmp_path / "clip.mp4"
        path.write_text(text)
        with pytest.raises(MediaError):
            probe(path)
        with pytest.raises(MediaError):
            probe(url)
        socket.create_connection(("127.0.0.1", port)).close()  # the catcher catches
        watcher.join(timeout=5)
    assert len(hits) == 1


def _count_hits(catcher: socket.socket, hits: list[object]) -> None:
    connection, _ = catcher.accept()
    hits.append(connection)
    connection.close()
    catcher.settimeout(0.2)
    try:
        hits.append(catcher.accept())
    except TimeoutError:
        return


def _images(folder: Path, n: int, suffix: str) -> list[Path]:
    """Write n pictures as image files by PyAV."""
    paths = []
    for k, rgb in enumerate(_scene(n)):
        context = av.CodecContext.create("png" if suffix == ".png" else "mjpeg", "w")
        context.width, context.height, context.time_base = 96, 64, Fraction(1, 25)  # type: ignore[attr-defined]
        context.pix_fmt = "rgb24" if suffix == ".png" else "yuvj420p"  # type: ignore[attr-defined]
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=context.pix_fmt)  # type: ignore[attr-defined]
        frame.pts = 0
        data = b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])  # type: ignore[attr-defined]
        paths.append(folder / f"{k:03d}{suffix}")
        paths[-1].write_bytes(data)
    return paths


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_clip_of_images_is_a_clip(tmp_path: Path, suffix: str) -> None:
    """A tar of images probes and decodes like any clip; names and bytes are kept; the same input gives the same bytes."""
    paths, out = _images(tmp_path, 6, suffix), tmp_path / "clip.tar"
    pack_images(paths, out, rate="30000/1001")
    first = out.read_bytes()
    pack_images(paths, out, rate=Fraction(30000, 1001))
    assert out.read_bytes() == first
    assert all(path.read_bytes() in first and path.name.encode() in first for path in paths)
    found = probe(out)
    assert (found.container, found.n_frames, found.first_pts, found.end_pts) == ("tar", 6, 0, 6)
    assert (found.time_base, found.average_rate) == (Fraction(1001, 30000), Fraction(30000, 1001))
    rgb = np.concatenate([some.rgb for some in decode(out, batch=4)])
    assert np.abs(rgb.astype(int) - _scene(6)).mean() < (0.01 if suffix == ".png" else 8)
    assert _all_pts(decode(out, pts=[4, 1])) == [1, 4]
    assert _all_pts(decode(out, start_pts=2, end_pts=4, size_px=(48, 32))) == [2, 3]
    assert [p.pts for p in packets(out)] == [0, 1, 2, 3, 4, 5]


def test_a_clip_of_images_with_times(tmp_path: Path) -> None:
    """Given times are kept to the nanosecond, counted from the first."""
    out = tmp_path / "clip.tar"
    pack_images(_images(tmp_path, 3, ".png"), out, pts_ns=[1000, 1250, 5000], start_ns=1_700_000_000_000_000_000)
    found = probe(out)
    assert (found.first_pts, found.end_pts, found.time_base) == (0, 7750, Fraction(1, 1_000_000_000))
    assert found.start_ns == 1_700_000_000_000_000_000
    assert _all_pts(decode(out)) == [0, 250, 4000]


def test_tars_that_are_not_clips_are_refused(tmp_path: Path) -> None:
    """Without camloop.json, with times that do not fit, with other files, or cut: an error that says so."""
    paths, out = _images(tmp_path, 3, ".png"), tmp_path / "clip.tar"
    with pytest.raises(UsageError, match="strictly increasing"):
        pack_images(paths, out, pts_ns=[1, 1, 2])
    with pytest.raises(UsageError, match="either a rate"):
        pack_images(paths, out)
    with pytest.raises(UsageError, match="rate"):
        pack_images(paths, out, rate=0)
    with pytest.raises(UsageError, match=r"notes\.txt"):
        pack_images([tmp_path / "notes.txt"], out, rate=1)
    pack_images(paths, out, rate=1)
    data = out.read_bytes()
    out.write_bytes(data.replace(b"camloop.json", b"camlooq.json"))
    with pytest.raises(MediaError, match=r"camloop\.json|cannot be read"):
        probe(out)
    out.write_bytes(data[: data.rindex(b"IEND") - 20])
    with pytest.raises(MediaError, match=r"cut off|cannot be read"):
        probe(out)


def _counts(shared_data: Path) -> dict[str, int]:
    text = (shared_data / "SOURCES.md").read_text()
    rows = re.findall(r"^\| (videos/[^|]+?) \|.*?\| \d+x\d+, [\d.]+, (\d+), ", text, re.MULTILINE)
    return {name: int(n) for name, n in rows}


@pytest.mark.real
def test_frame_counts_of_all_real_clips(shared_data: Path) -> None:
    """probe and decode agree with the decoded counts of SOURCES.md on all 46 clips; three AVIs are sequential."""
    counts, sequential = _counts(shared_data), set()
    assert len(counts) == 46

    def read(name: str) -> tuple[str, Probe, list[int]]:
        found = probe(shared_data / name)
        return name, found, _all_pts(decode(shared_data / name, size_px=(32, 24), index=found.index))

    for name, found, pts in ThreadPoolExecutor(2).map(read, counts):  # decoding lets go of the interpreter
        n_frames = counts[name]
        assert (found.n_frames, len(pts)) == (n_frames, n_frames), name
        assert (found.first_pts, pts == sorted(set(pts))) == (pts[0], True), name
        assert found.end_pts > pts[-1]
        if found.index == "sequential":
            sequential.add(Path(name).name)
    assert sequential == {"highway_trees_60fps.avi", "mall_corridor_caviar.avi", "motorway_camera_osd.avi"}


@pytest.mark.real
def test_seeking_gives_the_same_pictures_as_reading_through(shared_data: Path) -> None:
    """For one clip of each kind, frames found by time equal the frames of a full decode, to the last bit."""
    names = ("highway_traffic_720p_vfr.mp4", "asl_gestures/book.mkv", "camera_traps_lowres/camera_trap_ir_empty.avi",
             "motorway_camera_osd.avi", "road_overhead_overlay.avi", "hallway_person.mp4", "car_overhead_day.mp4")
    for name in names:
        path = shared_data / "videos" / name
        index = probe(path).index
        whole = _by_pts(decode(path, size_px=(80, 60), index=index))
        wanted = sorted(np.random.default_rng(0).choice(list(whole), 12, replace=False).tolist())
        seen = _by_pts(decode(path, pts=wanted, size_px=(80, 60), index=index))
        assert list(seen) == wanted, name
        assert all((rgb == whole[p]).all() for p, rgb in seen.items()), name


@pytest.mark.real
def test_the_real_variable_rate_clip_keeps_its_times(shared_data: Path) -> None:
    """The VFR clip has uneven distances between frames, all of them from the file."""
    path = shared_data / "videos" / "highway_traffic_720p_vfr.mp4"
    pts = _all_pts(decode(path, size_px=(32, 18)))
    assert len(set(np.diff(pts).tolist())) > 1
    assert pts == sorted(p.pts for p in packets(path) if p.pts is not None)


@pytest.mark.real
def test_all_action_clips_probe(shared_data: Path) -> None:
    """The 164 labelled clips are sound."""
    paths = [p for p in sorted((shared_data / "actions").rglob("*")) if p.suffix in LEGAL]
    assert len(paths) == 164
    assert {found.index for found in ThreadPoolExecutor(2).map(probe, paths)} == {"packets"}
