"""Training mode of a Pi camera: exposure and white balance are found once, then locked, and jittered if asked.

A class that is filmed under one exposure teaches a model the exposure. So (seed 000's recorder did the same):

1. settle: for `settle_s` of sensor time the camera finds exposure and white balance by itself;
2. lock: both are switched off and what they had found is set; frames are not used before the camera has said so of several;
3. jitter, if asked: for every frame another ISO of 100 to 800 (gain 1 to 8) and white-balance gains of +-0.5 around the
   locked ones. What a frame was really taken with is what its own metadata say, some frames later: that is recorded.

A pure state machine: it is shown the metadata of every frame and answers with the controls to set next.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from infra.errors import DeviceError

ISO_RANGE = (100, 800)  # seed 000: random ISO as augmentation at capture
ISO_OF_GAIN_1 = 100  # gain 1 is ISO 100 on the Pi's sensors, near enough to be named so
WHITE_BALANCE_JITTER = 0.5  # seed 000: +-0.5 on each of the red and blue gains
LOCKED_FRAMES = 12  # in a row; a Pi obeys after 2 to 3 frames, the virtual cameras after 6 (one for each buffer)
LOCK_WITHIN_FRAMES = 90
_NS_PER_S = 1_000_000_000


class TrainingMode:
    """Settles, locks and jitters one camera.

    Args:
        jitter: draw another gain and white balance for every frame once locked.
        settle_s: seconds of sensor time before the lock.
        gain_limits: least and largest analogue gain of the sensor; the jitter stays within.
        seed: of the draws.
    """

    def __init__(self, *, jitter: bool, settle_s: float, gain_limits: tuple[float, float], seed: int) -> None:
        low, high = (iso / ISO_OF_GAIN_1 for iso in ISO_RANGE)
        self._gains = max(low, gain_limits[0]), min(high, gain_limits[1])
        self._jitter, self._settle_ns = jitter, round(settle_s * _NS_PER_S)
        self._random = random.Random(seed)
        self._first_ns: int | None = None
        self._locked: dict[str, Any] = {}
        self._n_waited = self._n_obeyed = 0
        self.ready = False

    def see(self, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the controls to set after a frame with these metadata, an empty mapping for none.

        Raises:
            DeviceError: the camera does not say what was asked of it, or never does as it is told.
        """
        now_ns = int(metadata["SensorTimestamp"])
        self._first_ns = now_ns if self._first_ns is None else self._first_ns
        if not self._locked:
            return self._lock(metadata) if now_ns - self._first_ns >= self._settle_ns else {}
        if not self.ready:
            self._n_waited += 1
            self._n_obeyed = self._n_obeyed + 1 if self._obeys(metadata) else 0
            self.ready = self._n_obeyed >= LOCKED_FRAMES
            if not self.ready and self._n_waited >= LOCK_WITHIN_FRAMES:
                raise DeviceError(
                    f"the camera did not lock its exposure within {LOCK_WITHIN_FRAMES} frames: wanted {self._locked}, it has "
                    f"{ {name: metadata.get(name) for name in ('ExposureTime', 'AnalogueGain', 'ColourGains')} }"
                )
        return self._draw() if self.ready and self._jitter else {}

    def _lock(self, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        missing = [name for name in ("ExposureTime", "AnalogueGain", "ColourGains") if name not in metadata]
        if missing:
            raise DeviceError(f"this camera does not tell {', '.join(missing)}: training mode needs a Pi camera, not a USB one")
        red, blue = metadata["ColourGains"]
        self._locked = {
            "AeEnable": False, "AwbEnable": False, "ExposureTime": int(metadata["ExposureTime"]),
            "AnalogueGain": float(metadata["AnalogueGain"]), "ColourGains": (float(red), float(blue)),
        }  # fmt: skip
        return self._locked

    def _obeys(self, metadata: Mapping[str, Any]) -> bool:
        exposure_us, gain = self._locked["ExposureTime"], self._locked["AnalogueGain"]
        near = abs(metadata["ExposureTime"] - exposure_us) <= max(50, 0.02 * exposure_us)  # a sensor counts in lines
        near &= abs(metadata["AnalogueGain"] - gain) <= 0.02 * gain
        near &= all(abs(a - b) <= 0.02 * b for a, b in zip(metadata["ColourGains"], self._locked["ColourGains"], strict=True))
        return bool(near)

    def _draw(self) -> Mapping[str, Any]:
        red, blue = self._locked["ColourGains"]
        spread = WHITE_BALANCE_JITTER
        return {
            "AnalogueGain": self._random.uniform(*self._gains),
            "ColourGains": tuple(max(0.1, gain + self._random.uniform(-spread, spread)) for gain in (red, blue)),
        }
