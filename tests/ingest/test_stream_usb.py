"""USB cameras, as far as that goes without one: what is asked of the driver, JPEGs kept as they come, devices that are none."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from infra.errors import DeviceError, UsageError
from infra.remux import PacketWriter
from infra.video import probe
from ingest import usb
from ingest.recorder import Recorder
from ingest.source import DAMAGED, open_camera
from ingest.spool import Spool


def jpegs(n_frames: int) -> list[bytes]:
    """Return pictures as a USB camera sends them."""
    encoder: Any = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 160, 120, "yuvj420p", Fraction(1, 10)
    noise = np.random.default_rng(1).integers(0, 256, (120, 160, 3), np.uint8)
    made = []
    for number in range(n_frames):
        picture: Any = av.VideoFrame.from_ndarray(np.roll(noise, number, axis=1), format="rgb24").reformat(format="yuvj420p")
        picture.pts = number
        made += [bytes(packet) for packet in encoder.encode(picture)]
    return made


def test_motion_jpeg(tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """H.264 is asked for first, JPEG next, with size and rate; the JPEGs are kept bit for bit, a broken one is listed."""
    sent = jpegs(12)
    sent[5] = b"\x00" * 500
    film, device, asked = tmp_path / "film.mp4", tmp_path / "video7", []
    writer = PacketWriter(film, "mjpeg", 160, 120, Fraction(1, 90_000))
    for number, data in enumerate(sent):
        writer.add(data, number * 9000, is_keyframe=True)
    writer.close()
    real_open = av.open

    def open_device(path: str, *others: Any, **more: Any) -> Any:
        if path != str(device):
            return real_open(path, *others, **more)
        options = more["options"]
        asked.append((path, more["format"], options))
        if options.get("input_format") == "h264":
            raise av.error.InvalidDataError(1, "it has no H.264")
        return real_open(str(film))

    monkeypatch.setattr(usb.av, "open", open_device)
    device.touch()
    camera = open_camera(f"v4l2://{device}", size_px=(160, 120), fps=10, small_px=(32, 24), options={"reopen_s": 0.1})
    recorded = Recorder(camera, spool).record(max_frames=11)
    options = {"video_size": "160x120", "framerate": "10"}
    assert asked[:2] == [(str(device), "v4l2", {**options, "input_format": kind}) for kind in ("h264", "mjpeg")]
    (clip,) = spool.pending()
    with real_open(str(clip.path)) as container:
        assert [bytes(packet) for packet in container.demux(video=0) if packet.size] == sent[:5] + sent[6:]
    assert (clip.sidecar.camera_id, probe(clip.path).codec, recorded.n_dropped) == ("video7", "mjpeg", 1)
    assert [(gap.before_frame, gap.cause) for gap in clip.sidecar.gaps] == [(5, DAMAGED)]


def test_raw_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that gives neither H.264 nor JPEG is told so."""
    raw = tmp_path / "film.avi"
    with av.open(str(raw), "w") as out:
        stream: Any = out.add_stream("rawvideo", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        picture: Any = av.VideoFrame.from_ndarray(np.zeros((24, 32, 3), np.uint8), format="rgb24")
        out.mux(stream.encode(picture.reformat(format="yuv420p")))
    real_open = av.open
    monkeypatch.setattr(usb.av, "open", lambda path, **more: real_open(str(raw)))
    with pytest.raises(DeviceError, match="sends rawvideo; legal: h264, hevc, mjpeg"):
        open_camera(f"v4l2://{raw}")


def test_no_device() -> None:
    """A device that is not there: the message says which are; what is no camera is no camera."""
    with pytest.raises(UsageError, match=r"v4l2:///dev/video99: no such device; there (are v4l2|is none)"):
        open_camera("v4l2:///dev/video99")
    with pytest.raises(DeviceError, match="camera v4l2:///dev/null: "):
        open_camera("v4l2:///dev/null", camera_id="yard")
