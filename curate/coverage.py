"""What the footage covers: the shares that the factor sheet expects against those that were found, and what is missing.

    rows      kept frames, each standing for seconds of footage (mean time per frame / p_keep; for what a cascade's judge saw
              also / p_look, see `curate.look_weights`)
    found     share of the footage whose value is known, with an interval over recordings; unknown is said beside it
    verdict   missing: even the upper end is under what is expected; more: even the lower end is above it; as expected: the
              expectation lies inside an interval that is known to within a factor of two of it; else unknown. A value that
              the sheet does not list (a label of old, another spelling in cameras.toml) is said to be not in the sheet
    missing_s footage of this value still to be filmed until it has its share, if nothing else is: (e T - F) / (1 - e); none
          would do where all of it is expected and some is something else

The same for combinations, and, without verdicts, per camera and per local hour. `wishes` turns what is missing into
proposals for `Wanted`: the camera and the hours where the value was found most often, as far as it was found at all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import polars as pl

from curate import look_weights
from curate.factors import Factor, Sheet
from curate.share_interval import Share, share

if TYPE_CHECKING:
    from curate.query import Footage

COMBINATION: Final = "combination"
FACTOR: Final = 2.0  # a share that may be half or twice what is expected is not known to be as expected
LEAST_YIELD: Final = 0.5  # an hour is worth filming where the value is at least this often of the best hour's share
_KEYS: Final = ("_group", "camera_id", "hour", "hour_utc", "_day")

Verdict = Literal["missing", "as expected", "more", "unknown", "no expectation", "not in the sheet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cover:
    """One value of one factor, or one combination (`factor` is then `COMBINATION`).

    Attributes:
        found: share of the footage whose value is known.
        footage_s: seconds of footage with this value.
        expected, tolerated: as the sheet has them.
        missing_s: see the module; None where nothing is expected, nothing is known, or no footage would do.
    """

    factor: str
    value: str
    found: Share
    footage_s: float
    expected: float | None
    tolerated: float | None
    verdict: Verdict
    missing_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """All of it.

    Attributes:
        covers: values in the order of the sheet, combinations last.
        unknown: factor -> share of footage without a value.
        totals: the grouped rows behind everything: _group, camera_id, hour, hour_utc, _day, a column per factor, one per
            combination ("=NAME", true where it holds), rows, footage_s, judged_s (see `time`).
        judged: columns of `totals` that hang on what a cascade's judge saw.
        n_frames, footage_s: kept frames and the seconds that they stand for.
        days: first and last day of footage (UTC), number of days, of calendar months; None where no clip has a time.
    """

    covers: tuple[Cover, ...]
    unknown: dict[str, float]
    totals: pl.DataFrame
    n_frames: int
    footage_s: float
    days: tuple[str, str, int, int] | None
    judged: frozenset[str] = frozenset()

    def time(self, column: str) -> str:
        """Return the column of seconds by which a column of `totals` is weighed; both are the same without a cascade."""
        return _time(self.judged, column)

    def of(self, factor: str) -> list[Cover]:
        """Return the values of one factor."""
        return [cover for cover in self.covers if cover.factor == factor]

    def cells(self, factor: str, by: Sequence[str]) -> pl.DataFrame:
        """Return seconds of footage per `by` ("camera_id", "hour") and value, and the share within `by`, unknown left out."""
        known = self.totals.filter(pl.col(factor).is_not_null())
        known = known.group_by(*by, value=factor).agg(footage_s=pl.col(self.time(factor)).sum())
        return known.with_columns(share=pl.col("footage_s") / pl.col("footage_s").sum().over(by)).sort(
            *by, "value", nulls_last=True
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A proposal for `Wanted`: what to film, where it is likely, how many clips of the usual length that would take.

    `certain` says that the shortage does not hang on too few recordings; `quota` is None where no number of clips would do.
    """

    where: str
    quota: int | None
    reason: str
    certain: bool


def measure(footage: Footage, sheet: Sheet) -> Coverage:
    """Return the coverage of a store.

    Raises:
        UsageError: a rule or combination names a column that is not there; its line is named.
    """
    rows = footage.frames.lazy()
    schema = rows.collect_schema()
    sheet.check_columns([*schema.names(), *(factor.name for factor in sheet.factors)])
    absent = {factor.name for factor in sheet.factors} - set(schema.names())
    rows = rows.with_columns(pl.lit(None, pl.String).alias(name) for name in sorted(absent))
    counts = {column for each in sheet.combinations for column in each.where.columns if column.startswith("n_")}
    never = sorted(counts - set(schema.names()))  # classes that were never found: 0 where the detector looked
    rows = rows.with_columns((pl.col("n_person") * 0).alias(name) for name in never)
    names = [factor.name for factor in sheet.factors]
    whole = rows.collect_schema()
    judged = look_weights.judged(footage.catalog, names)
    judged |= {f"={each.name}" for each in sheet.combinations if look_weights.judged(footage.catalog, each.where.columns)}
    rows = look_weights.weighed(footage.catalog, rows)
    utc = pl.from_epoch("capture_ns", time_unit="ns")
    totals = rows.select(
        "camera_id", "hour", "hour_utc", "footage_s", *(pl.col(name).cast(pl.String) for name in names),
        *(each.where.to_polars(whole).alias(f"={each.name}") for each in sheet.combinations),
        _group=pl.coalesce("recording_id", "clip_id"), _day=utc.dt.date().cast(pl.String),
        judged_s=pl.col("footage_s") * pl.col(look_weights.WEIGHT),
    ).group_by(*_KEYS, *names, *(f"={each.name}" for each in sheet.combinations)).agg(
        rows=pl.len(), footage_s=pl.col("footage_s").sum(), judged_s=pl.col("judged_s").sum()
    ).collect().sort(pl.all())  # fmt: skip
    covers = [cover for factor in sheet.factors for cover in _values(totals, factor, _time(judged, factor.name))]
    for each in sheet.combinations:
        found = _found(totals, f"={each.name}", True, _time(judged, f"={each.name}"))
        covers.append(_cover(COMBINATION, each.name, found, each.expected, each.tolerated))
    footage_s = float(totals["footage_s"].sum())
    days = totals["_day"].drop_nulls().unique().sort()
    return Coverage(
        covers=tuple(covers), totals=totals, n_frames=int(totals["rows"].sum()), footage_s=footage_s,
        unknown={name: _unknown(totals, name, _time(judged, name)) for name in names}, judged=judged,
        days=(days[0], days[-1], len(days), days.str.slice(5, 2).n_unique()) if len(days) else None,
    )  # fmt: skip


def _time(judged: frozenset[str], column: str) -> str:
    return "judged_s" if column in judged else "footage_s"


def _unknown(totals: pl.DataFrame, name: str, time: str) -> float:
    return float(totals.filter(pl.col(name).is_null())[time].sum()) / (float(totals[time].sum()) or 1.0)


def _values(totals: pl.DataFrame, factor: Factor, time: str) -> list[Cover]:
    seen = totals[factor.name].drop_nulls().unique().sort().to_list()
    values = [*(factor.values or ()), *(value for value in seen if value not in (factor.values or ()))]
    values += [value for value in factor.expected if value not in values]
    covers = [
        _cover(
            factor.name,
            value,
            _found(totals, factor.name, value, time),
            factor.expected.get(value),
            factor.tolerated.get(value),
        )
        for value in values
    ]
    listed = values if factor.values is None else factor.values
    return [cover if cover.value in listed else dataclasses.replace(cover, verdict="not in the sheet") for cover in covers]


def _found(totals: pl.DataFrame, column: str, value: str | bool, time: str) -> tuple[Share, float, float]:
    """Return the share of known footage that has a value, its seconds, and the seconds known."""
    known = totals.filter(pl.col(column).is_not_null())
    hit = pl.col(column) == value
    groups = known.group_by("_group").agg(
        hits=pl.col(time).filter(hit).sum(), totals=pl.col(time).sum(), rows=pl.col("rows").sum()
    ).sort("_group")  # fmt: skip
    found = share(groups["hits"].to_numpy(), groups["totals"].to_numpy(), n=int(groups["rows"].sum()))
    return found, float(groups["hits"].sum()), float(groups["totals"].sum())


def _cover(
    factor: str, value: str, counted: tuple[Share, float, float], expected: float | None, tolerated: float | None
) -> Cover:
    found, footage_s, known_s = counted
    missing_s = None
    if expected is not None and found.value is not None:
        lacking_s = max(expected * known_s - footage_s, 0.0)
        missing_s = lacking_s / (1 - expected) if expected < 1 else None if lacking_s else 0.0
    return Cover(
        factor=factor, value=value, found=found, footage_s=footage_s, expected=expected, tolerated=tolerated,
        verdict=judge(found, expected), missing_s=missing_s,
    )  # fmt: skip


def judge(found: Share, expected: float | None) -> Verdict:
    """Return the verdict on a share; see the module."""
    if expected is None:
        return "no expectation"
    if found.value is None:
        return "unknown"
    if not found.low <= expected <= found.high:
        return "missing" if found.high < expected else "more"
    return "as expected" if found.low >= expected / FACTOR and found.high <= expected * FACTOR else "unknown"


def wishes(coverage: Coverage, *, clip_s: float) -> list[Wish]:
    """Return proposals for what falls short of its share: certain shortages first, then the largest.

    Args:
        coverage: what `measure` returned.
        clip_s: mean length of a clip, seconds.
    """
    judged = [cover for cover in coverage.covers if cover.expected is not None and cover.found.value is not None]
    short = [cover for cover in judged if cover.verdict != "as expected" and cover.missing_s != 0]
    short.sort(key=lambda cover: (cover.verdict != "missing", -math.inf if cover.missing_s is None else -cover.missing_s))
    return [_wish(coverage, cover, clip_s) for cover in short]


def _wish(coverage: Coverage, cover: Cover, clip_s: float) -> Wish:
    column = f"={cover.value}" if cover.factor == COMBINATION else cover.factor
    hit = pl.col(column) == (True if cover.factor == COMBINATION else cover.value)
    known = coverage.totals.filter(pl.col(column).is_not_null())
    cells = known.group_by("camera_id", "hour_utc").agg(
        yielded=pl.col(coverage.time(column)).filter(hit).sum() / pl.col(coverage.time(column)).sum()
    ).sort("yielded", "camera_id", "hour_utc", descending=[True, False, False])  # fmt: skip
    what = f"{cover.value}" if cover.factor == COMBINATION else f"{cover.factor} = {cover.value}"
    need = f"{what}: {cover.found.value or 0:.1%} of the footage, {cover.expected or 0:.1%} expected"
    if cover.missing_s is None:
        need += ": all of it is expected, so no number of clips would do"
    if cells.is_empty() or not cells["yielded"][0]:
        quota = _clips(cover.missing_s, max(clip_s, 1.0))
        nowhere = f"{need}; found nowhere: another place, camera or season has to be filmed"
        return Wish(where="", quota=quota, reason=nowhere, certain=cover.verdict == "missing")
    best = cells.row(0, named=True)
    good = cells.filter(pl.col("camera_id") == best["camera_id"], pl.col("yielded") >= LEAST_YIELD * best["yielded"])
    hours = sorted(hour for hour in good["hour_utc"] if hour is not None)
    where = f"camera_id = '{str(best['camera_id']).replace(chr(39), chr(39) * 2)}'"
    if hours and len(hours) < 24:
        where += f" and hour_utc in ({', '.join(map(str, hours))})"
    mean = float(good["yielded"].mean() or best["yielded"])  # type: ignore[arg-type]
    quota = _clips(cover.missing_s, max(clip_s * mean, 1e-9))
    there = f"{need}; there it is {mean:.0%} of the footage"
    return Wish(where=where, quota=quota, reason=there, certain=cover.verdict == "missing")


def _clips(missing_s: float | None, yield_s: float) -> int | None:
    """Return how many clips make up for what is missing, if each has `yield_s` of it; None where none would do."""
    return None if missing_s is None else max(math.ceil(missing_s / yield_s), 1)
