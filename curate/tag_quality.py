"""Which tags may be believed: what machines said, held against what people said of the same frames.

    pairs(footage, sheet)      one row per frame and factor of which a person spoke: the machine's value and the person's
    measure(pairs, sheet)      precision and recall of each value, with intervals over recordings, and a verdict
    calibrate(pairs, sheet)    the floor from which a value's tags are precise enough, for `floors` of the sheet

Seed 002 calls model tags good enough at 75 to 80 % (FEATURES.md, S2-10), so a tag is
    believed         precision and recall are both at least .75, to the lower end of their intervals
    not to be used   one of them stays under .80, to its upper end
    unknown          neither: more recordings have to be labelled; `recordings_needed` says about how many
A frame counts as much footage as it stands for (1 / p_keep). A machine that says nothing where a person names the value has
missed it. People's labels are taken as they come: those that were drawn by what a tag said judge precision only, unless the
selection that they were drawn by is named (`audit`): its rows count 1 / p_select, and nothing else counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

import polars as pl

from curate.factors import Factor, Sheet
from curate.share_interval import Share, share, student_t, wilson
from infra import keys, views

if TYPE_CHECKING:
    from curate.query import Footage
    from infra.artefacts import Selection

USABLE: Final = 0.75
GOOD: Final = 0.80
LEAST_TO_CALIBRATE: Final = 4  # recordings: half of them choose the floor, half judge it
MOST_RECORDINGS: Final = 1000

Belief = Literal["believed", "not to be used", "unknown"]

_SCHEMA: Final = pl.Schema({
    "factor": pl.String, "clip_id": pl.String, "pts": pl.Int64, "group": pl.String, "weight_s": pl.Float64,
    "tag": pl.String, "truth": pl.String, "score": pl.Float32,
})  # fmt: skip
_KEY: Final = ["clip_id", "pts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TagQuality:
    """What is known of one value of one factor.

    Attributes:
        factor, value: the tag.
        precision: share of its footage that people call so too.
        recall: share of the footage that people call so which has the tag.
        belief: the verdict; see the module.
        why: in words.
        recordings_needed: about how many labelled recordings would settle it, were it to go on like this; None where it is
            settled or more than `MOST_RECORDINGS`.
    """

    factor: str
    value: str
    precision: Share
    recall: Share
    belief: Belief
    why: str
    recordings_needed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The floor that makes a value's tags precise enough: chosen on one half of the recordings, judged on the other.

    `floor` is None where none is needed or none found; `precision` and `recall` are the other half's, at the floor; `holds`
    says that this half's precision is at least `USABLE` too, so that the floor is worth proposing; `why` is in words.
    """

    factor: str
    value: str
    floor: float | None
    precision: Share
    recall: Share
    holds: bool
    why: str


def pairs(footage: Footage, sheet: Sheet, audit: Selection | None = None) -> pl.DataFrame:
    """Return one row per kept frame and factor of which a person spoke.

    Args:
        footage: its vault is left out unless it is open.
        sheet: the factors.
        audit: the selection by which people were asked; None takes every label, all with the same chance.

    Returns:
        factor, clip_id, pts, group (its recording), weight_s (seconds of footage that it stands for), tag (the machine's or
        the registry's value, may be null), truth (the person's), score (of the tag, null where it has none).
    """
    spoken = footage.catalog.scan("labels", ["clip_id", "factor"]).filter(pl.col("factor").is_not_null()).collect()
    clip_ids = spoken["clip_id"].unique().sort().to_list()  # few clips are labelled: only theirs are read
    said, made = (view.filter(pl.col("clip_id").is_in(clip_ids)) for view in (
        footage.frames.lazy(), views.frames_view(footage.catalog, human=False),
    ))  # fmt: skip
    here, machine = said.collect_schema().names(), made.collect_schema().names()
    named = [factor for factor in sheet.factors if f"{factor.name}_source" in here]  # else: nobody ever said anything
    truths = said.select(
        "clip_id", "pts", *(pl.when(pl.col(f"{f.name}_source") == "human").then(f.name).alias(f.name) for f in named),
        group=pl.coalesce("recording_id", "clip_id"), weight_s="footage_s",
    ).collect()  # fmt: skip
    tags = made.select(*_KEY, *(pl.col(f.name).alias(f"_{f.name}") for f in named if f.name in machine)).collect()
    scores = footage.catalog.scan("tags", [*_KEY, "factor", "name", "score", "source"]).filter(
        pl.col("clip_id").is_in(clip_ids), pl.col("pts").is_not_null(), pl.col("score").is_not_null()
    ).collect()  # fmt: skip
    if audit is not None:
        truths = _drawn(truths, audit)
    joined = truths.join(tags, on=_KEY, how="left")
    found = [pl.DataFrame(schema=_SCHEMA), *(_pairs_of(factor, joined, scores) for factor in named)]
    return pl.concat(found).sort("factor", *_KEY)


def _drawn(frames: pl.DataFrame, audit: Selection) -> pl.DataFrame:
    """Return the frames in rows of the selection, each standing for 1 / p_select as much footage."""
    rows = pl.DataFrame(
        [(row.clip_id, row.start_pts, row.end_pts, row.p_select) for row in audit.rows],
        schema={"clip_id": pl.String, "_start": pl.Int64, "_end": pl.Int64, "_p": pl.Float64}, orient="row",
    )  # fmt: skip
    inside = frames.join(rows, on="clip_id").filter(pl.col("pts") >= pl.col("_start"), pl.col("pts") < pl.col("_end"))
    once = inside.sort(*_KEY, "_p").unique(_KEY, keep="last", maintain_order=True)
    return once.with_columns(weight_s=pl.col("weight_s") / pl.col("_p")).drop("_start", "_end", "_p")


def _pairs_of(factor: Factor, joined: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    tag = pl.col(f"_{factor.name}") if f"_{factor.name}" in joined.columns else pl.lit(None, pl.String)
    own = scores.filter(pl.col("factor") == factor.name, pl.col("source") == factor.source)
    own = own.select(*_KEY, "score", tag="name").unique([*_KEY, "tag"], keep="first")
    rows = joined.filter(pl.col(factor.name).is_not_null()).with_columns(truth=pl.col(factor.name), tag=tag)
    rows = rows.join(own, on=[*_KEY, "tag"], how="left").with_columns(factor=pl.lit(factor.name))
    return rows.select(list(_SCHEMA)).cast(_SCHEMA)


def measure(rows: pl.DataFrame, sheet: Sheet) -> list[TagQuality]:
    """Return the quality of every value of the sheet's factors, in its order.

    Args:
        rows: what `pairs` returned.
        sheet: its factors; a factor without listed values has those that occur.
    """
    made = []
    for factor in sheet.factors:
        mine = rows.filter(pl.col("factor") == factor.name)
        for value in values_of(factor, mine):
            tagged, called = mine.filter(pl.col("tag") == value), mine.filter(pl.col("truth") == value)
            precision = _share(tagged, tagged["truth"] == value)
            recall = _share(called, (called["tag"] == value).fill_null(False))
            made.append(_judged(factor.name, value, precision, recall))
    return made


def values_of(factor: Factor, rows: pl.DataFrame) -> list[str]:
    """Return the factor's values, or those that occur in `tag` and `truth` where the sheet lists none."""
    if factor.values is not None:
        return list(factor.values)
    return sorted({value for column in ("tag", "truth") for value in rows[column].drop_nulls()})


def _share(rows: pl.DataFrame, right: pl.Series) -> Share:
    groups = rows.with_columns(hit=right).group_by("group").agg(
        hits=pl.col("weight_s").filter(pl.col("hit")).sum(), totals=pl.col("weight_s").sum()
    ).sort("group")  # fmt: skip
    return share(groups["hits"].to_numpy(), groups["totals"].to_numpy(), n=rows.height)


def _judged(factor: str, value: str, precision: Share, recall: Share) -> TagQuality:
    belief = judge(precision, recall)
    figures = {"precision": precision, "recall": recall}
    needed = None
    if belief == "believed":
        why = f"precision and recall at least {USABLE:.0%}, to the lower end"
    elif belief == "not to be used":
        why = f"{' and '.join(name for name, found in figures.items() if found.high < GOOD)} under {GOOD:.0%}, to the upper end"
    elif any(found.value is None for found in figures.values()):
        why = "no labelled footage has this tag" if precision.value is None else "nobody labelled footage with this value"
        needed = recordings_needed(1.0)
    else:
        open_ones = [found for found in figures.values() if found.low < USABLE]
        guesses = [recordings_needed(round(found.value or 0.0, 2)) for found in open_ones]
        needed = None if None in guesses else max(guess or 0 for guess in guesses)
        more = (
            f"about {needed} labelled ones would settle it, should it stay so"
            if needed
            else "too near the border to be settled soon"
        )
        n_groups = min(found.n_groups for found in open_ones)
        why = f"{n_groups} {'recording is' if n_groups == 1 else 'recordings are'} too few: {more}"
    return TagQuality(
        factor=factor, value=value, precision=precision, recall=recall, belief=belief, why=why, recordings_needed=needed
    )


def judge(precision: Share, recall: Share) -> Belief:
    """Return the verdict on a tag; see the module."""
    figures = (precision, recall)
    if all(found.low >= USABLE for found in figures):
        return "believed"
    return "not to be used" if any(found.high < GOOD for found in figures) else "unknown"


@lru_cache(maxsize=256)
def recordings_needed(value: float) -> int | None:
    """Return how many labelled recordings settle a share that stays at `value`, each counted as one observation."""
    for n in range(2, MOST_RECORDINGS + 1):
        low, high = wilson(value, n, student_t(n - 1))
        if low >= USABLE or high < GOOD:
            return n
    return None


def calibrate(rows: pl.DataFrame, sheet: Sheet, *, precision: float = GOOD) -> list[Calibration]:
    """Return, for each value of factors that come from prompts, the lowest floor whose tags are as precise as wanted.

    The floor is chosen on one half of the recordings (by a hash of their ids) and judged on the other, so that its figures
    are not flattered by the choice. Scores under the sheet's own floors were never written: tag with floor = 0 to see all.

    Args:
        rows: what `pairs` returned.
        sheet: its factors.
        precision: wanted share.
    """
    made = []
    for factor in sheet.of("prompts"):
        mine = rows.filter(pl.col("factor") == factor.name)
        chooses = pl.Series([keys.uniform("calibrate", group) < 0.5 for group in mine["group"]], dtype=pl.Boolean)
        for value in factor.values or ():
            made.append(_calibrated(factor.name, value, mine.filter(chooses), mine.filter(~chooses), precision))
    return made


def _calibrated(factor: str, value: str, first: pl.DataFrame, second: pl.DataFrame, wanted: float) -> Calibration:
    tagged, floor, why = first.filter(pl.col("tag") == value), None, ""
    if first["group"].n_unique() + second["group"].n_unique() < LEAST_TO_CALIBRATE:
        why = f"under {LEAST_TO_CALIBRATE} labelled recordings"
    elif tagged.is_empty():
        why = "no such tag where people looked"
    else:
        floor = lowest_floor(tagged, value, wanted)
        why = "" if floor is not None else f"no floor reaches a precision of {wanted:.0%}"
        if floor is not None and floor <= (tagged["score"].min() or 0.0):  # type: ignore[operator]
            floor, why = None, "the first half needs none"
    passes = pl.col("score").fill_null(1.0) >= (0.0 if floor is None else floor)
    second = second.with_columns(tag=pl.when(passes).then("tag"))
    claimed, called = second.filter(pl.col("tag") == value), second.filter(pl.col("truth") == value)
    precision = _share(claimed, claimed["truth"] == value)
    holds = floor is not None and precision.value is not None and precision.value >= USABLE
    if floor is not None and not holds:
        why = "the other half of the recordings does not bear it out"
    return Calibration(
        factor=factor, value=value, floor=floor, precision=precision, holds=holds, why=why,
        recall=_share(called, (called["tag"] == value).fill_null(False)),
    )  # fmt: skip


def lowest_floor(tagged: pl.DataFrame, value: str, wanted: float) -> float | None:
    """Return the lowest score from which on tags are at least `wanted` precise; None where no score is.

    Args:
        tagged: rows with the tag: score, truth, weight_s.
        value: what they claim.
        wanted: a precision.
    """
    steps = tagged.drop_nulls("score").group_by("score").agg(
        weight=pl.col("weight_s").sum(), right=pl.col("weight_s").filter(pl.col("truth") == value).sum()
    ).sort("score", descending=True)  # fmt: skip
    good = steps.filter(pl.col("right").cum_sum() >= wanted * pl.col("weight").cum_sum() - 1e-9)
    return float(good["score"][-1]) if good.height else None


def floors_text(found: Sequence[Calibration]) -> str:
    """Return lines for the sheet: the floors that are worth proposing, cut (not rounded up) to thousandths."""
    by_factor: dict[str, list[str]] = {}
    for each in found:
        if each.holds and each.floor is not None:
            by_factor.setdefault(each.factor, []).append(f"{keys_of(each.value)} = {math.floor(each.floor * 1000) / 1000:g}")
    return "\n".join(f"[factor.{keys_of(name)}]\nfloors = {{ {', '.join(parts)} }}" for name, parts in by_factor.items())


def keys_of(value: str) -> str:
    """Return a value as a TOML key, in quotes where it needs them."""
    return value if value.replace("-", "").replace("_", "").isalnum() and value.isascii() else toml_text(value)


def toml_text(value: str) -> str:
    """Return a text as TOML writes it: as JSON does, but that DEL is escaped as well."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
