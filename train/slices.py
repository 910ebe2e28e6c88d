"""Which frames belong to a slice, and whether a model passes on it.

Membership: the kept frame of the same clip that is nearest in time carries the columns (`infra.views.frames_view`) over
which a slice's where-expression speaks; no kept frame, or a null in the expression, makes a prediction `unknown` there:
outside the slice, and counted.

Verdict of a gated slice, in this order:
    unknown   fewer groups than `min_groups` (at least 10)
    unknown   every group holds one class, and some class has fewer than 10 groups: a model that knows the place and
              not the action would score the same, and each class is judged on a handful of places
    passed    the lower bound (judge = "point": the value) reaches the threshold
    failed    the upper bound (judge = "point": the value) stays under it
    unknown   the interval lies across the threshold
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infra import where
from infra.artefacts import ReportCell, Verdict
from infra.catalog import Catalog
from infra.errors import QueryError, UsageError
from infra.records import Slice
from infra.views import frames_view
from train.metrics import LEAST_GROUPS, Array, Interval

EVERYTHING = ("", "true")
"""Where-texts of the slice that holds every judged prediction."""


def read_slices(tables: Iterable[Mapping[str, Any]]) -> tuple[Slice, ...]:
    """Return the slices of a gate file's `[[slice]]` tables.

    Raises:
        UsageError: a table has an unknown key or lacks name or where; no table; a name twice; an unknown `judge`; a recall or
            a share of the picture that is none; a recall without a threshold; a `positive` that cannot be read.
    """
    found = []
    for table in tables:
        try:
            found.append(Slice(**table))
        except TypeError as error:
            raise UsageError(
                f"gate file: [[slice]] {dict(table)}: {error}; "
                "legal: name, where, metric, threshold, min_groups, judge, min_recall, positive, moving"
            ) from error
        _check(found[-1])
    names = [(s.name, s.metric) for s in found]
    if not found or len(set(names)) != len(names) or any(s.judge not in ("lower", "point") for s in found):
        raise UsageError("gate file: give at least one [[slice]], each name and metric once, judge = 'lower' or 'point'")
    return tuple(found)


def _check(s: Slice) -> None:
    """Refuse what cannot be asked of the filters before the footage."""
    for name in ("min_recall", "moving"):
        value = getattr(s, name)
        is_share = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
        if value is not None and not is_share:
            raise UsageError(f"gate file: slice {s.name!r}: {name} = {value!r}; legal: a number above 0, at most 1")
    if s.min_recall is not None and s.threshold is None:
        raise UsageError(
            f"gate file: slice {s.name!r}: min_recall = {s.min_recall:g} without a threshold is never asked; give one"
        )
    if s.positive is not None and not isinstance(s.positive, str):
        raise UsageError(f"gate file: slice {s.name!r}: positive = {s.positive!r}; legal: a where-expression in quotes")
    try:
        where.parse(s.positive or "")
    except QueryError as error:
        raise UsageError(f"gate file: slice {s.name!r}: positive: {error}") from error


def membership(catalog: Catalog, predictions: pl.DataFrame, slices: Iterable[Slice]) -> dict[str, list[bool | None]]:
    """Return, per slice name, for each prediction whether it is in the slice; None = unknown.

    Args:
        catalog: where the kept frames are.
        predictions: with columns clip_id and pts.
        slices: what is asked.

    Raises:
        QueryError: an expression names a column that the view does not have.
    """
    asked = list(slices)
    n = len(predictions)
    found: dict[str, list[bool | None]] = {s.name: [True] * n for s in asked if s.where.strip() in EVERYTHING}
    rest = [s for s in asked if s.name not in found]
    if not rest:
        return found
    view = frames_view(catalog).filter(pl.col("clip_id").is_in(predictions["clip_id"].unique().to_list())).collect()
    left = predictions.select("clip_id", "pts").with_row_index("_number").sort("clip_id", "pts")
    right = view.with_columns(pl.lit(True).alias("_kept")).sort("clip_id", "pts")
    joined = left.join_asof(right, on="pts", by="clip_id", strategy="nearest", check_sortedness=False).sort("_number")
    for s in rest:
        member = pl.when(pl.col("_kept")).then(where.parse(s.where).to_polars(view.columns)).otherwise(None)
        found[s.name] = joined.select(member.alias("member"))["member"].to_list()
    return found


def single_class(counts: Array) -> int | None:
    """Return the number of groups of the rarest class if every group holds one class; else None.

    Args:
        counts: (G, C, C) confusion matrices by group. Data of one class altogether gives None: nothing is mixed up there.
    """
    present: NDArray[np.bool_] = counts.sum(-1) > 0
    if len(counts) == 0 or (present.sum(1) > 1).any() or present.any(0).sum() < 2:
        return None
    per_class = present.sum(0)
    return int(per_class[per_class > 0].min())


def judge(s: Slice, interval: Interval, rarest: int | None, n_unknown: int) -> ReportCell:
    """Return the report's cell for a slice: the figure, the verdict and why.

    Args:
        s: the slice.
        interval: its figure.
        rarest: what `single_class` says about the slice's groups or about all judged groups.
        n_unknown: predictions whose membership is unknown.
    """
    reasons = []
    if rarest is not None:
        reasons.append(f"each of its groups holds one class (the rarest class has {rarest} groups)")
    verdict = _verdict(s, interval, rarest, reasons)
    if n_unknown:
        reasons.append(f"{n_unknown} predictions unknown: no kept frame says whether they belong here")
    if interval.coverage is not None:
        reasons.append(f"{interval.method}, simulated coverage {interval.coverage:.1%}")
    else:
        reasons.append(interval.method)
    return ReportCell(
        slice=s.name,
        where=s.where,
        metric=s.metric,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        n_groups=interval.n_groups,
        threshold=s.threshold,
        verdict=verdict,
        why="; ".join(reasons),
    )


def _verdict(s: Slice, interval: Interval, rarest: int | None, reasons: list[str]) -> Verdict:
    if s.threshold is None:
        return "not gated"
    need = max(s.min_groups, LEAST_GROUPS)
    if interval.n_groups < need or interval.value is None:
        reasons.append(f"{interval.n_groups} groups, {need} are needed")
        return "unknown"
    if rarest is not None and rarest < LEAST_GROUPS:
        reasons.append("so place and class cannot be told apart")
        return "unknown"
    low, high = (interval.value, interval.value) if s.judge == "point" else (interval.low, interval.high)
    if low is None or high is None:
        return "unknown"
    if low >= s.threshold:
        return "passed"
    if high < s.threshold:
        return "failed"
    reasons.append(f"the interval [{low:.3f}, {high:.3f}] lies across the threshold {s.threshold}")
    return "unknown"
