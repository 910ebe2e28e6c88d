"""Pi cameras through picamera2: `PiCamera` gives H.264 frames as encoded, `PiPictures` gives pictures.

picamera2 works in a thread of its own; for every frame that the sensor made it calls `_see` here, then the encoder, then
hands the buffer back to the camera. What this module keeps of a frame (metadata, a small picture, its H.264 bytes) waits in
a mailbox of bounded size until the recorder takes it, so a slow disk never holds the camera's six buffers.

- The encoder is the one that the machine has: hardware on a Pi 3 and 4, libx264 on a Pi 5 and elsewhere.
- A frame's time is its SensorTimestamp; its number follows from the times: a jump is a loss, with the culprit in `lost`.
- Metadata become `controls`: what the frame was really taken with, not what was asked for.
- A camera that gives nothing for `STALL_S` ends with a DeviceError; one that never returns from *stop* is left behind after
  `STOP_S` for the watchdog to kill (picamera2 #1392 and #1264: both happen, and no thread can mend them).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any, cast

from infra.clock import Clock, SystemClock, is_synchronised
from infra.keys import check_name, new_id
from infra.log import Log
from infra.records import ClockQuality
from ingest.host import boot_id
from ingest.mailbox import Mailbox
from ingest.picam_device import N_BUFFERS, STALL_S, Device, Seen, available_cameras, has_hardware_encoder
from ingest.picam_frames import parameter_sets
from ingest.picam_settings import SLOWEST_FPS, PiSettings, parse_picam
from ingest.source import RECORDER_SLOW, EncodedFrame, SourceFrame, StreamFormat
from ingest.take import thinned

__all__ = ["PiCamera", "PiPictures", "PiSettings", "available_cameras", "open_picam"]

HELD_PICTURES = 2  # buffers that may wait for a slow reader of pictures
MAX_WAITING_BYTES = 24 << 20  # H.264 and small pictures that may wait for a slow disk: 10 s of 720p
MAX_CLOCK_LAG_NS = 60_000_000_000
_NS_PER_S = 1_000_000_000
_log = Log("ingest.picam")


def _quality(clock: Clock, sensor_ns: int) -> ClockQuality:
    """Say how good UTC is: the host is synchronised, and the sensor's time is on the host's monotonic clock."""
    return "sensor" if is_synchronised() and 0 <= clock.mono_ns() - sensor_ns < MAX_CLOCK_LAG_NS else "unknown"


class _Filming:
    """What both kinds of a Pi camera are: who films, since when, and what UTC a sensor time is."""

    def __init__(self, settings: PiSettings, camera_id: str | None, host_id: str, clock: Clock | None) -> None:
        self.camera_id = check_name(camera_id or f"{host_id}-picam{settings.number}", "camera")
        self.host_id = host_id
        self.site: str | None = None
        self.boot_id, self.recording_id = boot_id(), new_id()
        self.width_px, self.height_px = settings.width, settings.height
        self.clock: ClockQuality = "unknown"
        self._clock = clock or SystemClock()

    def utc_ns(self, sensor_ns: int) -> int | None:
        """Return UTC by the host's clocks as they stand now: a clock that NTP has set since is believed."""
        if self.clock == "unknown":
            return None
        return self._clock.now_ns() - (self._clock.mono_ns() - sensor_ns)


class PiCamera(_Filming):
    """A Pi camera as a stream of H.264 frames with small pictures beside them: an `EncodedSource`.

    Args:
        settings: what is asked of it.
        camera_id: its name; default: the host's, with the camera's number.
        host_id: the machine.
        clock: what tells the time of arrival.

    Raises:
        MissingExtra: no picamera2.
        UsageError: no such camera (the message lists those there are), or a size or rate that it does not have.
        DeviceError: it is in use or broken.
    """

    def __init__(
        self, settings: PiSettings, *, camera_id: str | None = None, host_id: str = "host", clock: Clock | None = None
    ) -> None:
        super().__init__(settings, camera_id, host_id, clock)
        self.format = StreamFormat(codec="h264", width_px=settings.width, height_px=settings.height, extradata=b"")
        self._device = Device(settings, self._clock, "YUV420", self._note)
        self._encoder = _encoder(settings)
        self._noted: dict[int, Seen] = {}
        self._lock = threading.Lock()
        self._mailbox: Mailbox[Seen] = Mailbox(MAX_WAITING_BYTES)
        self._refused = False

    def __iter__(self) -> Iterator[EncodedFrame]:
        from picamera2.outputs import Output

        device, output = self._device, Output()
        output.outputframe = self._take
        try:
            device.start()
            device.encode(self._encoder, output)
            while (seen := self._mailbox.get(STALL_S)) is not None:
                if seen.is_keyframe:
                    self.clock = _quality(self._clock, seen.sensor_ns)
                    self._learn_format(seen.data)
                yield EncodedFrame(
                    data=seen.data, is_keyframe=seen.is_keyframe, sensor_ns=seen.sensor_ns, frame_number=seen.number,
                    format=self.format, small=device.small_rgb(seen), controls=seen.controls, lost=seen.lost,
                )  # fmt: skip
            raise device.stalled()
        finally:
            self._mailbox.close()
            device.stop(self._encoder)

    def _learn_format(self, data: bytes) -> None:
        extradata = parameter_sets(data)
        if extradata and extradata != self.format.extradata:
            self.format = StreamFormat(codec="h264", width_px=self.width_px, height_px=self.height_px, extradata=extradata)

    def _note(self, request: Any, seen: Seen) -> None:
        """Keep what is known of a frame until its encoder gives it back, under the microsecond that the encoder will name."""
        with self._lock:
            self._noted[seen.sensor_ns // 1000] = seen
            while len(self._noted) > 4 * N_BUFFERS:  # an encoder that gives nothing back
                self._noted.pop(next(iter(self._noted)))

    def _take(self, data: bytes, is_keyframe: bool, timestamp_us: int, packet: Any = None, audio: bool = False) -> None:
        """Take an encoded frame, in the encoder's thread."""
        time_us = self._encoder.firsttimestamp + timestamp_us
        with self._lock:
            while self._noted and next(iter(self._noted)) < time_us:  # passed before the encoder ran
                self._noted.pop(next(iter(self._noted)))
            seen = self._noted.pop(time_us, None)
        if seen is None:
            _log.warning("encoded_frame_without_metadata", camera_id=self.camera_id, time_us=time_us)
            return
        seen.data, seen.is_keyframe = bytes(data), bool(is_keyframe)
        seen.lost = RECORDER_SLOW if self._refused else seen.lost
        self._refused = not self._mailbox.put(seen, seen.n_bytes, stands_alone=seen.is_keyframe)


def _encoder(settings: PiSettings) -> Any:
    from picamera2 import encoders

    made = encoders.H264Encoder if has_hardware_encoder() else encoders.LibavH264Encoder
    encoder = made(bitrate=settings.bitrate, repeat=True, iperiod=max(1, round(settings.gop_s * settings.fps)))
    encoder.framerate = max(1, round(settings.fps))
    return encoder


class PiPictures(_Filming):
    """A Pi camera as pictures, for privacy, images, raw recordings and models: a `Source`. Arguments as of `PiCamera`."""

    def __init__(
        self, settings: PiSettings, *, camera_id: str | None = None, host_id: str = "host", clock: Clock | None = None
    ) -> None:
        super().__init__(settings, camera_id, host_id, clock)
        self._device = Device(settings, self._clock, "BGR888", self._hold)  # libcamera's BGR888 is R, G, B in memory
        self._mailbox: Mailbox[Seen] = Mailbox(HELD_PICTURES)
        self._refused = False

    def __iter__(self) -> Iterator[SourceFrame]:
        """Yield the pictures at the rate that was asked for, however much faster the camera has to film for that."""
        settings, filmed = self._device.settings, self._filmed()
        if self._device.film_us >= settings.frame_us - 1:
            return filmed
        return cast("Iterator[SourceFrame]", thinned(filmed, settings.fps))

    def _filmed(self) -> Iterator[SourceFrame]:
        device, last_checked_ns = self._device, 0
        try:
            device.start()
            while (seen := self._mailbox.get(STALL_S)) is not None:
                rgb = seen.request.make_array("main")
                seen.request.release()
                if seen.sensor_ns - last_checked_ns > _NS_PER_S:
                    self.clock, last_checked_ns = _quality(self._clock, seen.sensor_ns), seen.sensor_ns
                yield SourceFrame(rgb, seen.sensor_ns, seen.number, seen.controls, seen.lost)
            raise device.stalled()
        finally:
            for seen in self._mailbox.close():
                seen.request.release()
            device.stop()

    def _hold(self, request: Any, seen: Seen) -> None:
        """Hold a frame's buffer until the reader has copied it; `HELD_PICTURES` at a time, the camera needs the others."""
        request.acquire()
        seen.request = request
        seen.lost = RECORDER_SLOW if self._refused else seen.lost
        self._refused = not self._mailbox.put(seen, 1)
        if self._refused:
            request.release()


def open_picam(
    url: str,
    *,
    camera_id: str | None = None,
    host_id: str = "host",
    pictures: bool = False,
    options: Mapping[str, Any] | None = None,
) -> PiCamera | PiPictures:
    """Return the Pi camera that `url` names: `picam://0?width=1280&height=720&fps=30` (options: see `PiSettings`).

    Args:
        url: the address.
        camera_id: its name.
        host_id: the machine.
        pictures: pictures instead of an H.264 stream; so is a rate below `SLOWEST_FPS`, of which no stream is made.
        options: what the address does not say, as a `[[camera]]` table has it (see `parse_picam`).

    Raises:
        MissingExtra, UsageError, DeviceError: as `PiCamera`; UsageError also for an address that cannot be read.
    """
    settings = parse_picam(url, options)
    made = PiPictures if pictures or settings.fps < SLOWEST_FPS else PiCamera
    return made(settings, camera_id=camera_id, host_id=host_id)
