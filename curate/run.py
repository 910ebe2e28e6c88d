"""One run of curation: plan, decode what needs decoding, commit as it comes, tag, say what happened.

The clips are grouped by the set of steps that they lack, so that a model never looks at a frame it has seen. Every group
goes through the same table of stages (`curate/pipeline.py`), as a plain loop or as a Ray Data job. Stopped at any moment,
the same command does only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from curate import pipeline, plan, tagging
from curate.collect import Collector, Tally
from curate.detect import Batch
from curate.pipeline import Stage
from curate.plan import Options, Plan, Step, Work
from infra.catalog import Catalog
from infra.clock import Clock, SystemClock
from infra.errors import JobError
from infra.settings import Settings

Engine = Callable[[Sequence[Work], Sequence[Stage]], Iterator[Batch]]


@dataclass(slots=True)
class Result:
    """What a run planned and did; seconds per part of the work."""

    plan: Plan
    tally: Tally
    seconds: dict[str, float] = field(default_factory=dict)


def curate(
    catalog: Catalog,
    options: Options,
    settings: Settings,
    *,
    engine: Engine = pipeline.run_local,
    cpus: int = 1,
    max_failures: float = 0.5,
    clock: Clock | None = None,
    advance: Callable[[int, str], None] = lambda n, note: None,
    planned: Plan | None = None,
    tally: Tally | None = None,
) -> Result:
    """Bring the steps of `options` up to date for all clips.

    Args:
        catalog: the tables.
        options: what is wanted.
        settings: how workers reach the store.
        engine: what runs the stages: `pipeline.run_local`, or one of `jobs`.
        cpus: cores that the engine may use.
        max_failures: share of the clips worked on that may fail.
        clock: times commits.
        advance: called with (clips finished, a note) as work goes on.
        planned: what `plan.make` has just said, where the caller asked already; None asks here.
        tally: counts as work goes on, for a caller who shows them; None makes one.

    Raises:
        JobError: more clips failed than `max_failures` allows; what worked is committed.
    """
    clock = clock or SystemClock()
    result = Result(plan=planned or plan.make(catalog, options), tally=tally if tally is not None else Tally())
    start_ns = clock.mono_ns()
    by_steps: dict[tuple[Step, ...], list[Work]] = {}
    for work in result.plan.works:
        if work.pixel_steps:
            by_steps.setdefault(work.pixel_steps, []).append(work)
    for steps, works in by_steps.items():
        _pixels(catalog, options, settings, steps, works, engine, cpus, clock, result.tally, advance)
    result.seconds["pixels"] = (clock.mono_ns() - start_ns) / 1e9
    tagging.run(catalog, result.plan.works, options, clock=clock, tally=result.tally)
    advance(0, "tagged")
    result.seconds["all"] = (clock.mono_ns() - start_ns) / 1e9
    n_failed = len(result.tally.failed)
    if n_failed and n_failed > max_failures * len(result.plan.works):
        raise JobError(
            f"{n_failed} of {len(result.plan.works)} clips failed, more than --max-failures {max_failures:g} allows; "
            f"first: {result.tally.failed[0][0]}: {result.tally.failed[0][1]}; table failures has them all"
        )
    return result


def _pixels(
    catalog: Catalog, options: Options, settings: Settings, steps: tuple[Step, ...], works: Sequence[Work], engine: Engine,
    cpus: int, clock: Clock, tally: Tally, advance: Callable[[int, str], None],
) -> None:  # fmt: skip
    looks = pipeline.looks(options, steps)
    stages = pipeline.table(options, looks, settings, catalog.store.url, scans="scan" in steps, cpus=cpus)
    given = plan.with_kept(catalog, works) if "scan" not in steps else works
    collector = Collector(catalog, works, looks=looks, clock=clock, tally=tally)
    start_ns, n_before = clock.mono_ns(), tally.n_frames
    try:
        for batch in engine(given, stages):
            n_complete = collector.add(batch)
            seconds = (clock.mono_ns() - start_ns) / 1e9
            rate = (tally.n_frames - n_before) / seconds if seconds > 0 else 0.0
            advance(n_complete, f"{rate:.1f} frames/s")
    finally:
        collector.flush()  # also when stopped: what is complete is not done twice
    if left := collector.incomplete():
        raise JobError(f"{len(left)} clips came back incomplete, as {left[0]}: nothing of them is done; run the command again")
