"""What a frame counts when the question is about what a cascade's judge saw: 1 / p_look, and nothing for those it stands for.

    looked at by the judge                    1 / p_look
    left out at a stage that draws an audit   0: the audited ones stand for it
    left out at a stage without an audit      1 / p_look of the stage before it (1 at the first): nobody stands for it, and what
                                              the judge would have seen stays unknown
    of a clip without a cascade               1

So over the draws each frame counts 1 in expectation, known or unknown, and shares of n_<class>, and of factors that rules make
of it, are shares of footage. For other columns all frames count the same, and these weights would only add noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import polars as pl

from infra.catalog import Catalog
from infra.views import DETECT, clip_columns, looked_at

WEIGHT: Final = "look_weight"


def judged(catalog: Catalog, columns: Iterable[str]) -> frozenset[str]:
    """Return those of the columns whose values are known by the judge's looks: n_<class>, p_look, factors made by rules."""
    names = set(columns)
    tags = catalog.scan("tags", ["factor", "source"])
    said = tags.select("factor", by_rule=pl.col("source").str.starts_with("rule@")).unique().collect()
    by_rule, others = (set(said.filter(pl.col("by_rule") == kind)["factor"]) for kind in (True, False))
    counts = {name for name in names if name.startswith("n_")} - others - clip_columns(catalog)
    return frozenset(counts | names & {*by_rule, "p_look"})


def weighed(catalog: Catalog, frames: pl.LazyFrame, source: str | None = None) -> pl.LazyFrame:
    """Add `WEIGHT` to frames; 1 everywhere in a store without a cascade.

    Args:
        catalog: the tables, or a snapshot of them.
        frames: with clip_id and pts, every kept frame or some of them.
        source: the detector that counts as the judge; None is the last one.
    """
    rows = catalog.scan("looks", ["clip_id", "pts", "step", "number", "source", "p_look"])
    looks = rows.join(looked_at(catalog).lazy(), on="clip_id", how="semi").collect()
    is_judge = pl.col("step") == DETECT if source is None else (pl.col("step") == DETECT) & (pl.col("source") == source)
    judges = looks.filter(is_judge).group_by("clip_id").agg(judge=pl.col("number").max())
    if judges.is_empty():
        return frames.with_columns(pl.lit(1.0).alias(WEIGHT))
    upto = looks.join(judges, on="clip_id").filter(pl.col("number") <= pl.col("judge"))
    stages = upto.filter(pl.col("pts").is_null()).select("clip_id", "number", audit="p_look").sort("clip_id", "number")
    stages = stages.with_columns(next_audit=pl.col("audit").shift(-1).over("clip_id"))
    first = stages.unique("clip_id", keep="first", maintain_order=True)
    unseen = first.select("clip_id", _unseen=pl.when(pl.col("audit") > 0).then(0.0).otherwise(1.0))
    furthest = upto.filter(pl.col("pts").is_not_null()).sort("number").unique(["clip_id", "pts"], keep="last")
    seen = furthest.join(stages, on=["clip_id", "number"]).select(
        "clip_id", "pts", _seen=pl.when(pl.col("next_audit") > 0).then(0.0).otherwise(1 / pl.col("p_look"))
    )
    joined = frames.join(seen.lazy(), on=["clip_id", "pts"], how="left", maintain_order="left")
    joined = joined.join(unseen.lazy(), on="clip_id", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce("_seen", "_unseen", 1.0).alias(WEIGHT)).drop("_seen", "_unseen")
