"""The scores of a layer out of a store, clip by clip: what was looked at, for how long it holds, and what it stands for.

A frame's score holds until the next frame that could have one, at most `HOLD` times the clip's median distance of such
frames, and never into a GOP that was not decoded. What no score covers is unknown.

**Shares.** A frame that was looked at for sure (p_keep = 1) stands for itself; frames of a sample stand, in proportion to
1 / p_keep, for those that were not looked at for sure (a ratio estimate: `estimate`).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.intervals import Ticks
from curate.layers import MOTION, ON, Layer
from infra import views, where
from infra.catalog import Catalog
from infra.errors import QueryError

HOLD: Final = 4  # median distances: a frame says nothing about a drop-out that is longer
NO_DETECTOR: Final = "no detector looked yet: camloop curate --weights FILE"
CHUNK_ROWS: Final = 20_000  # GOPs in memory at the same time

Column = NDArray[np.float64]


def motion_versions(catalog: Catalog) -> tuple[int, ...]:
    """Return the versions of the motion score that a store's clips have (`layers.ON`), in order; (1,) before any scan.

    A clip was scanned with score 2 where it has a row in `scenes` (`scene.Look.row`).
    """
    scored_2 = catalog.scan("scenes", ["clip_id"]).unique()
    if scored_2.head(1).collect().is_empty():
        return (1,)
    others = catalog.scan("gops", ["clip_id"]).join(scored_2, on="clip_id", how="anti")
    return (2,) if others.head(1).collect().is_empty() else (1, 2)


def motion_on(catalog: Catalog) -> float:
    """Return the share of the picture from which something moves: that of score 2 where every scanned clip has that score."""
    return ON[2] if motion_versions(catalog) == (2,) else ON[1]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The scores of one clip, in order; what is not there is unknown.

    Attributes:
        pts: int64 (T,), increasing.
        end_pts: int64 (T,): value[i] holds for [pts[i], end_pts[i]).
        value: float64 (T,), no NaN.
        p_keep: float64 (T,), the probability with which the frame came to be looked at.
        looked: `stood_for` of all frames that were looked at, also of those without a score.
        factor: float64 (T,), by which the thresholds are multiplied at each.
    """

    pts: Ticks
    end_pts: Ticks
    value: Column
    p_keep: Column
    looked: Column
    factor: Column


class _Raw(NamedTuple):
    """The frames of a clip that were looked at: value NaN where it is unknown; at `limit` each ends at the latest."""

    pts: Ticks
    value: Column
    p_keep: Column
    limit: Ticks


def scores(catalog: Catalog, wanted: Layer, clip_ids: Collection[str]) -> Iterator[tuple[str, Scores]]:
    """Yield (clip_id, scores) of those of the clips that have some, each once; motion is read in one pass, clip by clip.

    Args:
        catalog: the tables.
        wanted: the layer.
        clip_ids: the clips to look at.

    Raises:
        QueryError: a class that no detector ever found, or an expression with an unknown column.
    """
    chosen = pl.col("clip_id").is_in(list(clip_ids))
    found = _motion(catalog, chosen) if wanted.is_motion else _of_frames(catalog, wanted, chosen)
    factors = _by_clip(_factors(catalog, wanted, chosen)) if wanted.dark or wanted.hours else {}
    for clip_id, raw in found:
        pts, end_pts, value, p_keep = _ended(raw)
        factor = _nearest(factors[clip_id], pts) if clip_id in factors else np.ones(len(pts))
        yield clip_id, Scores(pts, end_pts, value, p_keep, stood_for(raw.p_keep), factor)


def stood_for(p_keep: Column) -> Column:
    """Return [frames looked at for sure, sum of 1 / p_keep of those of a sample]: float64 (2,), which may be added up."""
    is_sampled = p_keep < 1
    return np.array([float((~is_sampled).sum()), float((1 / p_keep[is_sampled]).sum())])


def estimate(part: Column, looked: Column, n_frames: int) -> float:
    """Return how many frames are such as those of `part`: its sure ones, and of the rest what its share of the sample is.

    Args:
        part: `stood_for` of some of the frames that were looked at.
        looked: `stood_for` of all of them.
        n_frames: looked at or not. Take many clips at once: the only sampled frame of a clip speaks for other clips too.
    """
    rest = max(0.0, n_frames - looked[0])
    return float(part[0] + (part[1] / looked[1] * rest if looked[1] else 0.0))


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
    found = views.detections(catalog).select("clip_id", "pts", "class_name", "score")
    classes = sorted({*found.select(pl.col("class_name").unique()).collect()["class_name"], "person"})
    if wanted.name not in classes:
        if views.looked_at(catalog).is_empty():
            raise QueryError(f"no detection of class {wanted.name!r}: {NO_DETECTOR}")
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
    frames = views.frames_view(catalog, min_score=wanted.min_score).filter(chosen)
    value = where.parse(wanted.name).to_polars(frames.collect_schema()).cast(pl.Float64)
    return frames.select("clip_id", "pts", "p_keep", clip_end="end_pts", value=value).collect()


def _ended(raw: _Raw) -> tuple[Ticks, Ticks, Column, Column]:
    """Return the known frames with their ends: the next frame, the limit, or `HOLD` median distances."""
    end_pts = np.minimum(np.append(raw.pts[1:], raw.limit[-1:]), raw.limit)
    if len(raw.pts) > 1:
        end_pts = np.minimum(end_pts, raw.pts + int(np.ceil(HOLD * np.median(np.diff(raw.pts)))))
    is_known = ~np.isnan(raw.value) & (end_pts > raw.pts)
    return raw.pts[is_known], end_pts[is_known], raw.value[is_known], raw.p_keep[is_known]


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
