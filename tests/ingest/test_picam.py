"""What of a Pi camera can be tested without one; the rest is in tests/rigs, on the real picamera2."""

from __future__ import annotations

import platform
import re
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from infra import cli
from infra.errors import DeviceError, MissingExtra, UsageError
from infra.picture import rgb_of_yuv420
from ingest.config import AgentConfig, CameraConfig
from ingest.mailbox import Mailbox
from ingest.picam import PiPictures, available_cameras, open_picam
from ingest.picam_device import STALL_S, has_hardware_encoder
from ingest.picam_frames import FrameNumbers, controls_of, parameter_sets
from ingest.picam_settings import PiSettings, parse_picam
from ingest.picam_training import LOCK_WITHIN_FRAMES, LOCKED_FRAMES, TrainingMode
from ingest.source import RECORDER_SLOW, SOURCE_DROPPED

FRAME_NS = 33_333_000


def test_an_address_says_what_is_asked_of_the_camera() -> None:
    """Options of the address become settings; those of a camera's table are weaker."""
    settings = parse_picam("picam://1?width=640&height=480&fps=14.5&training=lock&seed=3&rotate=180")
    assert settings == PiSettings(number=1, width=640, height=480, fps=14.5, training="lock", seed=3, rotate=180)
    table = {"size": (320, 240), "fps": 10.0, "training": True, "bitrate": None}
    assert parse_picam("picam://0?fps=12", table) == PiSettings(width=320, height=240, fps=12.0, training="jitter")
    assert parse_picam("picam://0").frame_us == 33_333


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("picam://", "picam://0"),
        ("picam://front", "picam://0"),
        ("picam://0/x", "picam://0"),
        ("picam://0?widht=640", "did you mean width"),
        ("picam://0?width=641", "even number"),
        ("picam://0?width=wide", "whole number"),
        ("picam://0?fps=0", "more than 0, at most 1000"),
        ("picam://0?training=maybe", "'lock', 'jitter'"),
        ("picam://0?rotate=90", "0, 180"),
        ("picam://0?bitrate=1", "10000 to"),
        ("picam://0?number=1", "stands after"),
        ("picam://0?settle_s=900", "0 to 60"),
    ],
)
def test_a_wrong_address_is_refused_with_what_is_legal(url: str, words: str) -> None:
    """No camera is needed to refuse an address."""
    with pytest.raises(UsageError, match=words):
        parse_picam(url)


@pytest.mark.parametrize(
    ("size", "small", "made"), [((1280, 720), 320, (320, 180)), ((640, 480), 320, (320, 240)), ((128, 128), 320, (128, 128))]
)
def test_the_small_picture_has_the_shape_of_the_large_one(size: tuple[int, int], small: int, made: tuple[int, int]) -> None:
    """Even sides, never larger than what is recorded; none when none is asked for."""
    assert PiSettings(width=size[0], height=size[1], small=small).small_px == made
    assert PiSettings(small=0).small_px is None


def test_without_picamera2_the_remedy_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the Debian package and the kind of environment that sees it."""
    monkeypatch.setitem(sys.modules, "picamera2", None)
    for look in (available_cameras, lambda: open_picam("picam://0")):
        with pytest.raises(MissingExtra, match=r"apt install python3-picamera2.*--system-site-packages"):
            look()


@pytest.mark.parametrize(("n_cameras", "words"), [(0, "there are: none; look at the cable"), (1, "picam://0 (imx708)")])
def test_a_camera_that_is_not_there_says_what_is(n_cameras: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None at all, or another number."""
    monkeypatch.setitem(sys.modules, "picamera2", fake_picamera2(n_cameras))
    with pytest.raises(UsageError, match=re.escape(words)):
        open_picam("picam://3")


def test_a_camera_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """libcamera's own reason, and who may hold it."""
    monkeypatch.setitem(sys.modules, "picamera2", fake_picamera2(1))
    with pytest.raises(DeviceError, match=r"picam://0 cannot be opened: Device or resource busy; .*rpicam-vid"):
        open_picam("picam://0")


def fake_picamera2(n_cameras: int) -> types.ModuleType:
    """Return a picamera2 that lists cameras and opens none."""

    class Picamera2:
        @staticmethod
        def global_camera_info() -> list[dict[str, object]]:
            return [{"Model": "imx708", "Id": f"/base/{number}"} for number in range(n_cameras)]

        def __init__(self, number: int) -> None:
            raise RuntimeError("Camera __init__ sequence did not complete.") from RuntimeError("Device or resource busy")

    module = types.ModuleType("picamera2")
    module.Picamera2 = Picamera2  # type: ignore[attr-defined]
    return module


class SlowCamera:
    """What `PiPictures` uses of a picamera2: films on its own clock, no slower than every 200 ms."""

    camera_controls: ClassVar = {"FrameDurationLimits": (10_000, 200_000, 33_333)}

    @staticmethod
    def global_camera_info() -> list[dict[str, object]]:
        return [{"Model": "imx708", "Id": "/base/0"}]

    def __init__(self, number: int) -> None:
        self.pre_callback: Callable[[object], None] = lambda request: None

    def create_video_configuration(self, **asked: dict[str, object]) -> dict[str, dict[str, object]]:
        self.set_controls(asked["controls"])
        return asked

    def configure(self, asked: dict[str, dict[str, object]]) -> None:
        self.camera_configuration = lambda: asked

    def set_controls(self, controls: dict[str, object]) -> None:
        self.frame_us = controls["FrameDurationLimits"][0]  # type: ignore[index]

    def start(self) -> None:
        def film() -> None:
            for number in range(40):
                sensor_ns = number * self.frame_us * 1000
                metadata = {"SensorTimestamp": sensor_ns, "FrameDuration": self.frame_us}
                picture = np.full((16, 16, 3), number, np.uint8)
                self.pre_callback(
                    types.SimpleNamespace(
                        get_metadata=lambda metadata=metadata: metadata, make_array=lambda name, picture=picture: picture,
                        acquire=lambda: None, release=lambda: None, request=None,
                    )
                )  # fmt: skip
                time.sleep(0.002)

        threading.Thread(target=film, daemon=True).start()

    def close(self) -> None: ...


def test_a_rate_below_the_cameras_least_is_taken_out_of_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture every two seconds of a camera that films at least five a second; a stream is not made of that."""
    for name, made in (("picamera2", types.ModuleType("picamera2")), ("libcamera", types.ModuleType("libcamera"))):
        monkeypatch.setitem(sys.modules, name, made)
    sys.modules["picamera2"].Picamera2 = SlowCamera  # type: ignore[attr-defined]
    sys.modules["libcamera"].ColorSpace = types.SimpleNamespace(Smpte170m=lambda: None)  # type: ignore[attr-defined]
    sys.modules["libcamera"].Transform = lambda **flips: None  # type: ignore[attr-defined]
    monkeypatch.setattr("ingest.picam.STALL_S", 0.3)
    monkeypatch.setattr("ingest.picam.HELD_PICTURES", 40)
    source = open_picam("picam://0?width=16&height=16", options={"fps": 0.5})
    assert isinstance(source, PiPictures)
    seen = []
    with pytest.raises(DeviceError, match="gave no frame"):
        for frame in source:
            seen.append((frame.frame_number, frame.sensor_ns))
    assert seen == [(0, 0), *((tick, (tick * 20 - 4) * 100_000_000) for tick in range(1, 5))], "a quarter early at most"


def test_what_is_filmed_for_a_slow_rate() -> None:
    """A whole part of the time between two pictures, at least one a second, and within the agent's patience."""
    assert PiSettings(fps=30).film_us() == 33_333
    assert PiSettings(fps=1 / 30).film_us() == 1_000_000 and PiSettings(fps=0.7).film_us() == 1_428_571 // 2
    assert PiSettings(fps=10).film_us(33_333) <= 33_333
    assert AgentConfig().stall_s > STALL_S
    urls = ("picam://0?width=16&fps=.1", "picam://0", "a.mp4?fps=9")
    rates = [CameraConfig(id="a", url=url, fps=0.5).asked_fps for url in urls]
    assert rates == [0.1, 0.5, 0.5], "the agent waits for the rate that holds"


def test_the_encoder_is_what_the_machine_has(tmp_path: Path) -> None:
    """A Pi 3 or 4 names its hardware encoder; a Pi 5 has no such device."""
    name = tmp_path / "name"
    assert not has_hardware_encoder(name)
    name.write_text("bcm2835-codec-encode\n")
    assert has_hardware_encoder(name)
    name.write_text("HD Pro Webcam C920\n")
    assert not has_hardware_encoder(name)


def numbers(times_ns: list[int], *, held: int = 2, duration_ns: int = FRAME_NS, lag_ns: int = 0) -> list[tuple[int, str]]:
    """Return numbers and causes of frames taken at these times."""
    counted = FrameNumbers(FRAME_NS)
    return [counted.number(at, duration_ns, n_held=held, n_buffers=6, lag_ns=lag_ns) for at in times_ns]


def test_a_jump_of_the_sensor_time_is_a_jump_of_the_number() -> None:
    """Missing frames have numbers, a jittering clock makes none."""
    jittered = [0, FRAME_NS + 4_000_000, 2 * FRAME_NS - 4_000_000, 3 * FRAME_NS]
    assert [number for number, _ in numbers(jittered)] == [0, 1, 2, 3]
    assert numbers([0, FRAME_NS, 18 * FRAME_NS]) == [(0, SOURCE_DROPPED), (1, SOURCE_DROPPED), (18, SOURCE_DROPPED)]


def test_a_long_exposure_is_no_loss() -> None:
    """In the dark a frame may take five times as long: its own duration counts, not the one that was asked for."""
    long_ns = 5 * FRAME_NS
    assert [number for number, _ in numbers([0, long_ns, 2 * long_ns], duration_ns=long_ns)] == [0, 1, 2]
    assert [number for number, _ in numbers([0, long_ns], duration_ns=0)] == [0, 5]


@pytest.mark.parametrize("short", [{"held": 6}, {"lag_ns": 5 * FRAME_NS}])
def test_a_host_without_a_free_buffer_is_at_fault(short: dict[str, int]) -> None:
    """All buffers held, or finished and unfetched: the gap after that is the host's doing."""
    assert numbers([0, 9 * FRAME_NS], **short)[1] == (9, RECORDER_SLOW)


def test_controls_are_what_the_frame_was_taken_with() -> None:
    """Names with units; what a camera does not tell is absent."""
    metadata = {"ExposureTime": 19_998, "AnalogueGain": 1.123456, "ColourGains": (1.5, 2.25), "FocusFoM": 812, "AeState": 2}
    wanted = {"exposure_us": 19998.0, "gain": 1.1235, "focus": 812.0, "red_gain": 1.5, "blue_gain": 2.25}
    assert controls_of(metadata) == wanted


@pytest.mark.parametrize("start", [b"\0\0\1", b"\0\0\0\1"])
def test_parameter_sets_are_cut_from_the_first_keyframe(start: bytes) -> None:
    """SPS and PPS with four-byte start codes, whatever the encoder wrote, and nothing of the picture."""
    sps, pps, picture = b"\x67\x42\xc0\x1e\xda", b"\x68\xce\x3c\x80", b"\x65\x88\0\0\1\x67no"
    data = start + sps + start + pps + start + b"\x06\x05sei" + start + picture
    assert parameter_sets(data) == b"\0\0\0\1" + sps + b"\0\0\0\1" + pps
    assert parameter_sets(start + b"\x41\x9a" + start + sps) == b"" == parameter_sets(b"")


def test_a_padded_yuv_buffer_becomes_the_right_colours() -> None:
    """Rows longer than the picture are cut; red stays red (BT.601, limited range)."""
    width, height, stride = 32, 16, 64
    luma = np.full((height, stride), 81, np.uint8)
    chroma_u, chroma_v = np.full((height // 2, stride // 2), 90, np.uint8), np.full((height // 2, stride // 2), 240, np.uint8)
    luma[:, width:], chroma_u[:, width // 2 :], chroma_v[:, width // 2 :] = 0, 0, 0
    rgb = rgb_of_yuv420(np.concatenate([luma.ravel(), chroma_u.ravel(), chroma_v.ravel()]), (width, height), stride)
    assert rgb.shape == (height, width, 3) and rgb.dtype == np.uint8
    assert np.abs(rgb.astype(int) - (255, 0, 0)).max() <= 3


def obey(mode: TrainingMode, n: int, *, deaf: bool = False) -> list[dict[str, float]]:
    """Show `n` frames of a camera that does what it is told two frames later; return what each used frame was taken with."""
    wish = {"ExposureTime": 20_000, "AnalogueGain": 2.0, "ColourGains": (1.5, 2.0)}
    waiting, used = [], []
    for at in range(n):
        if len(waiting) >= 2 and not deaf:
            wish |= waiting.pop(0)
        drift = {} if mode.ready or deaf else {"AnalogueGain": wish["AnalogueGain"] * (1 if at > 10 else 1.5)}
        metadata = {**wish, **drift, "SensorTimestamp": at * FRAME_NS}
        was_ready = mode.ready
        waiting.append(dict(mode.see(metadata)))
        if was_ready:
            used.append(controls_of(metadata))
    return used


def test_training_mode_settles_and_locks_before_the_first_frame() -> None:
    """Nothing is used before the settling time and several obeying frames; then exposure and colours stand still."""
    mode = TrainingMode(jitter=False, settle_s=1.0, gain_limits=(1.0, 16.0), seed=0)
    used = obey(mode, 200)
    assert len(used) == 200 - 31 - LOCKED_FRAMES - 1
    assert {tuple(sorted(one.items())) for one in used} == {
        (("blue_gain", 2.0), ("exposure_us", 20000.0), ("gain", 2.0), ("red_gain", 1.5))
    }


def test_jitter_draws_iso_and_white_balance_for_every_frame() -> None:
    """ISO 100 to 800 within the sensor's own limits, white balance within half a unit; the same seed draws the same."""
    first, again = (obey(TrainingMode(jitter=True, settle_s=0.0, gain_limits=(1.0, 6.0), seed=5), 400)[3:] for _ in range(2))
    gains = [one["gain"] for one in first]
    assert first == again and len(set(gains)) > 300
    assert 1 <= min(gains) < 1.3 and 5.7 < max(gains) <= 6.0
    for name, middle in (("red_gain", 1.5), ("blue_gain", 2.0)):
        drawn = [one[name] for one in first]
        assert middle - 0.5 <= min(drawn) < middle - 0.4 and middle + 0.4 < max(drawn) <= middle + 0.5
    assert {one["exposure_us"] for one in first} == {20000.0}


def test_a_camera_that_does_not_obey_is_an_error() -> None:
    """A gain that never locks ends the recording with what was wanted; a USB camera is told at once."""
    mode = TrainingMode(jitter=False, settle_s=0.0, gain_limits=(1.0, 16.0), seed=0)
    good = {"ExposureTime": 20_000, "AnalogueGain": 2.0, "ColourGains": (1.5, 2.0)}
    with pytest.raises(DeviceError, match="did not lock"):
        for at in range(LOCK_WITHIN_FRAMES + 2):
            mode.see({**good, "AnalogueGain": 2.0 + at % 2, "SensorTimestamp": at * FRAME_NS})
    with pytest.raises(DeviceError, match="USB"):
        TrainingMode(jitter=False, settle_s=0.0, gain_limits=(1.0, 1.0), seed=0).see({"SensorTimestamp": 1})


def test_a_full_mailbox_refuses_until_a_keyframe() -> None:
    """What waits stays; after a refusal nothing is taken that needs what was refused."""
    box: Mailbox[int] = Mailbox(10)
    assert [box.put(n, 4, stands_alone=n == 0) for n in range(4)] == [True, True, False, False]
    assert box.get(0) == 0
    assert not box.put(4, 4, stands_alone=False)
    assert box.put(5, 4, stands_alone=True) and not box.put(6, 4)
    assert [box.get(0), box.get(0), box.get(0)] == [1, 5, None]


def test_a_closed_mailbox_wakes_its_reader() -> None:
    """What waited is handed back, the reader gets nothing, nothing more is taken."""
    box: Mailbox[int] = Mailbox(10)
    box.put(1, 1)
    assert box.close() == [1] and not box.put(2, 1)
    other: Mailbox[int] = Mailbox(10)
    closing = threading.Timer(0.05, other.close)
    closing.start()
    began = time.monotonic()
    assert other.get(5.0) is None and time.monotonic() - began < 2
    closing.join()


def test_a_32_bit_system_is_told_at_the_door(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command, --help included, says in one line that 64 bits are needed."""
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    monkeypatch.setattr(platform, "machine", lambda: "armv7l")
    for argv in ([], ["--help"], ["record", "picam://0"]):
        assert cli.main(argv) == 2
        said = capsys.readouterr()
        assert said.out == "" and "64-bit" in said.err and "armv7l" in said.err and said.err.count("\n") == 1
