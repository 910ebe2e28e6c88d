"""What a run will read, how long it will take and what it will cost: `camloop curate --plan`.

    plan -> clips, bytes, seconds of footage
    a rate (an earlier run of the same steps in this store, else a few of these clips worked on now, nothing kept) -> seconds
    seconds x price of the machines, bytes x price of the store -> money

A rate is core-seconds for a second of footage. Several cores are counted as `EFFICIENCY` of so many single ones, which is
what Ray reached here beside one loop (`tests/bench/RESULTS.md`). Where nothing can be measured nothing is claimed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import polars as pl

from curate import pipeline
from curate.detect import Batch
from curate.pipeline import Stage
from curate.plan import Options, Plan, Step, Work, with_kept
from curate.run import Result
from infra.catalog import Catalog
from infra.clock import Clock, SystemClock
from infra.errors import UsageError
from infra.settings import Settings

EFFICIENCY: Final = 0.8
SAMPLE: Final = 3  # clips worked on to measure a rate
LIMIT_S: Final = 20.0  # for all of them together
WARM_S: Final = 5.0  # for the first of them, before it is measured
DAY_S: Final = 86_400.0
LEAST_S: Final = 10.0  # a shorter run is mostly start-up
LEAST_SHARE: Final = 0.02  # a sample that got less far into its clip says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What things cost, in one currency; None where nobody said.

    Attributes:
        core_hour: one core for an hour.
        gb_month: a gigabyte (1e9 bytes) in the store for a month.
        gb_read: reading a gigabyte out of the store.
    """

    core_hour: float | None = None
    gb_month: float | None = None
    gb_read: float = 0.0

    def __post_init__(self) -> None:
        for name in ("core_hour", "gb_month", "gb_read"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e6:
                raise UsageError(f"price {name} is {value:g}; legal: 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Core-seconds that a second of footage costs, and what says so; `stages` splits it where that was measured."""

    core_s_per_s: float
    says: str
    stages: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run will take.

    Attributes:
        n_clips: clips that are decoded.
        n_bytes: bytes that are read from the store.
        footage_s: seconds of footage in them.
        rate: None where nothing could be measured.
        cores: how many work at once.
        seconds: None without a rate; start-up is not in it.
        compute: money for the cores; None without a price or a rate.
        read: money for reading.
        month: money a month for what lies in the store, of all clips; None without a price.
        day_hours: core-hours for 24 h of one such camera; None without a rate.
        day_compute: money for that.
    """

    n_clips: int
    n_bytes: int
    footage_s: float
    rate: Rate | None
    cores: int
    seconds: float | None
    compute: float | None
    read: float
    month: float | None
    day_hours: float | None
    day_compute: float | None


def estimate(plan: Plan, rate: Rate | None, *, cores: int, prices: Prices, stored_bytes: int) -> Estimate:
    """Return what a plan will take.

    Args:
        plan: what is missing.
        rate: what a second of footage costs.
        cores: how many work at once.
        prices: of a core-hour and of the store.
        stored_bytes: of all clips in the store.
    """
    works = [work for work in plan.works if work.pixel_steps]
    n_bytes = sum(int(work.clip["n_bytes"] or 0) for work in works)
    length_s = sum(work.footage_s for work in works)
    core_s = None if rate is None else rate.core_s_per_s * length_s
    day_hours = None if rate is None else rate.core_s_per_s * DAY_S / 3600
    price = prices.core_hour
    used = 1.0 if cores == 1 else EFFICIENCY  # of what is paid for
    return Estimate(
        n_clips=len(works),
        n_bytes=n_bytes,
        footage_s=length_s,
        rate=rate,
        cores=cores,
        seconds=None if core_s is None else core_s / (cores * used),
        compute=None if core_s is None or price is None else core_s / 3600 / used * price,
        read=n_bytes / 1e9 * prices.gb_read,
        month=None if prices.gb_month is None else stored_bytes / 1e9 * prices.gb_month,
        day_hours=day_hours,
        day_compute=None if day_hours is None or price is None else day_hours / used * price,
    )


def of_earlier(catalog: Catalog, options: Options) -> Rate | None:
    """Return the rate of the newest finished run in this store that was asked for the same; None without one."""
    settled = asked(options)
    columns = ["command", "outputs", "start_ns", "exit_code", "run_id"]
    runs = catalog.scan("runs", columns).filter(pl.col("command") == "curate", pl.col("exit_code") == 0)
    for row in runs.sort("start_ns", descending=True).collect().iter_rows(named=True):
        outputs = json.loads(row["outputs"] or "{}")
        if outputs.get("asked") == settled and outputs.get("footage_s", 0) > 0 and outputs.get("core_s", 0) > 0:
            length_s = outputs["footage_s"]
            stages = {name: seconds / length_s for name, seconds in outputs.get("stages", {}).items()}
            says = f"run {row['run_id'][:8]} of this store, {length_s:,.0f} s of footage"
            return Rate(core_s_per_s=outputs["core_s"] / length_s, says=says, stages=stages)
    return None


def of_sample(
    catalog: Catalog, plan: Plan, options: Options, settings: Settings, *, clock: Clock | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Rate | None:  # fmt: skip
    """Work on up to `SAMPLE` clips of the plan for at most `LIMIT_S`, keep nothing, and return the rate.

    The clips are those at a sixth, the half and five sixths of the works by bytes a second. A clip that fails or that is not
    got through counts as far as its frames say. Opening models, which a run does once, does not count: the first clip is worked
    on before, for at most `WARM_S`. A decoder that is broken off has to start again, which counts.

    Raises:
        StoreError: the store cannot be reached.
    """
    clock = clock or SystemClock()
    spent_s = seen_s = 0.0
    works = _spread([work for work in plan.works if work.pixel_steps])
    opened: dict[tuple[Step, ...], list[Stage]] = {}
    for number, work in enumerate(works):
        steps = work.pixel_steps
        given = [work] if "scan" in steps else with_kept(catalog, [work])
        if steps not in opened:
            looks = pipeline.looks(options, steps)
            opened[steps] = _opened(pipeline.table(options, looks, settings, catalog.store.url, scans="scan" in steps, cpus=1))
            _worked(pipeline.run_local(given, opened[steps]), work, clock, clock.mono_ns() + round(WARM_S * 1e9))
        start_ns = clock.mono_ns()
        limit_ns = start_ns + round(LIMIT_S * 1e9 / len(works))
        seen_s += _worked(pipeline.run_local(given, opened[steps]), work, clock, limit_ns)
        spent_s += (clock.mono_ns() - start_ns) / 1e9
        advance(number + 1)
    length_s = sum(work.footage_s for work in works)
    if not works or seen_s < LEAST_SHARE * length_s:
        return None
    return Rate(core_s_per_s=spent_s / seen_s, says=f"{len(works)} of these clips, worked on for {spent_s:.0f} s", stages={})


def _opened(stages: Sequence[Stage]) -> list[Stage]:
    """Return stages that are made now, once, whoever runs them."""
    return [dataclasses.replace(stage, make=partial(lambda made: made, stage.make())) for stage in stages]


def _spread(works: Sequence[Work]) -> list[Work]:
    ordered = sorted(works, key=lambda work: ((work.clip["n_bytes"] or 0) / max(work.footage_s, 1e-9), work.clip_id))
    n = min(SAMPLE, len(ordered))
    return [ordered[(2 * number + 1) * len(ordered) // (2 * n)] for number in range(n)]


def _worked(batches: Iterator[Batch], work: Work, clock: Clock, limit_ns: int) -> float:
    """Return how many seconds of the clip came out before the time was over, by what its frames stand for."""
    n_seen = 0.0
    for batch in batches:
        if any(batch["end"]):
            return work.footage_s
        n_seen += float((1 / batch["p_keep"]).sum())
        if clock.mono_ns() >= limit_ns:
            break
    return float(min(1.0, n_seen / work.clip["n_frames"]) * work.footage_s)


def asked(options: Options) -> dict[str, Any]:
    """Return what makes two runs comparable: their steps, models, grid, gate and devices, ready for JSON."""
    told = options.resources.told()
    devices = {name: told[name] for name in ("device", "providers") if name in told}
    return devices | {
        "steps": list(options.steps), "every_s": options.every_s, "gate": options.gate, "score": options.score,
        "weights": [weights.sha256 for weights in options.weights],
        "cascade": None if options.cascade is None else options.cascade.settings("embed") or options.cascade.settings("detect"),
    }  # fmt: skip


def told(options: Options, result: Result, cores: int) -> dict[str, Any]:
    """Return what a run leaves in its row of `runs` for `of_earlier`; nothing where it was too short to say anything."""
    seconds = result.seconds.get("pixels", 0.0)
    if result.tally.footage_s <= 0 or seconds < LEAST_S:
        return {}
    return {
        "asked": asked(options), "footage_s": result.tally.footage_s,
        "core_s": seconds * (cores if cores == 1 else cores * EFFICIENCY),
        "stages": {name: flow.seconds for name, flow in result.tally.stages.items()},
    }  # fmt: skip
