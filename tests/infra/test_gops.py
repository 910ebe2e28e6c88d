"""Chosen GOPs: pictures that nobody needs may be left out, those that somebody needs are the same."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from infra import video
from infra.errors import MediaError

RATE, FRAMES, GOP = 25, 50, 25


def write(path: Path, codec: str, options: dict[str, str]) -> Path:
    """Write a clip of two GOPs in which a square moves over noise."""
    rng = np.random.default_rng(5)
    ground = rng.integers(0, 255, (96, 128, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 128, 96, "yuv420p", GOP
        stream.codec_context.time_base = Fraction(1, RATE)
        for number in range(FRAMES):
            picture = ground.copy()
            picture[20:50, 2 * number : 2 * number + 20] = 250
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def with_b_frames(tmp_path: Path) -> Path:
    """Return an H.264 clip whose packets are not in the order of its pictures."""
    x264 = {"x264-params": f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=3:b-adapt=0:b-pyramid=none"}
    return write(tmp_path / "b.mp4", "libx264", x264)


def test_pictures_that_nobody_needs_are_left_out_and_the_others_are_the_same(with_b_frames: Path) -> None:
    """Of 50 pictures 36 are B-frames; with two needed those two come, and each picture that comes is what it was."""
    with video.open_gops(with_b_frames) as gops:
        every = {picture.pts: picture.rgb().copy() for picture in gops.pictures(0, len(gops.packets))}
        needed = sorted(every)[1:3]
        fewer = {picture.pts: picture.rgb().copy() for picture in gops.pictures(0, len(gops.packets), set(needed))}
        again = [picture.pts for picture in gops.pictures(0, len(gops.packets))]
    assert len(every) == FRAMES and again == sorted(every)
    assert set(needed) < set(fewer) and len(fewer) < FRAMES / 2
    for pts, rgb in fewer.items():
        np.testing.assert_array_equal(rgb, every[pts])


def test_a_needed_picture_that_is_not_there_is_an_error(with_b_frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving out is for what nobody needs: a lost picture that somebody needs says so."""
    with video.open_gops(with_b_frames) as gops:
        last = max(packet.pts or 0 for packet in gops.packets[0])
        monkeypatch.setattr(type(gops), "_decoded", lambda self, first, end, needed: iter(()))
        assert list(gops.pictures(0, 1, set())) == []
        with pytest.raises(MediaError, match="gave 0 pictures"):
            list(gops.pictures(0, 1, {last}))


def test_hevc_is_decoded_whole(tmp_path: Path) -> None:
    """Whether an HEVC picture is free of references depends on its temporal layer, so none is left out."""
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no libx265 to write an HEVC clip with")
    path = write(tmp_path / "h.mp4", "libx265", {"x265-params": f"keyint={GOP}:bframes=3:log-level=none"})
    with video.open_gops(path) as gops:
        assert len(list(gops.pictures(0, len(gops.packets), set()))) == FRAMES
