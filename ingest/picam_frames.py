"""What picamera2 says of a frame, turned into our nouns: its number, whose fault a gap is, its controls, its parameter sets.

Pure functions of metadata and bytes: no camera is needed to test them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingest.source import RECORDER_SLOW, SOURCE_DROPPED

CONTROLS: Mapping[str, tuple[str, int]] = {
    "ExposureTime": ("exposure_us", 0),
    "AnalogueGain": ("gain", 4),
    "DigitalGain": ("digital_gain", 4),
    "ColourTemperature": ("colour_temperature_k", 0),
    "LensPosition": ("lens_dioptres", 3),
    "FocusFoM": ("focus", 0),
    "Lux": ("lux", 1),
}
"""libcamera's name -> ours, and the decimals that are kept: a sensor's own steps are coarser."""


def controls_of(metadata: Mapping[str, Any]) -> dict[str, float]:
    """Return what a frame was taken with, from its own metadata: the `CONTROLS` it has, `red_gain` and `blue_gain`."""
    found = {ours: round(float(metadata[theirs]), n) for theirs, (ours, n) in CONTROLS.items() if theirs in metadata}
    if "ColourGains" in metadata:
        red, blue = metadata["ColourGains"]
        found |= {"red_gain": round(float(red), 4), "blue_gain": round(float(blue), 4)}
    return found


class FrameNumbers:
    """Counts frames by their sensor times, so that a frame that never came has a number too.

    Args:
        nominal_ns: time from frame to frame where the metadata do not say.
    """

    def __init__(self, nominal_ns: int) -> None:
        self._nominal_ns = nominal_ns
        self._last_ns: int | None = None
        self._last_duration_ns = 0
        self._number = 0
        self._was_short = False

    def number(self, sensor_ns: int, duration_ns: int, *, n_held: int, n_buffers: int, lag_ns: int) -> tuple[int, str]:
        """Return a frame's number, and whose fault it is if the numbers jump before it.

        The host is at fault where the camera had no free buffer when the gap began: all of them were held by this process
        (`n_held` of `n_buffers` at the frame before), or lay finished and unfetched for `lag_ns`.

        Args:
            sensor_ns: the frame's SensorTimestamp.
            duration_ns: its FrameDuration, 0 if unknown.
            n_held: buffers in this process's hands, this frame's included.
            n_buffers: buffers of the camera.
            lag_ns: how long ago the frame was taken.
        """
        period_ns = max(duration_ns, self._last_duration_ns) or self._nominal_ns
        if self._last_ns is not None:
            self._number += max(1, round((sensor_ns - self._last_ns) / period_ns))
        lost = RECORDER_SLOW if self._was_short else SOURCE_DROPPED
        self._was_short = n_held >= n_buffers or lag_ns >= (n_buffers - 1) * period_ns
        self._last_ns, self._last_duration_ns = sensor_ns, duration_ns
        return self._number, lost


def parameter_sets(data: bytes) -> bytes:
    """Return the SPS and PPS at the head of an H.264 frame, each with a four-byte start code; b"" if it has none."""
    found = []
    at = data.find(b"\0\0\1")
    while at >= 0:
        begin = at + 3
        at = data.find(b"\0\0\1", begin)
        kind = data[begin] & 31 if begin < len(data) else 0
        if kind in (7, 8):
            unit = data[begin : at if at >= 0 else len(data)]
            found.append(b"\0\0\0\1" + unit.rstrip(b"\0"))
        elif kind in (1, 5):  # the picture itself: nothing of interest after it
            break
    return b"".join(found)
