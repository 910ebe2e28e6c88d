"""Raw against curated: how a selection is spread over factors, and how the footage that it was drawn from is.

Seed 002 (FEATURES.md, S2-7) compares the distribution of the raw footage with that of the curated set that gave the best
model. Raw counts seconds of footage (1 / p_keep, and for what a cascade's judge saw also 1 / p_look); curated counts rows of
the selection, or their training weights. A row has the values of the kept frame of its clip that is nearest to its centre, as
slices of a gate do.

What a cascade's judge did not see of the selection is stood for, as in the footage, by its rows from the audit: in columns that
the judge decides each of these counts for its share of the unseen, too. So all of the footage, selected, is like the footage;
rows that were chosen by what the judge saw are only themselves; and unseen rows without one from the audit are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from curate import look_weights
from curate.datasets import check_columns
from infra.errors import UsageError

if TYPE_CHECKING:
    from curate.query import Footage
    from infra.artefacts import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two distributions over the same columns.

    Attributes:
        table: column, value (null: unknown), raw (share of footage), curated (share of weight), n_rows (of the selection),
            ratio (curated / raw; null where raw is 0).
        distance: column -> total variation distance, 0 (the same) to 1 (nothing in common).
        n_rows: rows of the selection.
        n_unmatched: rows whose clip has no kept frame (any more): unknown in every column.
        n_unseen: rows whose frame a cascade's judge did not see; `n_rows` of the columns that it decides are without those
            that rows from the audit stand for.
    """

    table: pl.DataFrame
    distance: dict[str, float]
    n_rows: int
    n_unmatched: int
    n_unseen: int

    def __repr__(self) -> str:
        shown = ", ".join(f"{column} {value:.2f}" for column, value in self.distance.items())
        return f"<Difference of {self.n_rows} curated rows from the footage: {shown}>"


def diff(footage: Footage, curated: Selection, columns: Sequence[str]) -> Difference:
    """Compare all footage with a selection.

    Args:
        footage: raw; its vault is left out unless it is open.
        curated: a frozen selection of it.
        columns: factors or other columns of the frames.

    Raises:
        QueryError: an unknown column.
        UsageError: no column at all.
    """
    if not columns:
        raise UsageError("no factor of this sheet is in the store: camloop curate --factors FILE tags by it")
    rows = footage.frames.lazy()
    check_columns(columns, rows.collect_schema())
    judged = look_weights.judged(footage.catalog, columns)
    rows = look_weights.weighed(footage.catalog, rows).with_columns(judged_s=pl.col("footage_s") * pl.col(look_weights.WEIGHT))
    times = ["footage_s", "judged_s"]
    values = (pl.col(name).cast(pl.String) for name in columns)
    frames = rows.select("clip_id", "pts", look_weights.WEIGHT, *times, *values).collect()
    drawn = pl.DataFrame(
        [(row.clip_id, (row.start_pts + row.end_pts) // 2, row.weight) for row in curated.rows],
        schema={"clip_id": pl.String, "pts": pl.Int64, "weight": pl.Float64}, orient="row",
    )  # fmt: skip
    near = frames.drop(times).with_columns(_kept=pl.lit(True)).sort("clip_id", "pts")
    matched = drawn.sort("clip_id", "pts").join_asof(near, on="pts", by="clip_id", strategy="nearest", check_sortedness=False)
    sides = matched, _stood_for(matched)
    tables, distance = [], {}
    for name in columns:
        raw = frames.group_by(value=name).agg(raw=pl.col(times[name in judged]).sum())
        chosen = sides[name in judged].group_by(value=name).agg(curated=pl.col("weight").sum(), n_rows=pl.len())
        both = raw.join(chosen, on="value", how="full", coalesce=True, nulls_equal=True)
        both = both.with_columns(pl.col("raw", "curated", "n_rows").fill_null(0))
        both = both.filter((pl.col("raw") > 0) | (pl.col("n_rows") > 0))
        both = both.with_columns(pl.col(each) / max(float(both[each].sum()), 1e-12) for each in ("raw", "curated"))
        distance[name] = float((both["raw"] - both["curated"]).abs().sum()) / 2
        ratio = pl.when(pl.col("raw") > 0).then(pl.col("curated") / pl.col("raw"))
        tables.append(both.sort("value", nulls_last=True).select(
            pl.lit(name).alias("column"), "value", "raw", "curated", "n_rows", ratio=ratio
        ))  # fmt: skip
    return Difference(
        table=pl.concat(tables), distance=distance, n_rows=len(curated.rows),
        n_unmatched=int(matched["_kept"].is_null().sum()), n_unseen=int((matched[look_weights.WEIGHT] == 0).sum()),
    )  # fmt: skip


def _stood_for(matched: pl.DataFrame) -> pl.DataFrame:
    """Return the rows without the unseen, whose `weight` those from the audit take over in proportion to what they stand for.

    Args:
        matched: weight, and `look_weights.WEIGHT` of the frame (null: none): 0 where the judge did not see it and others stand
            for it, above 1 where it came from an audit. As it is where no row is from an audit.
    """
    look = pl.col(look_weights.WEIGHT).fill_null(1.0)
    stands = pl.col("weight") * (look - 1).clip(lower_bound=0)
    total = float(matched.select(stands.sum()).item())
    if not total:
        return matched
    share = float(matched.select(pl.col("weight").filter(look == 0).sum()).item()) / total
    return matched.filter(look > 0).with_columns(weight=pl.col("weight") + stands * share)
