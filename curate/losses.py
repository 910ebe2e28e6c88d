"""What each filter of a store lost: recall with an interval, from what was looked at although it had been dropped.

    gops   (p_keep, decoded, motion) --> the packet gate: a unit is a GOP, positive where its motion reaches a threshold
    looks  (p_look, passed)          --> each stage of a cascade: a unit is a kept frame, positive where the judge says so

A stage's condition is judged among frames that meet the conditions before it: *kept* are those that meet this one too; of the
dropped, those of the audit count as found where they meet all later conditions and the judge finds them positive. So each row
says what this condition alone costs. The row "cascade" has the loss of all of them together. Looks have known probabilities
(`curate.audit`), so the estimates hold for the footage that was curated, whatever it is; a slice has its own, wider interval.

The packet gate's row is of the clips in which it dropped something: some p_keep is below 1. A clip that it decoded whole
(its search or its alarms asked for everything) looks in the tables like one that was scanned without a gate, so that its
positives, all kept, are not counted: over all footage that went through the gate recall is higher (`GATE_NOTE`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from curate import datasets
from curate.audit import Audit, audit, looks_needed
from curate.gate import STRETCH_S
from curate.query import Footage
from infra import where
from infra.errors import QueryError

GATE: Final = "packet gate"
GATE_NOTE: Final = (
    "packet gate: of clips in which it dropped something; what it decoded whole is not counted, so that recall over all "
    "footage is higher"
)
WHOLE: Final = "cascade"
MOVING: Final = 0.02  # share of the picture that moves, as `curate.layers` begins an interval
POSITIVE: Final = "n_person > 0"
WANTED: Final = (0.95, 0.99)
EVENT_S: Final = 2.0  # findings of one clip at most this far apart are one event
_ARROW: Final = " > "
_KEY: Final = ["clip_id", "pts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One filter, in one slice of the footage (`group`: the values of the columns asked for)."""

    filter: str
    unit: str
    group: tuple[Any, ...]
    audit: Audit

    @property
    def needed(self) -> dict[float, int | None]:
        """Wanted recall -> looks at dropped units that would show it; None where none would (`audit.looks_needed`)."""
        found = self.audit
        return {
            wanted: looks_needed(found.kept.value, found.n_dropped, wanted, n_looked=found.n_looked, n_found=found.n_found)
            for wanted in WANTED
        }

    def row(self, by: Sequence[str]) -> dict[str, Any]:
        """Return it as one flat row."""
        found = self.audit
        needed = {f"looks_{round(100 * wanted)}": n for wanted, n in self.needed.items()}
        return {
            "filter": self.filter, "unit": self.unit, **dict(zip(by, self.group, strict=True)), "n_in": found.n_in,
            "n_kept": found.n_kept, "n_dropped": found.n_dropped, "n_looked": found.n_looked, "n_found": found.n_found,
            "kept": found.kept.value, "missed": found.missed.value, "missed_low": found.missed.low,
            "missed_high": found.missed.high, "recall": found.recall, "low": found.low, "high": found.high, **needed,
        }  # fmt: skip


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
        QueryError: a column that is not there, a slice over what the filters themselves decide, or a share that is none.
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
    is_gated = not footage.catalog.scan("gops", ["p_keep"]).filter(pl.col("p_keep") < 1).head(1).collect().is_empty()
    if is_gated and not _named(slice_text, by) <= set(footage.clips.columns):
        return ["the packet gate can be judged by clip columns only"]
    if found:
        return []
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
    decided = {"people", "p_look"} | {name for name in frames if name.startswith("n_") and name not in clips}
    by_models = pl.col("source").str.contains("^(rule|prompts)@")
    factors = footage.catalog.scan("tags", ["factor", "source"]).filter(by_models).select(pl.col("factor").unique())
    decided |= {name for factor in factors.collect()["factor"] for name in (factor, f"{factor}_source")}
    if wrong := sorted(_named(slice_text, by) & decided):
        raise QueryError(
            f"a slice of an audit by {wrong[0]}: it is known only of frames that the filters let through; "
            "take what is known of every frame, such as camera_id, day, hour or lighting"
        )
    where.parse(slice_text).to_polars({**clips, **frames})
    datasets.check_columns(by, {**clips, **frames})


def _grouped(units: pl.DataFrame, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pl.DataFrame]]:
    if not by:
        yield (), units
        return
    yield from sorted(units.partition_by(by, as_dict=True).items(), key=lambda item: [str(value) for value in item[0]])


def _gate(footage: Footage, slice_text: str, by: Sequence[str], moving: float) -> Iterator[Loss]:
    clips = footage.clips
    known = set(clips.columns)
    if not _named(slice_text, by) <= known:
        return  # a slice of frames, not of clips: `remarks` says so
    gops = footage.catalog.scan("gops", ["clip_id", "gop_index", "start_pts", "end_pts", "decoded", "motion", "p_keep"])
    gated = gops.filter(pl.col("p_keep") < 1).select("clip_id").unique()
    rows = clips.where(slice_text).lazy().select(*dict.fromkeys(["clip_id", "time_base_num", "time_base_den", *by]))
    units = gops.join(gated, on="clip_id", how="semi").join(rows, on="clip_id").sort("clip_id", "gop_index").collect()
    if units.is_empty():
        return
    length_s = (pl.col("end_pts") - pl.col("start_pts")) * pl.col("time_base_num") / pl.col("time_base_den")
    # GOPs of one stretch share their draw
    shared = units.select((STRETCH_S / length_s).ceil().clip(1, 1000).quantile(0.95)).item()
    moves = pl.when("decoded").then(pl.col("motion").list.max().fill_null(0) >= moving).cast(pl.Int64)
    units = units.with_columns(kept=pl.col("p_keep") >= 1, p_look="p_keep", n_positive=moves)
    begins = (pl.col("clip_id") != pl.col("clip_id").shift()) | (pl.col("n_positive") != pl.col("n_positive").shift())
    units = units.with_columns(cluster=begins.fill_null(True).cum_sum())  # neighbours that move are one event
    for group, mine in _grouped(units, by):
        yield Loss(filter=GATE, unit="gop", group=group, audit=audit(mine, most_positive=shared))


def _cascade(footage: Footage, slice_text: str, by: Sequence[str], positive: str, min_score: float) -> Iterator[Loss]:
    looks = footage.catalog.scan("looks").filter(pl.col("step") == "detect").collect()
    if looks.is_empty():
        return
    stages = looks.select("clip_id", "number", "stage").unique().sort("clip_id", "number")
    chains = stages.group_by("clip_id", maintain_order=True).agg(chain=pl.col("stage").str.join(_ARROW))
    frames = footage.frames.counting(min_score).where(slice_text).lazy()
    datasets.check_columns(by, frames.collect_schema())
    is_positive = where.parse(positive).to_polars(frames.collect_schema())
    frames = frames.select(*dict.fromkeys([*_KEY, "pts_s", *by]), positive=is_positive.fill_null(False))
    for name in chains["chain"].unique().sort():
        clips = chains.filter(chain=name).select("clip_id")
        units = _events(frames.join(clips.lazy(), on="clip_id", how="semi").collect())
        prefix = f"{name}: " if chains["chain"].n_unique() > 1 else ""
        yield from _stages(units, looks, name.split(_ARROW), by, prefix)


def _stages(units: pl.DataFrame, looks: pl.DataFrame, chain: Sequence[str], by: Sequence[str], prefix: str) -> Iterator[Loss]:
    """Yield the losses of one cascade's stages, and of all together."""
    units = _joined(units, looks, chain)
    passed = [pl.col(f"passed{number}").fill_null(False) for number in range(len(chain))]
    shares = [pl.when(passed[number]).then(1.0).otherwise(f"share{number}") for number in range(len(chain))]
    seen = [pl.col(f"p{number}").is_not_null() for number in range(len(chain))]
    always = pl.lit(True)
    for number, stage in enumerate(chain):
        later = pl.all_horizontal(always, *passed[number + 1 :])
        judged = units.filter(pl.all_horizontal(always, *passed[:number])).with_columns(
            kept=passed[number],
            p_look=shares[number],
            n_positive=pl.when(seen[number]).then((later & pl.col("positive")).cast(pl.Int64)),
        )
        for group, mine in _grouped(judged, by):
            yield Loss(filter=prefix + stage, unit="frame", group=group, audit=audit(mine))
    judged = units.with_columns(
        kept=pl.all_horizontal(passed),
        p_look=functools.reduce(operator.mul, shares),
        n_positive=pl.when(seen[-1]).then(pl.col("positive").cast(pl.Int64)),
    )
    for group, mine in _grouped(judged, by):
        yield Loss(filter=prefix + WHOLE, unit="frame", group=group, audit=audit(mine))


def _joined(units: pl.DataFrame, looks: pl.DataFrame, chain: Sequence[str]) -> pl.DataFrame:
    """Add for each stage its audit's `share`, and for the frames it looked at `p` and `passed`, numbered."""
    for number, stage in enumerate(chain):
        mine = looks.filter(pl.col("stage") == stage)
        whole = mine.filter(pl.col("pts").is_null()).select("clip_id", pl.col("p_look").alias(f"share{number}"))
        seen = mine.filter(pl.col("pts").is_not_null())
        seen = seen.select(*_KEY, pl.col("p_look").alias(f"p{number}"), pl.col("passed").alias(f"passed{number}"))
        units = units.join(whole, on="clip_id", how="left").join(seen, on=_KEY, how="left")
    return units


def _events(frames: pl.DataFrame) -> pl.DataFrame:
    """Add `cluster`: the positive frames of one clip that lie close together."""
    found = frames.filter("positive").sort(_KEY)
    begins = (pl.col("clip_id") != pl.col("clip_id").shift()) | (pl.col("pts_s").diff() > EVENT_S)
    found = found.select(*_KEY, cluster=begins.fill_null(True).cum_sum().cast(pl.String))
    return frames.join(found, on=_KEY, how="left")
