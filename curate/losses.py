"""What each filter of a store lost, by slice: `camloop query --audit`. The estimates themselves: `infra/losses.py`.

the store's views, without the vault --> the slice --> the packet gate by clips, each cascade by kept frames
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from curate import datasets
from curate.query import Footage
from infra import losses as floor
from infra import where
from infra.errors import QueryError
from infra.losses import EVENT_S, GATE, GATE_NOTE, MOVING, POSITIVE, WANTED, WHOLE, Loss

__all__ = ["GATE", "GATE_NOTE", "MOVING", "POSITIVE", "WANTED", "WHOLE", "Loss", "losses", "remarks", "table"]
ONCE_NOTE = (
    "{names}: looks once per cell (once_s); of clips in which it left frames out, a frame counts as kept, too, where a certain "
    f"look found a positive at most {EVENT_S:g} s from it, also one that failed the condition"
)


def losses(
    footage: Footage, *, slice_text: str = "", by: Sequence[str] = (), positive: str = POSITIVE, moving: float = MOVING,
    min_score: float = 0.25,
) -> list[Loss]:  # fmt: skip
    """Estimate what every filter of a store lost.

    Args:
        footage: the store; its vault stays closed.
        slice_text: a where-expression over what is known of every frame (or clip, for the packet gate).
        by: columns of which each combination of values is judged alone.
        positive: a where-expression over frames: what a cascade is there to find.
        moving: share of the picture from which a GOP counts as moving, for the packet gate.
        min_score: least score of a detection that counts in `positive`.

    Returns:
        The packet gate first, then the stages in their order, then the cascade; none of a filter that no clip went through.

    Raises:
        QueryError: a column that is not there, a slice over what the filters themselves decide or people said of some frames
            of a cascade only, or a share that is none.
    """
    if not 0 < moving <= 1:
        raise QueryError(f"moving {moving:g}; legal: above 0, at most 1: a share of the picture")
    _check(footage, slice_text, by)
    return [*_gate(footage, slice_text, by, moving), *_cascade(footage, slice_text, by, positive, min_score)]


def table(found: Sequence[Loss], by: Sequence[str] = ()) -> pl.DataFrame:
    """Return one row per loss; see `Loss.row`."""
    return pl.DataFrame([loss.row(by) for loss in found], infer_schema_length=None)


def remarks(footage: Footage, found: Sequence[Loss], *, slice_text: str = "", by: Sequence[str] = ()) -> list[str]:
    """Say of what `losses` found why a filter, or all of it, is missing; arguments as there."""
    is_gated = not floor.gated(footage.catalog).head(1).collect().is_empty()
    if is_gated and not _named(slice_text, by) <= set(footage.clips.columns):
        return ["the packet gate can be judged by clip columns only"]
    if found:
        return [ONCE_NOTE.format(names=names)] if (names := ", ".join(loss.filter for loss in found if loss.is_once)) else []
    if footage.catalog.scan("gops", ["clip_id"]).head(1).collect().is_empty():
        return ["nothing was scanned yet: run camloop curate"]
    if is_gated or not footage.catalog.scan("looks", ["clip_id"]).head(1).collect().is_empty():
        return ["nothing that was filtered lies in this slice"]
    return ["nothing was filtered here: every frame was decoded, and every detector saw all that were kept"]


def _named(slice_text: str, by: Sequence[str]) -> set[str]:
    return {*where.parse(slice_text).columns, *by}


def _check(footage: Footage, slice_text: str, by: Sequence[str]) -> None:
    """Refuse columns that are not there, and those that are known only of what the filters let through."""
    clips, frames = footage.clips.lazy().collect_schema(), footage.frames.lazy().collect_schema()
    if wrong := sorted(_named(slice_text, by) & floor.decided(footage.catalog, frames.names(), clips.names())):
        raise QueryError(
            f"a slice of an audit by {wrong[0]}: it is known only of frames that the filters let through; "
            "take what is known of every frame, such as camera_id, day, hour or lighting"
        )
    where.parse(slice_text).to_polars({**clips, **frames})
    datasets.check_columns(by, {**clips, **frames})
    said = sorted(_named(slice_text, by) & floor.worded(footage.catalog) & set(frames.names()))
    filtered = pl.concat([floor.gated(footage.catalog), floor.cascaded(footage.catalog)])
    is_unknown = pl.any_horizontal(pl.lit(False), *(pl.col(name).is_null() for name in said))
    if said and (unsure := floor.gap(footage.frames.lazy(), filtered, said, is_unknown)):
        raise QueryError(
            f"a slice of an audit by {said[0]}: {unsure}: people name what the filters let through; "
            "take what is known of every frame, such as camera_id, day, hour or lighting"
        )


def _gate(footage: Footage, slice_text: str, by: Sequence[str], moving: float) -> Iterator[Loss]:
    if not _named(slice_text, by) <= set(footage.clips.columns):
        return  # a slice of frames, not of clips: `remarks` says so
    yield from floor.of_gate(footage.catalog, footage.clips.where(slice_text).lazy(), by=by, moving=moving)


def _cascade(footage: Footage, slice_text: str, by: Sequence[str], positive: str, min_score: float) -> Iterator[Loss]:
    if floor.cascaded(footage.catalog).head(1).collect().is_empty():
        return
    frames = footage.frames.counting(min_score).where(slice_text).lazy()
    datasets.check_columns(by, frames.collect_schema())
    yield from floor.of_cascade(footage.catalog, frames, by=by, positive=positive)
