"""What a Pi sends back first: short clips of moments in which its model was unsure, or which somebody asked for.

The last seconds of frames that the model saw are kept, small, in memory. When a prediction is unsure (`prob` below the
bundle's `uncertain_below`) or meets a wish (`Wanted`), they and the next second are encoded by `infra.video.Writer` and put
into the Outbox, with a sidecar that says which bundle predicted what and why the clip was kept. One moment per `every_s` of
sensor time: a dark night must not fill the card. The outbox holds at most `MAX_BYTES`; beyond that nothing is kept until it
is emptied.

The clip holds the frames at the model's own rate and at most `LONG_SIDE_PX`; `sensor_ns` in the sidecar is exact.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from infra import keys, video
from infra.artefacts import Outbox
from infra.log import Log
from infra.records import Prediction, Sidecar
from serve.frames import LiveFrame, Recording, Rgb

LONG_SIDE_PX = 640
MAX_BYTES = 1 << 30  # of clips lying in the outbox
FIRST_SEQ = 1 << 40  # a clip sent back is of its recording and comes behind the recorder's, whose seq is milliseconds of a boot
TIME_BASE = Fraction(1, 90_000)  # the usual one of video containers; 1 tick = 11 microseconds
_log = Log("serve.unsure")


@dataclass(frozen=True, slots=True)
class _Kept:
    rgb: Rgb
    sensor_ns: int


class Unsure:
    """Keeps the last seconds and decides on clips of them.

    Args:
        outbox: where clips go.
        bundle_id: of the model that is unsure.
        send: gets each clip that is complete, to be written by whoever has time.
        before_s: how much of a clip lies before the moment.
        after_s: and how much after it.
        every_s: at most one moment per so many seconds of sensor time.
    """

    def __init__(
        self,
        outbox: Outbox,
        bundle_id: str,
        send: Callable[[PendingClip], None],
        *,
        before_s: float = 2.0,
        after_s: float = 1.0,
        every_s: float = 30.0,
    ) -> None:
        self._outbox = outbox
        self._bundle_id = bundle_id
        self._send = send
        self._before_ns = round(before_s * 1e9)
        self._after_ns = round(after_s * 1e9)
        self._every_ns = round(every_s * 1e9)
        self._kept: deque[_Kept] = deque()
        self._recording: Recording | None = None
        self._why: dict[str, Any] | None = None
        self._moment_ns: int | None = None

    def keep(self, frame: LiveFrame) -> None:
        """Remember one frame, at most `LONG_SIDE_PX` large; send the clip that it completes, forget what is too old."""
        if self._kept and (frame.recording is not self._recording or frame.sensor_ns <= self._kept[-1].sensor_ns):
            self.end()
        self._recording = frame.recording
        self._kept.append(_Kept(_small(frame), frame.sensor_ns))
        oldest_ns = frame.sensor_ns - self._before_ns - self._after_ns
        while self._kept[0].sensor_ns < oldest_ns:
            self._kept.popleft()
        if self._why is not None and frame.sensor_ns >= self._why["sensor_ns"] + self._after_ns:
            self._finish()

    def trigger(self, prediction: Prediction, reason: str) -> bool:
        """Make a clip around the newest frame; False if the last one is too recent."""
        moment_ns = self._kept[-1].sensor_ns
        if self._why is not None or (self._moment_ns is not None and moment_ns - self._moment_ns < self._every_ns):
            return False
        self._moment_ns = moment_ns
        self._why = {
            "bundle_id": self._bundle_id, "label": prediction.label, "prob": prediction.prob,
            "probs": list(prediction.probs), "reason": reason, "sensor_ns": moment_ns,
        }  # fmt: skip
        return True

    def end(self) -> None:
        """End a recording: send what is under way, forget the rest."""
        self._finish()
        self._kept.clear()
        self._recording, self._moment_ns = None, None

    def _finish(self) -> None:
        if self._why is None or self._recording is None:
            return
        seq = FIRST_SEQ + self._kept[0].sensor_ns // 1_000_000  # in order, also after a new model or a new start
        clip = PendingClip(outbox=self._outbox, frames=tuple(self._kept), recording=self._recording, seq=seq, why=self._why)
        self._why = None
        self._send(clip)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingClip:
    """A clip that is decided and not written yet: frames in memory, everything else as its sidecar will say."""

    outbox: Outbox
    frames: Sequence[_Kept]
    recording: Recording
    seq: int
    why: dict[str, Any]

    def write(self) -> Path | None:
        """Encode the clip and put it into the outbox; None, and an event in the log, when the outbox is full.

        Raises:
            DeviceError: no encoder in this build of FFmpeg.
            OSError: the disk is full or broken; the outbox holds no half clip.
        """
        folder = self.outbox.folder
        used = sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
        if used > MAX_BYTES:
            _log.warning("outbox_full", folder=str(folder), n_bytes=used, max_bytes=MAX_BYTES)
            return None
        data = self._encode()
        sha256 = keys.sha256_hex(data)
        times = tuple(kept.sensor_ns for kept in self.frames)
        source = self.recording
        sidecar = Sidecar(
            clip_id=keys.clip_id(sha256), camera_id=source.camera_id, host_id=source.host_id, boot_id=source.boot_id,
            recording_id=source.recording_id, seq=self.seq, sha256=sha256, n_bytes=len(data), container="mp4",
            start_ns=source.utc_ns(times[0]), start_mono_ns=times[0], clock=source.clock, sensor_ns=times, trigger="outbox",
            site=source.site, outbox=self.why,
        )  # fmt: skip
        return self.outbox.put(data, sidecar)

    def _encode(self) -> bytes:
        first = self.frames[0]
        height_px, width_px = first.rgb.shape[:2]
        with tempfile.TemporaryDirectory(prefix="camloop-unsure-") as folder:
            path = Path(folder) / "clip.mp4"
            with video.Writer(path, width_px, height_px, TIME_BASE) as writer:
                for kept in self.frames:
                    writer.add(kept.rgb, round((kept.sensor_ns - first.sensor_ns) * TIME_BASE.denominator / 1_000_000_000))
            return path.read_bytes()


def _small(frame: LiveFrame) -> Rgb:
    """Return a frame with even sides, the longer at most `LONG_SIDE_PX`; a copy."""
    rgb = frame.rgb(None)
    height_px, width_px = rgb.shape[:2]
    scale = min(1.0, LONG_SIDE_PX / max(width_px, height_px))
    size_px = (max(2, round(width_px * scale / 2) * 2), max(2, round(height_px * scale / 2) * 2))
    return frame.rgb(size_px).copy()
