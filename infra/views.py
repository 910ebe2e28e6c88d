"""The two views that people query: one row per live clip, one row per live frame, everything known joined in.

`clips_view`: the columns of `clips`, the camera row valid at the clip's start (angle, indoor, time_zone, host, and each of
its attributes as a column), factors that hold for the whole clip, and the number of failures.

`frames_view`: one row per live row of `frames`, with its clip's and camera's columns, and
- `pts_s` = pts x time base, `capture_ns` (UTC, null when the start is unknown), `hour` (0-23, the camera's local time),
  `hour_utc` (by which wishes ask: a camera need not know its zone);
- `n_<class>`: detections with score >= min_score; 0 where the detector looked and found none, null where it did not look;
  where a cascade curated (table `looks`), those of its last detector, and `p_look`, the probability with which that one came
  to look at the frame: 1 where it looks at every frame, null where it did not look;
- `<factor>` and `<factor>_source`: a person's word, else a model's tag, else what is fixed for the camera; the newest
  within a kind, a frame's tag before a clip's;
- `label`: the newest class label without a box that covers pts and was not retracted, else null.

Which columns there are depends on the store: classes, factors and attributes are read when the view is made; the rest is
lazy. An attribute or factor whose name is taken by a column of the floor is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

import polars as pl

from infra.catalog import Catalog
from infra.errors import QueryError

DETECT: Final = "detect"
"""Name of the step after whose `done` a frame without detections counts 0."""
SCAN: Final = "scan"
"""Name of the step that chose the frames: a detector that was done before it saw others."""

MIN_SCORE: Final = 0.25
"""Least score of a detection that counts in `n_<class>`, unless another is asked for."""

FRAME_MEASURES: Final = ("brightness", "contrast", "blur", "colourfulness", "motion_score", "p_keep")
_CLIP_COLUMNS: Final = (
    "camera_id", "camera_number", "recording_id", "boot_id", "seq", "site", "day", "source_group", "host_id", "source_name",
    "container", "codec", "clock", "index", "state", "width_px", "height_px", "start_ns", "first_pts", "end_pts",
    "time_base_num", "time_base_den", "time_zone", "indoor",
)  # fmt: skip
_COMPUTED: Final = ("clip_id", "pts", "pts_s", "capture_ns", "hour", "hour_utc", "label", "n_failures", "p_look")
_ABOUT_FILES: Final = {"time_pattern", "container_time", "mask"}  # how to read a camera's files and pictures: no factors
_FIRST: Final = -(2**63)
_LAST: Final = 2**63 - 1


def class_column(class_name: str) -> str:
    """Return the column that counts a class: `traffic light` -> `n_traffic_light`."""
    return "n_" + (re.sub(r"[^a-z0-9]+", "_", class_name.lower()).strip("_") or "unnamed")


def clip_columns(catalog: Catalog) -> frozenset[str]:
    """Return what is known of a whole clip but its factors: columns of `clips`, its camera's, their attributes, n_failures."""
    return frozenset({*_clips(catalog)[0].collect_schema(), "n_failures"})


def clips_view(catalog: Catalog) -> pl.LazyFrame:
    """Return one row per live clip, sorted by clip_id (see the module).

    Returns:
        The columns of `clips` but batch_id and schema_version, camera columns and attributes, `<factor>` with
        `<factor>_source` for what holds for the whole clip, n_failures (int).
    """
    clips, static = _clips(catalog)
    words = _words(catalog).filter(pl.col("factor").is_not_null())
    extent = clips.select("clip_id", "first_pts", clip_end="end_pts").collect()
    whole = words.join(extent, on="clip_id").filter(
        pl.col("start_pts") <= pl.col("first_pts"), pl.col("end_pts") >= pl.col("clip_end")
    )
    tags = _tags(catalog, {}).filter(pl.col("pts").is_null()).collect()
    for factor in _factors(clips.collect_schema().names(), static, whole["factor"], tags["factor"]):
        human, model = (
            found.filter(pl.col("factor") == factor)
            .unique("clip_id", keep="last")
            .select("clip_id", pl.col("name").alias(kind))
            for found, kind in ((whole, "_human"), (tags, "_model"))
        )
        clips = clips.join(human.lazy(), on="clip_id", how="left").join(model.lazy(), on="clip_id", how="left")
        clips = _resolve(clips, factor, "_human", ["_model"], factor in static)
    failures = catalog.scan("failures", ["clip_id"]).drop_nulls().group_by("clip_id").len("n_failures")
    clips = clips.join(failures, on="clip_id", how="left")
    return clips.with_columns(pl.col("n_failures").fill_null(0).cast(pl.Int64)).sort("clip_id")


def frames_view(
    catalog: Catalog,
    *,
    min_score: float = MIN_SCORE,
    sources: Mapping[str, str] | None = None,
    classes: Sequence[str] = ("person",),
    human: bool = True,
) -> pl.LazyFrame:
    """Return one row per live frame, sorted by clip_id and pts (see the module).

    Args:
        catalog: the tables, or a snapshot of them.
        min_score: the least score of a detection that counts in `n_<class>`; in [0, 1].
        sources: "detections" or a factor -> the `name@version` to use; without, what is live, the newest first.
        classes: class names that have a column even when none was ever found; every class ever found has one.
        human: False leaves people's words out: the view as machines and the registry alone would have it, to judge them by.

    Raises:
        QueryError: `min_score` is outside [0, 1].
        CatalogError: a damaged log or, on collect, data file.
    """
    if not 0 <= min_score <= 1:
        raise QueryError(f"min_score {min_score:g} is outside [0, 1]")
    sources = dict(sources or {})
    clips, static = _clips(catalog)
    zones = clips.select(_zone().unique()).collect().to_series().sort().to_list()
    clips = clips.select("clip_id", *_CLIP_COLUMNS, *static)
    frames = catalog.scan("frames", ["clip_id", "pts", *FRAME_MEASURES]).sort("clip_id", "pts")
    taken = [*frames.collect_schema().names(), *clips.collect_schema().names()]
    words = _words(catalog) if human else _words(catalog).clear()
    # Narrow joins first, on frames alone; what is the same for a whole clip comes with its clip, in one join at the end.
    frames, clips, counts = _join_counts(frames, clips, catalog, min_score, sources.pop("detections", None), classes)
    frames, clips, factors = _join_factors(frames, clips, catalog, words, [*taken, *counts], static, sources)
    labels = words.filter(pl.col("factor").is_null(), pl.col("x1").is_null())
    frames = covered(frames, segments(labels), "_label")
    frames = frames.join(clips, on="clip_id", how="inner", maintain_order="left")
    frames = _with_times(frames, zones)
    if "_p_some" in frames.collect_schema():
        frames = frames.with_columns(p_look=pl.coalesce("_p_some", pl.col("_looked") + 1.0)).drop("_p_some")
        frames = frames.with_columns(_looked=pl.when(pl.col("p_look").is_not_null()).then(pl.lit(0, pl.Int64)))
    frames = frames.with_columns(pl.coalesce(name, "_looked").alias(name) for name in counts)
    for factor in factors:
        frames = _resolve(frames, factor, "_human_" + factor, ["_frame_" + factor, "_clip_" + factor], factor in static)
    return frames.rename({"_label": "label"}).drop("_looked")


def _clips(catalog: Catalog) -> tuple[pl.LazyFrame, list[str]]:
    """Return live clips with the camera row valid at their start (of an unknown start, the newest), and its factors."""
    cameras = catalog.scan("cameras").collect()
    written = pl.col("created_ns").fill_null(0)
    cameras = cameras.filter(written == written.max().over("camera_id"))
    cameras = cameras.unique(["camera_id", "valid_from_ns"], keep="first", maintain_order=True).sort("valid_from_ns")
    attributes = [json.loads(text or "{}") for text in cameras["attributes"]]
    clips = catalog.scan("clips").drop("batch_id", "schema_version")
    taken = {*clips.collect_schema().names(), *cameras.columns, *FRAME_MEASURES, *_COMPUTED}
    names = sorted({name for found in attributes for name in found} - taken - _ABOUT_FILES)
    columns = [pl.Series(n, [str(found[n]) if n in found else None for found in attributes], pl.String) for n in names]
    fixed = cameras.with_columns(columns).select(
        "camera_id", "valid_from_ns", "angle", "indoor", "time_zone", *names, camera_site="site"
    )
    joined = clips.with_columns(_at=pl.col("start_ns").fill_null(_LAST)).sort("_at", "clip_id").join_asof(
        fixed.lazy(), left_on="_at", right_on="valid_from_ns", by="camera_id", strategy="backward", check_sortedness=False
    )  # fmt: skip
    joined = joined.with_columns(pl.coalesce("site", "camera_site").alias("site"))
    return joined.drop("_at", "camera_site", "valid_from_ns", strict=False), ["angle", *names]


def _zone() -> pl.Expr:
    return pl.col("time_zone").fill_null("UTC")


def _with_times(frames: pl.LazyFrame, zones: Sequence[str]) -> pl.LazyFrame:
    """Add pts_s, capture_ns, hour and hour_utc."""
    tick_s = pl.col("time_base_num") / pl.col("time_base_den")
    since_start_ns = ((pl.col("pts") - pl.col("first_pts")) * tick_s * 1_000_000_000).round().cast(pl.Int64)
    frames = frames.with_columns(pts_s=pl.col("pts") * tick_s, capture_ns=pl.col("start_ns") + since_start_ns)
    utc = pl.from_epoch("capture_ns", time_unit="ns").dt.replace_time_zone("UTC")
    hours = [pl.when(_zone() == name).then(utc.dt.convert_time_zone(name).dt.hour()) for name in zones]
    return frames.with_columns(hour=pl.coalesce(*hours, pl.lit(None, pl.Int8)), hour_utc=utc.dt.hour())


def _join_counts(
    frames: pl.LazyFrame, clips: pl.LazyFrame, catalog: Catalog, min_score: float, source: str | None, classes: Sequence[str]
) -> tuple[pl.LazyFrame, pl.LazyFrame, list[str]]:
    """Join n_<class> to frames, and to clips `_looked`: 0 where the detector looked, else null. Return the columns too.

    Where a cascade curated some clips, frames also get `_p_some`, the probability of a look.
    """
    found = catalog.scan("detections", ["clip_id", "pts", "source", "class_name", "score"])
    looked = looked_at(catalog).lazy()
    in_cascade, looks = _cascaded(catalog, source)
    some = looks.lazy().filter(pl.col("pts").is_not_null()).join(looked, on="clip_id", how="semi")
    if source is not None:  # a clip whose live detections are all of another source was not looked at by this one
        others = found.group_by("clip_id").agg(own=(pl.col("source") == source).any()).filter(~pl.col("own"))
        looked = looked.join(others, on="clip_id", how="anti")
        found = found.filter(pl.col("source") == source)
    else:
        found = _judged(found, looks)
    columns: dict[str, list[str]] = {}
    for name in sorted({*found.select(pl.col("class_name").unique()).collect()["class_name"], *classes}):
        columns.setdefault(class_column(name), []).append(name)
    counted = found.filter(pl.col("score") >= min_score).group_by("clip_id", "pts").agg(
        pl.col("class_name").is_in(names).sum().cast(pl.Int64).alias(column) for column, names in columns.items()
    )  # fmt: skip
    frames = frames.join(counted, on=["clip_id", "pts"], how="left", maintain_order="left")
    whole = looked.join(in_cascade.lazy(), on="clip_id", how="anti").with_columns(_looked=pl.lit(0, pl.Int64))
    clips = clips.join(whole, on="clip_id", how="left")
    if not in_cascade.is_empty():
        some = some.select("clip_id", "pts", _p_some="p_look")
        frames = frames.join(some, on=["clip_id", "pts"], how="left", maintain_order="left")
    return frames, clips, list(columns)


def detections(catalog: Catalog) -> pl.LazyFrame:
    """Return the live detections that count: where a cascade curated, those of its last detector, as in `n_<class>`."""
    return _judged(catalog.scan("detections"), _cascaded(catalog, None)[1])


def _judged(found: pl.LazyFrame, looks: pl.DataFrame) -> pl.LazyFrame:
    """Leave out, in the clips of `looks` (see `_cascaded`), the detections of other sources."""
    if looks.is_empty():
        return found
    judges = looks.select("clip_id", _judge="source").unique().lazy()
    found = found.join(judges, on="clip_id", how="left")
    return found.filter(pl.col("_judge").is_null() | (pl.col("source") == pl.col("_judge"))).drop("_judge")


def _cascaded(catalog: Catalog, source: str | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the clips that a cascade curated, and the looks (clip_id, pts, source, p_look) of the detector that counts there.

    That is the one named by `source`, else the last one; it has a row with null pts where it looked at no frame of a clip.
    """
    rows = catalog.scan("looks", ["clip_id", "pts", "step", "number", "source", "p_look"])
    looks = rows.filter(pl.col("step") == DETECT).collect()
    is_last = pl.col("number") == pl.col("number").max().over("clip_id")
    mine = looks.filter(is_last if source is None else pl.col("source") == source)
    return looks.select("clip_id").unique(), mine.select("clip_id", "pts", "source", "p_look")


def looked_at(catalog: Catalog) -> pl.DataFrame:
    """Return clip_id of the clips whose kept frames the detector saw: it was done after the scan that counts."""
    clips = catalog.live().filter(pl.col("scope") == "clip")
    scanned = clips.filter(pl.col("step") == SCAN).select("scope_id", scanned_ns="done_ns")
    detected = clips.filter(pl.col("step") == DETECT).join(scanned, on="scope_id", how="left")
    seen = detected.filter(pl.col("done_ns") >= pl.col("scanned_ns").fill_null(_FIRST))
    return seen.select(clip_id="scope_id").sort("clip_id")


def _join_factors(
    frames: pl.LazyFrame,
    clips: pl.LazyFrame,
    catalog: Catalog,
    words: pl.DataFrame,
    taken: Sequence[str],
    static: Sequence[str],
    sources: Mapping[str, str],
) -> tuple[pl.LazyFrame, pl.LazyFrame, list[str]]:
    """Join each factor's candidates: a person's word and a tag to frames, a clip's tag to clips. Return the factors too."""
    words = words.filter(pl.col("factor").is_not_null())
    tags = _tags(catalog, sources)
    factors = _factors(taken, static, words["factor"], tags.select(pl.col("factor").unique()).collect()["factor"])
    for factor in factors:
        mine = tags.filter(pl.col("factor") == factor).select("clip_id", "pts", "name")
        by_frame = mine.filter(pl.col("pts").is_not_null()).unique(["clip_id", "pts"], keep="last")
        by_clip = mine.filter(pl.col("pts").is_null()).unique("clip_id", keep="last")
        frames = covered(frames, segments(words.filter(pl.col("factor") == factor)), "_human_" + factor)
        frames = frames.join(
            by_frame.rename({"name": "_frame_" + factor}), on=["clip_id", "pts"], how="left", maintain_order="left"
        )
        clips = clips.join(by_clip.select("clip_id", pl.col("name").alias("_clip_" + factor)), on="clip_id", how="left")
    return frames, clips, factors


def _factors(columns: Sequence[str], static: Sequence[str], *found: pl.Series) -> list[str]:
    """Return the names of all factors, but those that a column of the floor has taken."""
    taken = {*columns, *_COMPUTED}
    return sorted({name for names in found for name in names if name not in taken} | set(static))


def _resolve(frame: pl.LazyFrame, factor: str, human: str, models: Sequence[str], fixed: bool) -> pl.LazyFrame:
    """Replace the candidates' columns by `<factor>` and `<factor>_source`: human > model > static."""
    static = pl.col(factor).cast(pl.String) if fixed else pl.lit(None, pl.String)
    model = pl.coalesce(*models)
    source = (
        pl.when(pl.col(human).is_not_null()).then(pl.lit("human"))
        .when(model.is_not_null()).then(pl.lit("model"))
        .when(static.is_not_null()).then(pl.lit("static"))
    )  # fmt: skip
    value = pl.coalesce(human, model, static)
    return frame.with_columns(value.alias(factor), source.alias(f"{factor}_source")).drop(human, *models)


def _tags(catalog: Catalog, sources: Mapping[str, str]) -> pl.LazyFrame:
    """Return live tags, the one that counts last: newest step, then source, then score."""
    when = catalog.live().group_by("batch_id").agg(pl.col("done_ns").max())
    tags = catalog.scan("tags").join(when.lazy(), on="batch_id", how="left")
    for factor, source in sources.items():
        tags = tags.filter((pl.col("factor") != factor) | (pl.col("source") == source))
    return tags.sort("done_ns", "source", "score", nulls_last=False)


def _words(catalog: Catalog) -> pl.DataFrame:
    """Return the labels that were not retracted, the newest last; no start or end means the clip's."""
    labels = catalog.scan("labels").collect()
    labels = labels.filter(pl.col("retracts").is_null(), ~pl.col("label_id").is_in(labels["retracts"].drop_nulls().implode()))
    bounds = [pl.col("start_pts").fill_null(_FIRST), pl.col("end_pts").fill_null(_LAST)]
    return labels.with_columns(bounds).sort("created_ns", "label_id", nulls_last=False)


def segments(words: pl.DataFrame) -> pl.DataFrame:
    """Cut overlapping intervals into stretches that have one name: that of the last row which covers them.

    Args:
        words: clip_id, start_pts, end_pts (half-open), name; the row that wins last.

    Returns:
        clip_id, pts (start of a stretch, up to the next), name (null = nothing covers it), sorted by clip_id and pts.
    """
    words = words.select("clip_id", "start_pts", "end_pts", "name").with_row_index("_rank")
    cuts = pl.concat([words.select("clip_id", pts=column) for column in ("start_pts", "end_pts")]).unique()
    covers = cuts.join(words, on="clip_id").filter(pl.col("start_pts") <= pl.col("pts"), pl.col("pts") < pl.col("end_pts"))
    winners = covers.sort("_rank").unique(["clip_id", "pts"], keep="last").select("clip_id", "pts", "name")
    return cuts.join(winners, on=["clip_id", "pts"], how="left").sort("clip_id", "pts")


def covered(frames: pl.LazyFrame, stretches: pl.DataFrame, column: str) -> pl.LazyFrame:
    """Add `column`: the name of the stretch (see `segments`) that covers each frame's (clip_id, pts), or null.

    Args:
        frames: sorted by clip_id and pts.
        stretches: what `segments` returned.
        column: a name that `frames` does not have.
    """
    if stretches.is_empty():
        return frames.with_columns(pl.lit(None, pl.String).alias(column))
    named = stretches.select("clip_id", "pts", pl.col("name").alias(column))
    return frames.join_asof(named.lazy(), on="pts", by="clip_id", strategy="backward", check_sortedness=False)
