"""What each filter of some footage lost: recall with an interval, from what was looked at although it had been dropped.

    gops   (p_keep, decoded, motion) --> the packet gate: a unit is a GOP, positive where its motion reaches a threshold
    looks  (p_look, passed)          --> each stage of a cascade: a unit is a kept frame, positive where the judge says so

A stage's condition is judged among frames that meet the conditions before it: *kept* are those that meet this one too; of the
dropped, those of the audit count as found where they meet all later conditions and the judge finds them positive. So each row
says what this condition alone costs. The row "cascade" has the loss of all of them together. Looks have known probabilities
(`infra.audit`), so the estimates hold for the footage that was curated, whatever it is; a slice has its own, wider interval.

A stage that looks once per cell of some seconds (`once_s`) leaves out frames that meet its condition: it is to see an event,
not each of its frames. So in the clips in which it left some out a frame is *kept*, too, where a certain look found a positive
at most `EVENT_S` from it. That is known of every frame, looked at or not; recall is the share of positive frames that such a
look stands for. Frames near a look that failed the condition count so, too: which they are is not in the tables. Who must not
take them for kept asks with `near=False`: then what cells left out counts as dropped, and recall, of frames, has no upper end.

The packet gate's row is of the clips in which it dropped something: some p_keep is below 1. A clip that it decoded whole
(its search or its alarms asked for everything) looks in the tables like one that was scanned without a gate, so that its
positives, all kept, are not counted: over all footage that went through the gate recall is higher (`GATE_NOTE`).

Which footage that is says the caller, by views: `camloop query --audit` (`curate.losses`), the gate of a model
(`train.filters`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl

from infra import where
from infra.audit import STRETCH_S, Audit, audit, looks_needed
from infra.catalog import Catalog

GATE: Final = "packet gate"
GATE_NOTE: Final = (
    "packet gate: of clips in which it dropped something; what it decoded whole is not counted, so that recall over all "
    "footage is higher"
)
WHOLE: Final = "cascade"
MOVING: Final = 0.0015  # share of the picture that its largest moving thing covers, as `curate.layers` begins an interval
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
    is_once: bool = False
    """Whether a stage of it left frames out by its cells, so that one look stands for the frames near it."""
    n_unknown: int = 0
    """Positive units that were looked at and may belong to the slice or not: nobody knows. Then `recall` is None."""

    @property
    def is_whole(self) -> bool:
        """Whether it is all that this kind of filter costs: the packet gate, or all stages of a cascade together."""
        return self.filter in (GATE, WHOLE) or self.filter.endswith(f": {WHOLE}")

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


def decided(catalog: Catalog, columns: Collection[str], clip_columns: Collection[str]) -> set[str]:
    """Return the columns that the filters themselves decide: known only of what they let through, so no slice of an audit.

    Args:
        catalog: the tables.
        columns: those of a view of frames.
        clip_columns: those of a view of clips; what is known of every clip is never decided.
    """
    found = {"people", "p_look"} | {name for name in columns if name.startswith("n_") and name not in clip_columns}
    by_models = pl.col("source").str.contains("^(rule|prompts)@")
    factors = catalog.scan("tags", ["factor", "source"]).filter(by_models).select(pl.col("factor").unique())
    return found | {name for factor in factors.collect()["factor"] for name in (factor, f"{factor}_source")}


def worded(catalog: Catalog) -> set[str]:
    """Return the columns that people's words fill: unknown of what nobody looked at, and people look at what passed."""
    factors = catalog.scan("labels", ["factor"]).select(pl.col("factor").drop_nulls().unique()).collect()["factor"]
    return {"label", *(name for factor in factors for name in (factor, f"{factor}_source"))}


def unknown_members(catalog: Catalog, frames: pl.LazyFrame, text: str) -> pl.Expr:
    """Return an expression over `frames`: whether nobody knows if a frame is in the slice `text`.

    It is unknown where the expression is null, and where a column of people's words that it names is: `is null` or `is not
    null` makes no sample of the footage of what people chose to look at.
    """
    found = where.parse(text)
    said = sorted(found.columns & worded(catalog))
    return pl.any_horizontal(found.to_polars(frames.collect_schema()).is_null(), *(pl.col(name).is_null() for name in said))


def gap(frames: pl.LazyFrame, clips: pl.LazyFrame, columns: Collection[str], is_unknown: pl.Expr) -> str | None:
    """Say of how many kept frames of filtered clips it is known whether they belong to a slice; None: of all.

    Args:
        frames: a view of the kept frames asked about.
        clips: clip_id of the filtered clips (`gated`, `cascaded`).
        columns: what the slice names, for the sentence.
        is_unknown: over `frames`.
    """
    mine = frames.join(clips, on="clip_id", how="semi")
    n, n_unknown = mine.select(pl.len(), n_unknown=is_unknown.sum()).collect().row(0)
    if not n_unknown:
        return None
    return f"{', '.join(sorted(columns))} is known of {n - n_unknown:,} of {n:,} frames only"


def gated(catalog: Catalog) -> pl.LazyFrame:
    """Return clip_id of the clips in which the packet gate dropped something."""
    return catalog.scan("gops", ["clip_id", "p_keep"]).filter(pl.col("p_keep") < 1).select("clip_id").unique()


def cascaded(catalog: Catalog) -> pl.LazyFrame:
    """Return clip_id of the clips whose detectors were a cascade."""
    return catalog.scan("looks", ["clip_id", "step"]).filter(pl.col("step") == "detect").select("clip_id").unique()


def of_gate(
    catalog: Catalog,
    clips: pl.LazyFrame,
    *,
    by: Sequence[str] = (),
    moving: float = MOVING,
    members: pl.LazyFrame | None = None,
) -> Iterator[Loss]:
    """Yield what the packet gate lost, group by group; nothing where no clip went through it.

    Args:
        catalog: the tables.
        clips: clip_id, time_base_num, time_base_den and the columns `by`, of the footage asked about.
        by: columns of `clips` of which each combination of values is judged alone.
        moving: share of the picture from which a GOP counts as moving.
        members: a slice by frames: clip_id, pts and `member` (bool) of every kept frame. A GOP that was looked at belongs where
            the kept frame nearest to its start does. Where that is null for a moving one, there is no recall: for `low` what
            was kept does not count and what was missed does, for `high` the other way round.
            The numbers of GOPs that came, were kept and dropped are then those of the clips: nobody knows more.
    """
    columns = ["clip_id", "gop_index", "start_pts", "end_pts", "decoded", "motion", "p_keep"]
    rows = clips.select(*dict.fromkeys(["clip_id", "time_base_num", "time_base_den", *by]))
    found = catalog.scan("gops", columns).join(gated(catalog), on="clip_id", how="semi").join(rows, on="clip_id")
    units = found.sort("clip_id", "gop_index").collect()
    if units.is_empty():
        return
    length_s = (pl.col("end_pts") - pl.col("start_pts")) * pl.col("time_base_num") / pl.col("time_base_den")
    # GOPs of one stretch share their draw
    shared = units.select((STRETCH_S / length_s).ceil().clip(1, 1000).quantile(0.95)).item()
    kept, moves = pl.col("p_keep") >= 1, pl.col("motion").list.max().fill_null(0) >= moving
    if members is not None:
        seen = members.select(*_KEY, "member").join(gated(catalog), on="clip_id", how="semi").sort("pts").collect()
        units = units.sort("start_pts").join_asof(
            seen, left_on="start_pts", right_on="pts", by="clip_id", strategy="nearest", check_sortedness=False
        ).sort("clip_id", "gop_index")  # fmt: skip
    units = units.with_columns(
        kept=kept, p_look="p_keep", moves=moves, belongs="member" if members is not None else pl.lit(True)
    )
    for group, mine in _grouped(units, by):
        n_unknown = int(mine.select((pl.col("decoded") & pl.col("moves") & pl.col("belongs").is_null()).sum()).item())
        told = _gop_audit(mine, pl.col("belongs").fill_null(~pl.col("kept")), shared)
        if n_unknown:
            most = _gop_audit(mine, pl.col("belongs").fill_null(pl.col("kept")), shared)
            told = replace(told, recall=None, low=min(told.low, most.low), high=max(told.high, most.high))
        yield Loss(filter=GATE, unit="gop", group=group, audit=told, n_unknown=n_unknown)


def _gop_audit(units: pl.DataFrame, belongs: pl.Expr, shared: float) -> Audit:
    """Return the audit of GOPs, positive where they move and belong; neighbours that do are one event."""
    units = units.with_columns(n_positive=pl.when("decoded").then((pl.col("moves") & belongs).cast(pl.Int64)))
    begins = (pl.col("clip_id") != pl.col("clip_id").shift()) | (pl.col("n_positive") != pl.col("n_positive").shift())
    return audit(units.with_columns(cluster=begins.fill_null(True).cum_sum()), most_positive=shared)


def of_cascade(
    catalog: Catalog, frames: pl.LazyFrame, *, by: Sequence[str] = (), positive: str = POSITIVE, near: bool = True
) -> Iterator[Loss]:
    """Yield what each stage of each cascade lost, and all of its stages together, group by group; nothing without one.

    Args:
        catalog: the tables.
        frames: a view of the kept frames asked about (`infra.views.frames_view`).
        by: columns of it of which each combination of values is judged alone.
        positive: a where-expression over it: what a cascade is there to find.
        near: in clips in which a stage left frames out by its cells, those near a certain look that found something are kept.

    Raises:
        QueryError: `positive` names a column that is not there.
    """
    looks = catalog.scan("looks").filter(pl.col("step") == "detect").collect()
    if looks.is_empty():
        return
    stages = looks.select("clip_id", "number", "stage").unique().sort("clip_id", "number")
    chains = stages.group_by("clip_id", maintain_order=True).agg(chain=pl.col("stage").str.join(_ARROW))
    is_positive = where.parse(positive).to_polars(frames.collect_schema())
    frames = frames.select(*dict.fromkeys([*_KEY, "pts_s", *by]), positive=is_positive.fill_null(False))
    for name in chains["chain"].unique().sort():
        clips = chains.filter(chain=name).select("clip_id")
        units = _events(frames.join(clips.lazy(), on="clip_id", how="semi").collect())
        prefix = f"{name}: " if chains["chain"].n_unique() > 1 else ""
        yield from _stages(units, looks, name.split(_ARROW), by, prefix, near=near)


def _grouped(units: pl.DataFrame, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pl.DataFrame]]:
    if not by:
        yield (), units
        return
    yield from sorted(units.partition_by(by, as_dict=True).items(), key=lambda item: [str(value) for value in item[0]])


def _stages(
    units: pl.DataFrame, looks: pl.DataFrame, chain: Sequence[str], by: Sequence[str], prefix: str, *, near: bool = True
) -> Iterator[Loss]:
    """Yield the losses of one cascade's stages, and of all together."""
    units = _joined(units, looks, chain)
    passed = [pl.col(f"passed{number}").fill_null(False) for number in range(len(chain))]
    shares = [pl.when(passed[number]).then(1.0).otherwise(f"share{number}") for number in range(len(chain))]
    seen = [pl.col(f"p{number}").is_not_null() for number in range(len(chain))]
    always = pl.lit(True)
    once = [_with_cells(units, looks.filter(pl.col("stage") == stage)) for stage in chain]
    whole = list(set().union(*once))
    for number, stage in enumerate(chain):
        later = pl.all_horizontal(always, *passed[number + 1 :])
        judged = units.filter(pl.all_horizontal(always, *passed[:number]))
        judged = _kept(judged, passed[number], later & pl.col("positive"), once[number] if near else ()).with_columns(
            p_look=shares[number],
            n_positive=pl.when(seen[number]).then((later & pl.col("positive")).cast(pl.Int64)),
        )
        for group, mine in _grouped(judged, by):
            is_once = bool(mine["clip_id"].is_in(once[number]).any())
            yield Loss(filter=prefix + stage, unit="frame", group=group, audit=audit(mine), is_once=is_once)
    judged = _kept(units, pl.all_horizontal(passed), pl.col("positive"), whole if near else ()).with_columns(
        p_look=functools.reduce(operator.mul, shares),
        n_positive=pl.when(seen[-1]).then(pl.col("positive").cast(pl.Int64)),
    )
    for group, mine in _grouped(judged, by):
        is_once = bool(mine["clip_id"].is_in(whole).any())
        yield Loss(filter=prefix + WHOLE, unit="frame", group=group, audit=audit(mine), is_once=is_once)


def _with_cells(units: pl.DataFrame, looks: pl.DataFrame) -> list[str]:
    """Return the clips in which a stage looked once per cell: not for certain at all frames that met its condition."""
    mine = looks.join(units.select("clip_id").unique(), on="clip_id", how="semi")
    counts = mine.group_by("clip_id").agg(pl.col("n_passed").sum(), n_certain=pl.col("passed").sum())
    return counts.filter(pl.col("n_passed") > pl.col("n_certain"))["clip_id"].sort().to_list()


def _kept(units: pl.DataFrame, certain: pl.Expr, found: pl.Expr, with_cells: Collection[str]) -> pl.DataFrame:
    """Add `kept`: what a filter looks at for certain; with cells also what is near a certain look that `found` something."""
    units = units.with_columns(kept=certain)
    if not with_cells:
        return units
    stands = units.filter(pl.col("kept") & found, pl.col("clip_id").is_in(with_cells))
    stands = stands.select("clip_id", "pts_s", _stands_s="pts_s").sort("pts_s")
    near = units.sort("pts_s").join_asof(
        stands, on="pts_s", by="clip_id", strategy="nearest", tolerance=EVENT_S, check_sortedness=False
    )
    return near.with_columns(kept=pl.col("kept") | pl.col("_stands_s").is_not_null()).drop("_stands_s")


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
