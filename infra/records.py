"""The nouns as frozen records: what crosses a room is one of these, or a table row of the same names.

Standard library only. A record checks itself when it is made. Times are integer nanoseconds (`_ns`) or integer ticks
of the clip's time base (`pts`); intervals are half-open, [start, end). Unknown is None, never -1. See docs/time.md.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, Self

from infra.errors import ArtefactError, UsageError

SIDECAR_VERSION = 1

ClockQuality = Literal["sensor", "ntp", "repaired", "file", "unknown"]
CLOCKS: tuple[ClockQuality, ...] = ("sensor", "ntp", "repaired", "file", "unknown")
Index = Literal["packets", "sequential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One immutable recording as stored. The field names are the columns of table `clips`."""

    clip_id: str
    key: str
    source_name: str
    container: str
    camera_id: str
    recording_id: str
    site: str | None = None
    day: str | None = None
    source_group: str | None = None
    host_id: str | None = None
    boot_id: str | None = None
    seq: int | None = None
    start_ns: int | None = None
    start_mono_ns: int | None = None
    clock: ClockQuality = "unknown"
    time_base_num: int
    time_base_den: int
    first_pts: int
    end_pts: int
    n_frames: int
    width_px: int
    height_px: int
    codec: str
    rotation_deg: int = 0
    index: Index = "packets"
    n_dropped: int = 0
    n_bytes: int
    sha256: str
    state: Literal["live", "expired"] = "live"

    def __post_init__(self) -> None:
        if self.time_base_num <= 0 or self.time_base_den <= 0:
            raise ArtefactError(f"clip {self.clip_id}: time base {self.time_base_num}/{self.time_base_den} is not positive")
        if self.end_pts < self.first_pts:
            raise ArtefactError(f"clip {self.clip_id}: [{self.first_pts}, {self.end_pts}) ends before it starts")
        if self.clock not in CLOCKS:
            raise ArtefactError(f"clip {self.clip_id}: clock {self.clock!r}, legal: {', '.join(CLOCKS)}")

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick of pts."""
        return Fraction(self.time_base_num, self.time_base_den)

    @property
    def duration_s(self) -> float:
        """Length of [first_pts, end_pts) in seconds."""
        return float((self.end_pts - self.first_pts) * self.time_base)

    def capture_ns(self, pts: int) -> int | None:
        """Return the UTC nanoseconds of a frame, or None when the clip's start is unknown."""
        if self.start_ns is None:
            return None
        return self.start_ns + round((pts - self.first_pts) * self.time_base * 1_000_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Frames that a recorder knows it did not get: `n_missing` of them before frame number `before_frame`."""

    before_frame: int
    n_missing: int
    duration_ns: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What the recorder knew about one clip, stored beside it before the clip itself (put if absent).

    `sensor_ns` holds one monotonic sensor time per recorded frame, in order; on disk they are deltas.
    `controls` holds what was set per frame where it differs (exposure, gain, white balance), keyed by name.
    `label` is the class given at recording (seed 000: `DIR/CLASS SECONDS`), None when nothing was said.
    `outbox` is set on a clip that a Pi sends back: the bundle, the prediction and why it was kept.
    `event` is what the trigger said of it (kind, peak, reason, uncertain, wanted_id, n_skipped: frames not kept before it).
    `salvaged` says that the recorder died in it: what was readable is kept, its times come from the file, to a tick of it.
    """

    clip_id: str
    camera_id: str
    host_id: str
    boot_id: str
    recording_id: str
    seq: int
    sha256: str
    n_bytes: int
    container: str
    start_ns: int | None
    start_mono_ns: int
    clock: ClockQuality
    sensor_ns: tuple[int, ...] = ()
    gaps: tuple[Gap, ...] = ()
    controls: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    trigger: str = "always"
    label: str | None = None
    source_group: str | None = None
    site: str | None = None
    outbox: Mapping[str, Any] | None = None
    event: Mapping[str, Any] = field(default_factory=dict)
    salvaged: bool = False
    version: int = SIDECAR_VERSION

    def to_json(self) -> bytes:
        """Return the sidecar as canonical JSON; `sensor_ns` becomes the first value and deltas."""
        document = dataclasses.asdict(self)
        times = self.sensor_ns
        document["sensor_ns"] = [times[0], *(b - a for a, b in zip(times, times[1:], strict=False))] if times else []
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a sidecar.

        Raises:
            ArtefactError: it is not JSON of this version or a field is missing, unknown or of the wrong type.
        """
        try:
            document = json.loads(data)
            version = document["version"]
            if version != SIDECAR_VERSION:
                raise ArtefactError(f"sidecar version {version!r}; this camloop reads {SIDECAR_VERSION}")
            total, times = 0, []
            for delta in document["sensor_ns"]:
                total += delta
                times.append(total)
            document["sensor_ns"] = tuple(times)
            document["gaps"] = tuple(Gap(**gap) for gap in document["gaps"])
            document["controls"] = {name: tuple(values) for name, values in document["controls"].items()}
            made = cls(**document)
            made._check()
            return made
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ArtefactError(f"not a sidecar: {type(error).__name__}: {str(error)[:200]}") from error

    def _check(self) -> None:
        """TypeError when a field is not of its type: what is read was written by somebody else."""
        for name in ("clip_id", "camera_id", "host_id", "boot_id", "recording_id", "sha256", "container", "clock", "trigger"):
            _require(isinstance(getattr(self, name), str), name, getattr(self, name))
        for name in ("label", "source_group", "site"):
            _require(isinstance(getattr(self, name), str | None), name, getattr(self, name))
        for name in ("seq", "n_bytes"):
            _require(_is_int64(getattr(self, name)) and getattr(self, name) >= 0, name, getattr(self, name))
        _require(self.start_ns is None or _is_int64(self.start_ns), "start_ns", self.start_ns)
        _require(_is_int64(self.start_mono_ns), "start_mono_ns", self.start_mono_ns)
        _require(isinstance(self.outbox, Mapping | None), "outbox", self.outbox)
        _require(isinstance(self.event, Mapping), "event", self.event)
        _require(isinstance(self.salvaged, bool), "salvaged", self.salvaged)
        _require(all(map(_is_int64, self.sensor_ns)), "sensor_ns", "a list")
        for gap in self.gaps:
            fine = all(map(_is_int64, (gap.before_frame, gap.n_missing, gap.duration_ns))) and isinstance(gap.cause, str)
            _require(fine, "gaps", gap)
        for name, values in self.controls.items():
            _require(all(isinstance(value, int | float) for value in values), f"controls {name[:40]}", "a list")


def _is_int64(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _require(fine: bool, name: str, value: object) -> None:
    if not fine:
        raise TypeError(f"field {name} is {str(value)[:80]!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraRow:
    """What is fixed for a camera from `valid_from_ns` on. Columns of table `cameras`.

    A correction writes all rows of the camera again; those with its newest `created_ns` are in force.
    """

    camera_id: str
    camera_number: int
    valid_from_ns: int
    host_id: str | None = None
    site: str | None = None
    angle: str | None = None
    indoor: bool | None = None
    time_zone: str = "UTC"
    clock_offset_s: float = 0.0
    attributes: Mapping[str, str] = field(default_factory=dict)
    created_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """[start_pts, end_pts) of one clip in which a layer (motion, person, ...) is on."""

    clip_id: str
    event_id: str
    layer: str
    source: str
    start_pts: int
    end_pts: int
    peak: float | None = None

    def __post_init__(self) -> None:
        if self.end_pts <= self.start_pts:
            raise UsageError(f"interval [{self.start_pts}, {self.end_pts}) of clip {self.clip_id} is empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A person's word about [start_pts, end_pts) of a clip. `factor` None = a class label; `retracts` withdraws one."""

    label_id: str
    clip_id: str
    start_pts: int
    end_pts: int
    factor: str | None
    name: str
    box: tuple[float, float, float, float] | None = None
    annotator: str
    created_ns: int
    retracts: str | None = None

    def __post_init__(self) -> None:
        if self.end_pts <= self.start_pts:
            raise UsageError(f"label {self.name!r}: [{self.start_pts}, {self.end_pts}) is empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A named part of the data that is judged alone: a gate file is a list of these.

    `min_recall`: share of its events that must have survived the filters before the footage. An event is a moving GOP for the
    packet gate (`moving`, share of the picture), a frame that meets `positive` for a cascade; None: as `infra.losses` has them.
    """

    name: str
    where: str
    metric: str = "accuracy"
    threshold: float | None = None
    min_groups: int = 10
    judge: Literal["lower", "point"] = "lower"
    min_recall: float | None = None
    positive: str | None = None
    moving: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One output of a model for one frame: `probs` in label order, raw or smoothed as the bundle says.

    `pts` joins it to a stored clip; a live frame has (camera_id, boot_id, sensor_ns) instead, until its clip arrives.
    """

    label: str
    prob: float
    probs: tuple[float, ...]
    raw_probs: tuple[float, ...]
    pts: int | None = None
    sensor_ns: int | None = None
