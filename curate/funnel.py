"""The funnel: how much footage is left after each step of curation, over all cameras or for each.

    clips -> scanned -> decoded -> moving -> looked at -> with a person -> tagged

Everything is counted in the tables, so it can be asked for at any time, of this run or of all before it. Each stage has
`rows` (clips, GOPs or frames, as it says) and `footage_s`. For *scanned*, *decoded* and *looked at* that is what was really
done. *moving*, *with a person* and *tagged* are estimates for all footage: what was looked at with a known probability counts
1/p of itself; motion of a camera's sampled GOPs, as a share, stands for everything of that camera that was not certain to be
decoded. Clips that failed stand in `failures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from curate.query import TIME, Footage
from curate.scores import motion_on
from infra.views import class_column

STAGES: Final = ("clips", "scanned", "decoded", "moving", "looked at", "with", "tagged")
_SECONDS: Final = "_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of the funnel.

    Attributes:
        name: one of `STAGES`; "with" is completed by the class.
        unit: what a row is.
        rows: how many.
        footage_s: seconds of footage, done or estimated (see the module).
        share: of all footage, 0 to 1; None without any footage.
        camera_id: of one camera; None for all.
    """

    name: str
    unit: str
    rows: int
    footage_s: float
    share: float | None
    camera_id: str | None = None


def funnel(
    footage: Footage, *, class_name: str = "person", on: float | None = None, min_score: float = 0.25, by_camera: bool = False
) -> list[Stage]:
    """Return the stages, in order; of each camera if asked.

    Args:
        footage: the store; its vault is left out unless it was opened with it.
        class_name: what the last look is for.
        on: the motion score from which a frame moves; None: `curate.scores.motion_on`.
        min_score: the least score of a detection.
        by_camera: one funnel for each camera.

    Raises:
        QueryError: `min_score` is outside [0, 1].
        CatalogError: a damaged table.
    """
    clips = footage.clips.lazy().select("clip_id", "camera_id", TIME, "n_frames").collect()
    seconds = clips.select("clip_id", "camera_id", frame_s=pl.col(TIME) / pl.col("n_frames"))
    parts = [
        clips.select("camera_id", stage=pl.lit(0), **{_SECONDS: TIME}),
        *_of_gops(footage, seconds, motion_on(footage.catalog) if on is None else on),
        *_of_frames(footage, seconds, class_column(class_name), min_score),
    ]
    found = pl.concat(
        [part.select("camera_id", pl.col("stage").cast(pl.Int32), pl.col(_SECONDS).cast(pl.Float64)) for part in parts]
    )
    cameras: Sequence[str | None] = sorted(clips["camera_id"].unique()) if by_camera else [None]
    return [stage for camera in cameras for stage in _stages(found, camera, class_name)]


def _of_gops(footage: Footage, seconds: pl.DataFrame, on: float) -> list[pl.DataFrame]:
    columns = ["clip_id", "pts", "decoded", "motion", "p_keep"]
    gops = footage.catalog.scan("gops", columns).join(seconds.lazy(), on="clip_id").collect()
    length = pl.col("pts").list.len() * pl.col("frame_s")
    moving = pl.col("motion").list.eval(pl.element() >= on).list.sum() * pl.col("frame_s")
    sampled = pl.col("p_keep") < 1
    rest_s = length.filter(sampled).sum().over("camera_id")  # looked at or not
    stands_s = (length / pl.col("p_keep")).filter(sampled & pl.col("decoded")).sum().over("camera_id")
    weight = pl.when(sampled).then(rest_s / stands_s / pl.col("p_keep")).otherwise(1.0)
    decoded = gops.with_columns(weight=weight).filter("decoded")
    return [
        gops.select("camera_id", stage=pl.lit(1), **{_SECONDS: length}),
        decoded.select("camera_id", stage=pl.lit(2), **{_SECONDS: length}),
        decoded.select("camera_id", stage=pl.lit(3), **{_SECONDS: moving * pl.col("weight")}).filter(pl.col(_SECONDS) > 0),
    ]


def _of_frames(footage: Footage, seconds: pl.DataFrame, column: str, min_score: float) -> list[pl.DataFrame]:
    frames = footage.frames.counting(min_score).lazy()
    names = frames.collect_schema().names()
    count = pl.col(column) if column in names else pl.lit(None, pl.Int64)
    p_look = pl.col("p_look").fill_null(1.0) if "p_look" in names else pl.lit(1.0)
    kept = frames.select(
        "clip_id", "pts", "camera_id", count.alias("count"), p_look.alias("p_look"), pl.col(TIME).alias(_SECONDS)
    ).collect()
    looked = kept.filter(pl.col("count").is_not_null())
    found = looked.filter(pl.col("count") > 0).with_columns(pl.col(_SECONDS) / pl.col("p_look"))
    tags = footage.catalog.scan("tags", ["clip_id", "pts"]).unique().collect()
    return [
        looked.select("camera_id", _SECONDS, stage=pl.lit(4)),
        found.select("camera_id", _SECONDS, stage=pl.lit(5)),
        kept.join(tags, on=["clip_id", "pts"], how="semi").select("camera_id", _SECONDS, stage=pl.lit(6)),
    ]


def _stages(found: pl.DataFrame, camera_id: str | None, class_name: str) -> list[Stage]:
    mine = found if camera_id is None else found.filter(pl.col("camera_id") == camera_id)
    sums = {
        stage: (rows, float(total))
        for stage, rows, total in mine.group_by("stage").agg(pl.len(), pl.col(_SECONDS).sum()).rows()
    }
    all_s = sums.get(0, (0, 0.0))[1]
    units = ("clips", "GOPs", "GOPs", "GOPs", "frames", "frames", "frames")
    made = []
    for number, (name, unit) in enumerate(zip(STAGES, units, strict=True)):
        rows, total_s = sums.get(number, (0, 0.0))
        made.append(
            Stage(
                name=f"with {class_name}" if name == "with" else name,
                unit=unit,
                rows=rows,
                footage_s=total_s,
                share=total_s / all_s if all_s else None,
                camera_id=camera_id,
            )
        )
    return made
