"""Layers: what can be on in footage, at which scores, and the scores themselves out of a store.

A layer is named by
- `motion`: the share of the picture that moves, one score per decoded frame (table `gops`);
- a class of the detector, such as `person`: the highest score of its detections in each kept frame, 0 where the detector
  looked and found none;
- anything else is a where-expression over kept frames, such as `lighting = 'night' and n_car > 0`: 1 where it is true, 0
  where it is false, unknown where it is null. So a tag is a layer: human beats model beats static, as in every view.

A frame's score holds until the next frame that could have one, at most `HOLD` times the clip's median distance of such
frames, and never into a GOP that was not decoded. What no score covers is unknown.

Thresholds may follow darkness and hours: both are factors by which `on` and `off` of a frame are multiplied.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.intervals import Ticks
from infra import views, where
from infra.catalog import Catalog
from infra.errors import QueryError

MOTION: Final = "motion"
HOLD: Final = 4  # median distances: a frame says nothing about a drop-out that is longer
ON: Final = {MOTION: 0.02}  # share of the picture
CLASS_ON: Final = 0.5  # score of a detection
CHUNK_ROWS: Final = 20_000  # GOPs in memory at the same time
_CLASS: Final = re.compile(r"[A-Za-z][A-Za-z0-9 _.-]*")
_OPERATOR: Final = re.compile(r"[=<>]|\b(is|in|between|not)\b", re.IGNORECASE)
_HOURS: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The scores of one clip, in order; what is not there is unknown.

    Attributes:
        pts: int64 (T,), increasing.
        end_pts: int64 (T,): value[i] holds for [pts[i], end_pts[i]).
        value: float64 (T,), no NaN.
        weight: float64 (T,), how many frames of the clip each stands for: 1 / p_keep, but so that what was sampled makes up the
            frames that were not all looked at (a ratio estimate).
        factor: float64 (T,), by which the thresholds are multiplied at each.
    """

    pts: Ticks
    end_pts: Ticks
    value: Column
    weight: Column
    factor: Column


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
    """Return a layer; `on` is .02 of the picture for motion and .5 for a class by default, `off` half of `on`.

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
    chosen = ON.get(name, CLASS_ON) if on is None else on
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


class _Raw(NamedTuple):
    """The frames of a clip that were looked at: value NaN where it is unknown; at `limit` each ends at the latest."""

    pts: Ticks
    value: Column
    p_keep: Column
    limit: Ticks


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
        found = _HOURS.fullmatch(times.strip())
        try:
            number = float(factor)
        except ValueError:
            found = None
        if found is None:
            raise QueryError(f"hours {part!r}; write HH:MM-HH:MM=FACTOR, such as 22:00-06:00=3")
        first_h, first_min, last_h, last_min = map(int, found.groups())
        made.append((60 * first_h + first_min, 60 * last_h + last_min, number))
    return tuple(made)


def scores(catalog: Catalog, wanted: Layer, n_frames: Mapping[str, int]) -> Iterator[tuple[str, Scores]]:
    """Yield (clip_id, scores) of those of the clips that have some, each once; motion is read in one pass, clip by clip.

    Args:
        catalog: the tables.
        wanted: the layer.
        n_frames: clip_id -> its number of frames, of the clips to look at.

    Raises:
        QueryError: a class that no detector ever found, or an expression with an unknown column.
    """
    chosen = pl.col("clip_id").is_in(list(n_frames))
    found = _motion(catalog, chosen) if wanted.is_motion else _of_frames(catalog, wanted, chosen)
    factors = _by_clip(_factors(catalog, wanted, chosen)) if wanted.dark or wanted.hours else {}
    for clip_id, raw in found:
        pts, end_pts, value, weight = _ended(raw, weights(raw.p_keep, n_frames[clip_id]))
        factor = _nearest(factors[clip_id], pts) if clip_id in factors else np.ones(len(pts))
        yield clip_id, Scores(pts, end_pts, value, weight, factor)


def weights(p_keep: Column, n_frames: int) -> Column:
    """Return how many frames each looked-at frame stands for: 1 where p_keep is 1, else in proportion to 1 / p_keep.

    Args:
        p_keep: float64 (T,), of all frames that were looked at.
        n_frames: of the clip; what is not looked at with certainty is shared out among the rest.
    """
    is_sampled = p_keep < 1
    inverse: Column = 1 / p_keep
    mass = float(inverse[is_sampled].sum())
    scale = max(0, n_frames - int((~is_sampled).sum())) / mass if mass else 1.0
    return np.where(is_sampled, inverse * scale, 1.0)


def _by_clip(frame: pl.DataFrame) -> dict[str, pl.DataFrame]:
    return {str(key[0]): part for key, part in frame.partition_by("clip_id", as_dict=True).items()}


def _motion(catalog: Catalog, chosen: pl.Expr) -> Iterator[tuple[str, _Raw]]:
    """Yield what decoded frames say, a clip as soon as all of its GOPs were read."""
    n_rows = dict(catalog.scan("gops", ["clip_id"]).filter(chosen).group_by("clip_id").len().collect().iter_rows())
    columns = ["clip_id", "start_pts", "end_pts", "pts", "motion", "decoded", "p_keep"]
    held: dict[str, list[pl.DataFrame]] = {}
    for chunk in catalog.scan("gops", columns).filter(chosen).collect_batches(chunk_size=CHUNK_ROWS):
        for clip_id, part in _by_clip(chunk).items():
            parts = held.setdefault(clip_id, [])
            parts.append(part)
            if sum(read.height for read in parts) == n_rows[clip_id]:
                yield from _decoded(clip_id, pl.concat(held.pop(clip_id)))


def _decoded(clip_id: str, gops: pl.DataFrame) -> Iterator[tuple[str, _Raw]]:
    n, n_scores = pl.col("pts").list.len(), pl.col("motion").list.len()
    ordered = gops.filter(pl.col("decoded") & (n == n_scores) & (n > 0)).sort("start_pts")
    if ordered.height:
        counts = ordered["pts"].list.len().to_numpy()
        limit, p_keep = (np.repeat(ordered[name].to_numpy(), counts) for name in ("end_pts", "p_keep"))
        yield clip_id, _Raw(ordered["pts"].explode().to_numpy(), _floats(ordered["motion"].explode()), p_keep, limit)


def _of_frames(catalog: Catalog, wanted: Layer, chosen: pl.Expr) -> Iterator[tuple[str, _Raw]]:
    """Yield what kept frames say; a GOP that was not decoded ends what the frame before it says."""
    frames = _expression(catalog, wanted, chosen) if wanted.is_expression else _class(catalog, wanted, chosen)
    gops = catalog.scan("gops", ["clip_id", "start_pts", "decoded"]).filter(chosen, ~pl.col("decoded"))
    blind = gops.select("clip_id", pts="start_pts", blind_pts="start_pts").sort("pts").collect()
    bounded = frames.sort("pts").join_asof(blind, on="pts", by="clip_id", strategy="forward", check_sortedness=False)
    bounded = bounded.with_columns(limit=pl.min_horizontal("blind_pts", "clip_end"))
    for clip_id, part in _by_clip(bounded).items():
        columns = part["pts"].to_numpy(), _floats(part["value"]), part["p_keep"].to_numpy(), part["limit"].to_numpy()
        yield clip_id, _Raw(*columns)


def _floats(series: pl.Series) -> Column:
    """Return float64 with NaN where it is null."""
    made: Column = series.cast(pl.Float64).to_numpy()
    return made


def _class(catalog: Catalog, wanted: Layer, chosen: pl.Expr) -> pl.DataFrame:
    found = catalog.scan("detections", ["clip_id", "pts", "class_name", "score"])
    classes = sorted({*found.select(pl.col("class_name").unique()).collect()["class_name"], "person"})
    if wanted.name not in classes:
        near = difflib.get_close_matches(wanted.name, [MOTION, *classes], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"found were: {', '.join(classes)}"
        raise QueryError(f"no detection of class {wanted.name!r}; {hint}")
    best = found.filter(chosen, pl.col("class_name") == wanted.name).group_by("clip_id", "pts").agg(best=pl.col("score").max())
    column = views.class_column(wanted.name)
    frames = views.frames_view(catalog, min_score=0, classes=(wanted.name,)).filter(chosen)
    frames = frames.select("clip_id", "pts", "p_keep", clip_end="end_pts", n=column)
    frames = frames.join(best, on=["clip_id", "pts"], how="left", maintain_order="left")
    value = pl.when(pl.col("n").is_not_null()).then(pl.col("best").fill_null(0.0).cast(pl.Float64))
    return frames.select("clip_id", "pts", "p_keep", "clip_end", value=value).collect()


def _expression(catalog: Catalog, wanted: Layer, chosen: pl.Expr) -> pl.DataFrame:
    frames = views.frames_view(catalog).filter(chosen)
    value = where.parse(wanted.name).to_polars(frames.collect_schema()).cast(pl.Float64)
    return frames.select("clip_id", "pts", "p_keep", clip_end="end_pts", value=value).collect()


def _ended(raw: _Raw, weight: Column) -> tuple[Ticks, Ticks, Column, Column]:
    """Return the known frames with their ends: the next frame, the limit, or `HOLD` median distances."""
    end_pts = np.minimum(np.append(raw.pts[1:], raw.limit[-1:]), raw.limit)
    if len(raw.pts) > 1:
        end_pts = np.minimum(end_pts, raw.pts + int(np.ceil(HOLD * np.median(np.diff(raw.pts)))))
    is_known = ~np.isnan(raw.value) & (end_pts > raw.pts)
    return raw.pts[is_known], end_pts[is_known], raw.value[is_known], weight[is_known]


def _nearest(factors: pl.DataFrame, pts: Ticks) -> Column:
    """Return the factor of the kept frame nearest to each of `pts`, the earlier of two."""
    ordered = factors.sort("pts")
    kept = ordered["pts"].to_numpy()
    return _floats(ordered["factor"])[np.searchsorted((kept[1:] + kept[:-1]) / 2, pts, "left")]


def _factors(catalog: Catalog, wanted: Layer, chosen: pl.Expr) -> pl.DataFrame:
    """Return clip_id, pts, factor of kept frames, by their brightness and local time; 1 where they are unknown."""
    columns = ["clip_id", "pts", "brightness", "capture_ns", "time_zone"]
    frames = views.frames_view(catalog).filter(chosen).select(columns).collect()
    factor = darkness_factor(pl.col("brightness").cast(pl.Float64), wanted.dark)
    factor = factor * _hours_factor(wanted.hours, frames["time_zone"].fill_null("UTC").unique().sort().to_list())
    return frames.select("clip_id", "pts", factor=factor)


def darkness_factor(brightness: pl.Expr, dark: Sequence[tuple[float, float]]) -> pl.Expr:
    """Return the factor at a brightness: linear between the given points, constant outside, 1 where it is unknown."""
    made = pl.lit(dark[-1][1] if dark else 1.0)
    for (low, at_low), (high, at_high) in reversed(list(zip(dark, dark[1:], strict=False))):
        between = at_low + (brightness - low) / (high - low) * (at_high - at_low)
        made = pl.when(brightness < high).then(between).otherwise(made)
    if dark:
        made = pl.when(brightness <= dark[0][0]).then(dark[0][1]).otherwise(made)
    return pl.when(brightness.is_null()).then(1.0).otherwise(made)


def _hours_factor(hours: Sequence[tuple[int, int, float]], zones: Sequence[str]) -> pl.Expr:
    utc = pl.from_epoch("capture_ns", time_unit="ns").dt.replace_time_zone("UTC")
    local = [utc.dt.convert_time_zone(zone).dt for zone in zones]
    minutes = [
        pl.when(pl.col("time_zone").fill_null("UTC") == zone).then(at.hour().cast(pl.Int32) * 60 + at.minute())
        for zone, at in zip(zones, local, strict=True)
    ]
    minute = pl.coalesce(*minutes, pl.lit(None, pl.Int32))
    made = pl.lit(1.0)
    for first, last, factor in reversed(hours):
        inside = (minute >= first) & (minute < last) if first < last else (minute >= first) | (minute < last)
        made = pl.when(inside).then(factor).otherwise(made)
    return made
