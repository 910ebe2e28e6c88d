"""What starts a recording: the `[trigger]` table, and the triggers of its kinds.

    always              everything is recorded
    motion              something moves (ingest/motion.py), by thresholds that may follow the sun or the clock
    model               a bundle says one of the named labels, or is not sure (ingest/trigger_model.py)
    motion then model   the bundle is asked only while something moves: cheap, and its state begins anew with each motion

    [trigger]
    kind = "motion"
    pre_roll_s = 5
    masks = [[0.0, 0.0, 0.35, 0.6]]            # the tree
    when = [{sun_below_deg = -6, least_duration_s = 1.5, least_share = 0.01}]

`open_gate` joins settings and camera: a `Gate` whose trigger sees small pictures of the frames, at most `fps` a second. What
a camera knows about time is UTC, if its clock is set; a rule that needs it does not hold while it is not. What people
ask for (`Wanted`) is looked for by every trigger but `always`. Guide: infra/docs/guides/trigger.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.artefacts import Bundle, Wanted
from infra.errors import ArtefactError, SettingsError
from infra.hours import local, minutes, within, zone
from infra.regions import check_regions
from infra.settings import Where, read_table
from infra.sun import solar_elevation_deg
from ingest.gate import MAX_BUFFER_BYTES, Gate, Seen, Trigger, order_ns
from ingest.source import Camera, EncodedFrame, Frame

if TYPE_CHECKING:
    from infra.picture import Rgb
    from ingest.motion import Thresholds

__all__ = ["Always", "MotionTrigger", "Seen", "Trigger", "TriggerSettings", "When", "open_gate", "open_trigger"]

Kind = Literal["always", "motion", "model", "motion then model"]


def _check_thresholds(sensitivity: float | None, least_share: float | None, least_duration_s: float | None) -> None:
    if sensitivity is not None and not 0.1 <= sensitivity <= 10:
        raise SettingsError(f"sensitivity is {sensitivity:g}; legal: 0.1 (numb) to 10, 1 is usual")
    if least_share is not None and not 0 < least_share < 1:
        raise SettingsError(f"least_share is {least_share:g}; legal: a share of the picture, more than 0 and below 1")
    if least_duration_s is not None and not 0 <= least_duration_s <= 60:
        raise SettingsError(f"least_duration_s is {least_duration_s:g}; legal: 0 to 60 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """Other thresholds at some times. All that is said must hold; of several that hold, the first counts.

    Attributes:
        sun_below_deg: the sun stands lower than this (0 horizon, -6 end of civil twilight).
        sun_above_deg: the sun stands at least this high.
        hours: such as ["22:00-05:30"], of `time_zone` (infra/hours.py).
        sensitivity, least_share, least_duration_s: instead of those of the table; None leaves them.
        off: nothing is recorded then.
    """

    sun_below_deg: float | None = None
    sun_above_deg: float | None = None
    hours: tuple[str, ...] = ()
    sensitivity: float | None = None
    least_share: float | None = None
    least_duration_s: float | None = None
    off: bool = False

    def __post_init__(self) -> None:
        _check_thresholds(self.sensitivity, self.least_share, self.least_duration_s)
        for name, value in (("sun_below_deg", self.sun_below_deg), ("sun_above_deg", self.sun_above_deg)):
            if value is not None and not -90 <= value <= 90:
                raise SettingsError(f"{name} is {value:g}; legal: -90 to 90 degrees")
        for text in self.hours:
            minutes(text)
        if not self.hours and not self.needs_sun:
            raise SettingsError("when says no time; legal: sun_below_deg, sun_above_deg, hours")

    @property
    def needs_sun(self) -> bool:
        return self.sun_below_deg is not None or self.sun_above_deg is not None

    def holds(self, sun_deg: float | None, minute: int) -> bool:
        """Say whether it holds at this height of the sun and minute of the local day."""
        if sun_deg is not None and not (
            (self.sun_below_deg is None or sun_deg < self.sun_below_deg)
            and (self.sun_above_deg is None or sun_deg >= self.sun_above_deg)
        ):
            return False
        return not self.hours or within(self.hours, minute)


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerSettings:
    """The `[trigger]` table, or the `trigger` of a `[[camera]]`.

    Attributes:
        kind: see the module's docstring.
        pre_roll_s, post_roll_s: what is kept before and after; events closer than the post-roll are one.
        max_buffer_bytes: how much of the pre-roll may wait in memory.
        small: (width, height) in pixels of the pictures that motion is looked for in.
        fps: how many pictures a second are looked at, at most.
        sensitivity: 1 is usual; 2 asks for half the difference in grey levels.
        least_share: the least size of what moves, as a share of the picture that is not masked.
        least_duration_s: how long it must move.
        masks: regions where nothing counts: boxes and polygons in shares of the picture (infra/regions.py).
        when: other thresholds by the sun or by the hour.
        latitude, longitude: where the camera stands, in degrees; default: those of `[agent]`.
        time_zone: of `hours`, such as "Europe/Berlin"; None: the machine's.
        model: folder of the bundle.
        labels: which of its labels start a recording.
        threshold: the least probability of such a label.
        keep_uncertain: whether frames of which the model is not sure are recorded, and marked: the training bank.
        uncertain_below: what "not sure" means, a top probability below this; default: the bundle's own.
    """

    kind: Kind = "always"
    pre_roll_s: float = 5.0
    post_roll_s: float = 5.0
    max_buffer_bytes: int = MAX_BUFFER_BYTES
    small: tuple[int, int] = (320, 240)
    fps: float = 10.0
    sensitivity: float = 1.0
    least_share: float = 0.004
    least_duration_s: float = 0.4
    masks: tuple[tuple[float, ...], ...] = ()
    when: tuple[When, ...] = ()
    latitude: float | None = None
    longitude: float | None = None
    time_zone: str | None = None
    model: Path | None = None
    labels: tuple[str, ...] = ()
    threshold: float = 0.5
    keep_uncertain: bool = True
    uncertain_below: float | None = None

    def __post_init__(self) -> None:
        _check_thresholds(self.sensitivity, self.least_share, self.least_duration_s)
        for name, value, most in (("pre_roll_s", self.pre_roll_s, 600), ("post_roll_s", self.post_roll_s, 3600)):
            if not 0 <= value <= most:
                raise SettingsError(f"{name} is {value:g}; legal: 0 to {most} seconds")
        if not 1 << 16 <= self.max_buffer_bytes <= 1 << 31:
            raise SettingsError(f"max_buffer_bytes is {self.max_buffer_bytes}; legal: {1 << 16} to {1 << 31}")
        if not all(32 <= side <= 1024 for side in self.small):
            raise SettingsError(f"small is {list(self.small)}; legal: [width, height], each 32 to 1024 pixels")
        if not 0.1 <= self.fps <= 60:
            raise SettingsError(f"fps is {self.fps:g}; legal: 0.1 to 60 pictures a second")
        check_regions("masks", self.masks)
        for name, place, most in (("latitude", self.latitude, 90), ("longitude", self.longitude, 180)):
            if place is not None and not -most <= place <= most:
                raise SettingsError(f"{name} is {place:g}; legal: {-most} to {most} degrees")
        zone(self.time_zone)
        self._check_model()

    def _check_model(self) -> None:
        if ("model" in self.kind) != (self.model is not None):
            raise SettingsError(f"model is {self.model and str(self.model)!r} with kind {self.kind!r}; a bundle's folder, "
                                'with kind "model" and "motion then model" only')  # fmt: skip
        if self.model is not None and not self.labels:
            raise SettingsError("labels is empty; legal: the labels of the bundle that start a recording")
        for name, value in (("threshold", self.threshold), ("uncertain_below", self.uncertain_below)):
            if value is not None and not 0 <= value <= 1:
                raise SettingsError(f"{name} is {value:g}; legal: a probability, 0 to 1")

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: Where | str = "[trigger]") -> TriggerSettings:
        """Read a table.

        Raises:
            SettingsError: an unknown key, a wrong type or value; the message names the line.
        """
        return read_table(cls, table, where)


class Always:
    """The trigger that never looks: everything is recorded."""

    name = "always"
    small_px = None

    def see(self, small: Rgb, sensor_ns: int, utc_ns: int | None) -> Seen:
        return Seen(True, 0.0, "always")


class MotionTrigger:
    """On while something moves; `score` as in `ingest.motion`, .5 at the least size.

    Args:
        settings: of kind motion.
        latitude, longitude: where the camera stands, in degrees, where the settings do not say.

    Raises:
        SettingsError: a rule by the sun, and nobody knows where the camera stands.
    """

    name = "motion"

    def __init__(self, settings: TriggerSettings, *, latitude: float | None = None, longitude: float | None = None) -> None:
        from ingest.motion import Motion

        self.small_px: tuple[int, int] | None = settings.small
        self._settings = settings
        self._latitude = latitude if settings.latitude is None else settings.latitude
        self._longitude = longitude if settings.longitude is None else settings.longitude
        if any(rule.needs_sun for rule in settings.when) and (self._latitude is None or self._longitude is None):
            raise SettingsError("a rule by the sun needs latitude and longitude, in degrees, in [agent] or [trigger]")
        self._motion = Motion(settings.masks)
        self._minute: int | None = None
        self._now = self._thresholds(None)

    def see(self, small: Rgb, sensor_ns: int, utc_ns: int | None) -> Seen:
        """Look at one picture; see `Trigger`."""
        minute = None if utc_ns is None else utc_ns // 60_000_000_000
        if minute != self._minute:
            self._minute, self._now = minute, self._thresholds(self._rule(utc_ns))
        thresholds, off = self._now
        moved = self._motion.see(small, sensor_ns, thresholds)
        return Seen(moved.lasted and not off, moved.score, "switched off at this time" if off else moved.reason)

    def _rule(self, utc_ns: int | None) -> When | None:
        if utc_ns is None:
            return None
        now = local(utc_ns, self._settings.time_zone)
        sun_deg = None
        if self._latitude is not None and self._longitude is not None:
            sun_deg = solar_elevation_deg(utc_ns, self._latitude, self._longitude)
        minute = now.hour * 60 + now.minute
        return next((rule for rule in self._settings.when if rule.holds(sun_deg, minute)), None)

    def _thresholds(self, rule: When | None) -> tuple[Thresholds, bool]:
        from ingest.motion import Thresholds

        usual = self._settings
        if rule is None:
            return Thresholds(usual.sensitivity, usual.least_share, usual.least_duration_s), False
        return Thresholds(
            usual.sensitivity if rule.sensitivity is None else rule.sensitivity,
            usual.least_share if rule.least_share is None else rule.least_share,
            usual.least_duration_s if rule.least_duration_s is None else rule.least_duration_s,
        ), rule.off


@dataclass(slots=True)
class DuePictures:
    """Gives the trigger's picture of a frame: the source's own small one, or a resized one; None when none is due."""

    size_px: tuple[int, int]
    fps: float
    _next_ns: int | None = field(default=None)

    def __call__(self, frame: Frame) -> Rgb | None:
        if isinstance(frame, EncodedFrame) and frame.small is None:
            return None
        time_ns, period_ns = order_ns(frame), round(1e9 / self.fps)
        if self._next_ns is not None and 0 < self._next_ns - time_ns <= period_ns:
            return None
        late = self._next_ns is None or not 0 <= time_ns - self._next_ns < period_ns
        self._next_ns = (time_ns if late or self._next_ns is None else self._next_ns) + period_ns
        if isinstance(frame, EncodedFrame):
            return frame.small
        if frame.rgb.shape[0] <= self.size_px[1] and frame.rgb.shape[1] <= self.size_px[0]:
            return frame.rgb
        from infra.picture import resize

        return resize(frame.rgb, self.size_px)


def open_trigger(
    settings: TriggerSettings,
    *,
    latitude: float | None = None,
    longitude: float | None = None,
    known: Mapping[str, object] | None = None,
    wishes: Callable[[], Sequence[Wanted]] = lambda: (),
) -> Trigger:
    """Return the trigger that the settings describe.

    Args:
        settings: which.
        latitude, longitude: where the camera stands, in degrees, where the settings do not say.
        known: what the camera knows of itself, for wishes: camera_id, site, ...
        wishes: gives what is asked for now; called about once a minute.

    Raises:
        SettingsError: a rule by the sun without a place; a bundle that cannot be read, or that lacks a label.
    """
    if settings.kind == "always":
        return Always()
    trigger: Trigger
    motion = MotionTrigger(settings, latitude=latitude, longitude=longitude) if settings.kind != "model" else None
    from ingest.trigger_model import ModelTrigger, Wishing

    if settings.model is None and motion is not None:
        trigger = motion
    else:
        try:
            bundle = Bundle.read(settings.model or Path())
        except ArtefactError as error:
            raise SettingsError(f"model {str(settings.model)!r}: {error}; give the folder of a bundle") from error
        trigger = ModelTrigger(
            bundle, settings.labels, threshold=settings.threshold, keep_uncertain=settings.keep_uncertain,
            uncertain_below=settings.uncertain_below, first=motion,
        )  # fmt: skip
    return Wishing(trigger, known or {}, wishes)


def open_gate(
    settings: TriggerSettings,
    camera: Camera,
    *,
    latitude: float | None = None,
    longitude: float | None = None,
    wishes: Callable[[], Sequence[Wanted]] = lambda: (),
) -> Gate[Any]:
    """Return the gate for a camera's frames, pictures or encoded ones. Arguments and errors as of `open_trigger`."""
    known = {
        "camera_id": camera.camera_id, "host_id": camera.host_id, "site": camera.site, "recording_id": camera.recording_id,
    }  # fmt: skip
    trigger = open_trigger(settings, latitude=latitude, longitude=longitude, known=known, wishes=wishes)
    small = (lambda frame: None) if trigger.small_px is None else DuePictures(trigger.small_px, settings.fps)
    return Gate(
        trigger, small=small, pre_roll_s=settings.pre_roll_s, post_roll_s=settings.post_roll_s,
        max_buffer_bytes=settings.max_buffer_bytes, utc_ns=camera.utc_ns,
    )  # fmt: skip
