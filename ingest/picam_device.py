"""One Pi camera in picamera2's hands: opened, configured, started, watched frame by frame, stopped by a deadline.

What the stream (`PiCamera`) and the pictures (`PiPictures`) have in common. picamera2 is imported here, when a camera is
opened: it comes from the Pi's own packages.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.clock import Clock
from infra.errors import DeviceError, MissingExtra, UsageError
from infra.log import Log
from ingest.picam_frames import FrameNumbers, controls_of
from ingest.picam_settings import PiSettings
from ingest.picam_training import TrainingMode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

N_BUFFERS = 6  # of the camera; picamera2's own number for video
STALL_S = 5.0  # no camera films less than one frame a second; less than the 8 s after which the agent's watchdog kills
STOP_S = 5.0
HARDWARE_ENCODER = Path("/sys/class/video4linux/video11/name")  # where picamera2's H264Encoder opens it
_log = Log("ingest.picam")


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraInfo:
    """One camera that libcamera sees: its number for `picam://NUMBER`, the sensor's model, and libcamera's own name for it."""

    number: int
    model: str
    libcamera_id: str


@dataclass(slots=True, eq=False)
class Seen:
    """What was kept of one frame when its buffer passed."""

    sensor_ns: int
    number: int
    lost: str
    controls: Mapping[str, float]
    small: npt.NDArray[np.uint8] | None = None
    data: bytes = b""
    is_keyframe: bool = True
    request: Any = None

    @property
    def n_bytes(self) -> int:
        return len(self.data) + (0 if self.small is None else self.small.nbytes)


def available_cameras() -> tuple[CameraInfo, ...]:
    """Return the cameras that libcamera sees on this machine, in the order of their numbers.

    Raises:
        MissingExtra: no picamera2.
    """
    found = _picamera2().Picamera2.global_camera_info()
    return tuple(CameraInfo(number=at, model=str(one["Model"]), libcamera_id=str(one["Id"])) for at, one in enumerate(found))


def has_hardware_encoder(name: Path = HARDWARE_ENCODER) -> bool:
    """Say whether this machine encodes H.264 in hardware: a Pi 3 or 4, not a Pi 5."""
    try:
        return "codec" in name.read_text()  # bcm2835-codec-encode
    except OSError:
        return False


def _picamera2() -> Any:
    try:
        import picamera2
    except ImportError as error:
        raise MissingExtra(
            f"picam:// needs picamera2 ({error}): sudo apt install python3-picamera2, and an environment that sees it: "
            "python3 -m venv --system-site-packages"
        ) from error
    return picamera2


class Device:
    """One opened camera: what `PiCamera` and `PiPictures` have in common."""

    def __init__(self, settings: PiSettings, clock: Clock, pixels: str, on_frame: Callable[[Any, Seen], None]) -> None:
        self.settings = settings
        self._clock, self._on_frame = clock, on_frame
        self.camera = _open(settings)
        try:
            self._configure(pixels, settings.small_px if pixels == "YUV420" else None)
        except UsageError:
            self.camera.close()
            raise
        except RuntimeError as error:
            self.camera.close()
            raise self._refused("configured", error) from error
        self.numbers = FrameNumbers(self.film_us * 1000)
        self.training: TrainingMode | None = None
        if settings.training != "off":
            low, high, _ = self.camera.camera_controls.get("AnalogueGain", (1.0, 1.0, 1.0))
            self.training = TrainingMode(
                jitter=settings.training == "jitter", settle_s=settings.settle_s, gain_limits=(low, high), seed=settings.seed
            )
        self.ready = threading.Event()
        self.error: DeviceError | None = None
        self._passed: list[Any] = []

    def _configure(self, pixels: str, small_px: tuple[int, int] | None) -> None:
        import libcamera

        wanted = (self.settings.width, self.settings.height)
        upside_down = self.settings.rotate == 180
        thins = pixels != "YUV420"  # a stream cannot leave out frames
        frame_us = self.settings.film_us() if thins else self.settings.frame_us
        self.camera.configure(
            self.camera.create_video_configuration(
                main={"size": wanted, "format": pixels},
                lores=None if small_px is None else {"size": small_px, "format": "YUV420"},
                # One matrix for every size, the one that a decoder takes where a stream says nothing: libcamera's default
                # changes at 1280x720.
                colour_space=libcamera.ColorSpace.Smpte170m(),
                transform=libcamera.Transform(hflip=upside_down, vflip=upside_down),
                controls={"FrameDurationLimits": (frame_us, frame_us)},
                buffer_count=N_BUFFERS,
                display=None,
            )
        )
        streams = self.camera.camera_configuration()
        if tuple(streams["main"]["size"]) != wanted:
            most = "x".join(map(str, streams["main"]["size"]))
            asked = f"{wanted[0]}x{wanted[1]}"
            raise UsageError(f"camera {self.settings.number} gives {most} where {asked} was asked; ask for what it gives")
        least_us, most_us, _ = self.camera.camera_controls["FrameDurationLimits"]
        if thins and least_us <= most_us < frame_us:
            frame_us = max(least_us, self.settings.film_us(most_us))
            self.camera.set_controls({"FrameDurationLimits": (frame_us, frame_us)})
        if not least_us - 1 <= frame_us <= max(most_us, least_us) + 1:
            legal = f"{1e6 / most_us:.3g} to {1e6 / least_us:.4g}"
            raise UsageError(
                f"camera {self.settings.number} at {wanted[0]}x{wanted[1]}: fps {self.settings.fps:g}; legal: {legal}"
            )
        self.film_us, self.small_px = frame_us, small_px
        self.small_stride = 0 if small_px is None else int(streams["lores"]["stride"])

    def start(self) -> None:
        """Start filming; return when the frames are worth recording (at once, or when training mode has locked)."""
        self.camera.pre_callback = self._see
        try:
            self.camera.start()
        except (RuntimeError, OSError) as error:
            raise self._refused("started", error) from error
        if self.training is not None and not self.ready.wait(self.settings.settle_s + STALL_S):
            raise self.stalled()
        if self.error is not None:
            raise self.error

    def encode(self, encoder: Any, output: Any) -> None:
        """Start the encoder; it begins with a keyframe.

        Raises:
            DeviceError: it does not start.
        """
        try:
            self.camera.start_encoder(encoder, output, name="main")
        except (RuntimeError, OSError) as error:
            raise self._refused("encoded", error) from error

    def _refused(self, what: str, error: Exception) -> DeviceError:
        return DeviceError(
            f"camera picam://{self.settings.number} cannot be {what} at {self.settings.width}x{self.settings.height}: {error}; "
            "look whether another program holds it, and at `dmesg`"
        )

    def stalled(self) -> DeviceError:
        """Return the error for a camera that gives nothing."""
        return self.error or DeviceError(
            f"camera {self.settings.number} gave no frame for {STALL_S:g} s; look at its cable, then restart it"
        )

    def _see(self, request: Any) -> None:
        """Take note of one frame, in picamera2's thread, before its encoder sees it."""
        metadata = request.get_metadata()
        sensor_ns = int(metadata["SensorTimestamp"])
        self._passed = [*(one for one in self._passed if one.request is not None), request]  # not given back yet
        duration_ns = int(metadata.get("FrameDuration", 0)) * 1000
        lag_ns = max(0, self._clock.mono_ns() - sensor_ns)
        number, lost = self.numbers.number(sensor_ns, duration_ns, n_held=len(self._passed), n_buffers=N_BUFFERS, lag_ns=lag_ns)
        if self.training is not None and self.error is None:
            try:
                wanted = self.training.see(metadata)
            except DeviceError as error:
                self.error = error
                self.ready.set()
                return
            if wanted:
                self.camera.set_controls(dict(wanted))
            if not self.training.ready:
                return
        self.ready.set()
        small = request.make_buffer("lores") if self.small_px is not None else None
        self._on_frame(request, Seen(sensor_ns, number, lost, controls_of(metadata), small))

    def small_rgb(self, seen: Seen) -> npt.NDArray[np.uint8] | None:
        """Return the small picture of a frame: uint8 (h, w, 3) RGB."""
        if seen.small is None or self.small_px is None:
            return None
        from infra.picture import rgb_of_yuv420

        return rgb_of_yuv420(seen.small, self.small_px, self.small_stride)

    def stop(self, encoder: Any = None) -> None:
        """Stop and close the camera; one that does not return within `STOP_S` is left behind."""

        def close() -> None:
            if encoder is not None and encoder.running:
                self.camera.stop_encoder(encoder)
            self.camera.close()

        closing = threading.Thread(target=close, name=f"close-picam-{self.settings.number}", daemon=True)
        closing.start()
        closing.join(STOP_S)
        if closing.is_alive():
            atexit.unregister(self.camera.close)  # it would hang there as well
            _log.warning("camera_did_not_stop", number=self.settings.number, waited_s=STOP_S)


def _open(settings: PiSettings) -> Any:
    """Return the opened camera; the refusal of one that is not there says which are."""
    library, cameras = _picamera2(), available_cameras()
    if settings.number >= len(cameras):
        there = ", ".join(f"picam://{one.number} ({one.model})" for one in cameras) or "none; look at the cable and its side"
        raise UsageError(f"no camera picam://{settings.number}; there are: {there}")
    try:
        return library.Picamera2(settings.number)
    except RuntimeError as error:
        reason = error.__cause__ or error
        raise DeviceError(
            f"camera picam://{settings.number} cannot be opened: {reason}; "
            "another program may hold it (rpicam-vid, a second recorder)"
        ) from error
