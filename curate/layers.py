"""Layers: what can be on in footage, and at which scores; arguments in, checked questions out.

A layer is named by
- `motion`: the share of the picture that moves, one score per decoded frame (table `gops`);
- a class of the detector, such as `person`: the highest score of its detections in each kept frame, 0 where the detector
  looked and found none;
- anything else is a where-expression over kept frames, such as `lighting = 'night' and n_car > 0`: 1 where it is true, 0
  where it is false, unknown where it is null. So a tag is a layer: human beats model beats static, as in every view.

Thresholds may follow darkness and hours: both are factors by which `on` and `off` of a frame are multiplied.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from infra import hours, views, where
from infra.errors import QueryError, SettingsError

MOTION: Final = "motion"
ON: Final = {1: 0.02, 2: 0.0015}  # share of the picture, by version of the motion score: all that moves, its largest thing
CLASS_ON: Final = 0.5  # score of a detection
_CLASS: Final = re.compile(r"[A-Za-z][A-Za-z0-9 _.-]*")
_OPERATOR: Final = re.compile(r"[=<>]|\b(is|in|between|not)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What is looked for, and what makes an interval of it; made by `layer`, which fills in defaults.

    Attributes:
        name: see the module.
        on: the score that switches it on.
        off: below it, the layer goes off; at most `on`.
        least_s: shorter intervals are dropped, seconds.
        merge_s: intervals that are at most so many seconds apart are one.
        pad_s: seconds added before and after.
        dark: (brightness 0..255, factor), brightness increasing: linear between, constant outside.
        hours: (first minute, last minute (excluded), factor) of the camera's local day, may cross midnight; the first counts.
        join_s: clips of a camera that follow within so many seconds are one recording, whatever they were recorded as;
            None: only clips of the same recording.
        min_score: of an expression: the least score of a detection that counts in its n_<class>; `View.counting` sets it.
    """

    name: str
    on: float
    off: float
    least_s: float = 0.5
    merge_s: float = 1.0
    pad_s: float = 0.0
    dark: tuple[tuple[float, float], ...] = ()
    hours: tuple[tuple[int, int, float], ...] = ()
    join_s: float | None = None
    min_score: float = views.MIN_SCORE

    @property
    def is_motion(self) -> bool:
        """Whether its scores come from `gops`."""
        return self.name == MOTION

    @property
    def is_expression(self) -> bool:
        """Whether its name is a where-expression."""
        return _OPERATOR.search(self.name) is not None

    @property
    def step(self) -> str:
        """The step whose result it is."""
        return views.SCAN if self.is_motion else "where" if self.is_expression else views.DETECT


def layer(
    name: str, *, on: float | None = None, off: float | None = None, least_s: float = 0.5, merge_s: float = 1.0,
    pad_s: float = 0.0, dark: Sequence[tuple[float, float]] = (), hours: Sequence[tuple[int, int, float]] = (),
    join_s: float | None = None,
) -> Layer:  # fmt: skip
    """Return a layer; `on` is .02 of the picture for motion (score 1) and .5 for a class by default, `off` half of `on`.

    Raises:
        QueryError: a name, number or threshold that cannot be; an expression with thresholds.
    """
    is_expression = _OPERATOR.search(name) is not None
    if is_expression:
        where.parse(name)
        if on is not None or off is not None or dark or hours:
            raise QueryError(f"{name!r} is true or false: it has no thresholds; put brightness or hour into the expression")
        on = off = 0.5
    elif not _CLASS.fullmatch(name):
        raise QueryError(f"layer {name[:80]!r}; legal: motion, a class such as person, or a where-expression")
    usual = ON[1] if name == MOTION else CLASS_ON
    chosen = usual if on is None else on
    made = Layer(
        name=name, on=chosen, off=chosen / 2 if off is None else off, least_s=least_s, merge_s=merge_s, pad_s=pad_s,
        dark=tuple(sorted(dark)), hours=tuple(hours), join_s=join_s,
    )  # fmt: skip
    _check(made)
    return made


def _check(made: Layer) -> None:
    if not 0 < made.off <= made.on <= 1:
        raise QueryError(f"on {made.on:g}, off {made.off:g}; legal: 0 < off <= on <= 1")
    for name in ("least_s", "merge_s", "pad_s", "join_s"):
        value = getattr(made, name)
        if value is not None and not 0 <= value < 86_400:
            raise QueryError(f"{name} {value:g}; legal: 0 or more seconds, less than a day")
    levels = [level for level, _ in made.dark]
    if any(not 0 <= level <= 255 for level in levels) or len(set(levels)) < len(levels):
        raise QueryError(f"dark at brightness {levels}; legal: each from 0 to 255, and once")
    for factor in [*(factor for _, factor in made.dark), *(factor for *_, factor in made.hours)]:
        if not 0 < factor <= 1000:
            raise QueryError(f"a threshold times {factor:g}; legal: above 0, at most 1000")


def read_dark(text: str) -> tuple[tuple[float, float], ...]:
    """Read `20=4,60=2,120=1`: at brightness 20 thresholds are four times as high, and so on.

    Raises:
        QueryError: it cannot be read.
    """
    made = []
    for part in text.split(","):
        level, _, factor = part.partition("=")
        try:
            made.append((float(level), float(factor)))
        except ValueError as error:
            raise QueryError(f"dark {part!r}; write BRIGHTNESS=FACTOR, such as 20=4,60=2,120=1") from error
    return tuple(made)


def read_hours(text: str) -> tuple[tuple[int, int, float], ...]:
    """Read `22:00-06:00=3`: thresholds are three times as high from 22 to 6 o'clock of the camera's local time.

    Raises:
        QueryError: it cannot be read.
    """
    made = []
    for part in text.split(","):
        times, _, factor = part.partition("=")
        try:
            made.append((*hours.minutes(times.strip()), float(factor)))
        except (SettingsError, ValueError) as error:
            raise QueryError(f"hours {part!r}; write HH:MM-HH:MM=FACTOR, such as 22:00-06:00=3") from error
    return tuple(made)
