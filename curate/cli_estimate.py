"""`camloop curate --plan`: what the run would read, how long it would take and what it would cost, in words."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from infra.errors import UsageError
from infra.words import duration

if TYPE_CHECKING:
    from curate.estimate import Estimate
    from curate.plan import Options, Plan
    from infra.catalog import Catalog
    from infra.console import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to `camloop curate`."""
    parser.add_argument("--plan", action="store_true", help="say what it would read, take and cost, and do nothing")
    parser.add_argument("--cores", type=int, metavar="N", help="with --plan: cores that would work (default: this machine's)")
    parser.add_argument("--core-hour", type=float, metavar="MONEY", help="with --plan: price of a core for an hour")
    parser.add_argument("--gb-month", type=float, metavar="MONEY", help="with --plan: price of a GB in the store for a month")
    parser.add_argument("--gb-read", type=float, metavar="MONEY", help="with --plan: price of reading a GB")


def refuse_alone(arguments: argparse.Namespace) -> None:
    """Refuse prices and cores without --plan: they would change nothing.

    Raises:
        UsageError: one of them was given.
    """
    for name in ("cores", "core_hour", "gb_month", "gb_read"):
        if not arguments.plan and getattr(arguments, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} says something about --plan, which was not asked for")


def run(arguments: argparse.Namespace, context: Context, catalog: Catalog, options: Options, made: Plan) -> int:
    """Say it; nothing is written."""
    from curate import estimate

    prices = estimate.Prices(core_hour=arguments.core_hour, gb_month=arguments.gb_month, gb_read=arguments.gb_read or 0.0)
    cores = _cores(arguments, context)
    rate = estimate.of_earlier(catalog, options)
    if rate is None and any(work.pixel_steps for work in made.works):
        with context.out.progress(estimate.SAMPLE, "measuring") as task:
            rate = estimate.of_sample(
                catalog, made, options, context.settings, clock=context.clock, advance=lambda n: task.advance(1)
            )
    stored = int(catalog.scan("clips", ["n_bytes"]).collect()["n_bytes"].sum() or 0)
    found = estimate.estimate(made, rate, cores=cores, prices=prices, stored_bytes=stored)
    _say(context, found)
    context.out.document(dataclasses.asdict(found) | {"n_quarantined": len(made.quarantined), "n_waiting": len(made.waiting)})
    return 0


def _cores(arguments: argparse.Namespace, context: Context) -> int:
    if arguments.cores is not None:
        if arguments.cores < 1:
            raise UsageError(f"--cores {arguments.cores}; legal: 1 or more")
        return int(arguments.cores)
    if arguments.local:
        return 1
    address = arguments.ray_address or context.settings.ray_address
    from infra.cluster import LOCAL

    if address in (None, LOCAL):
        from curate.jobs import LOCAL_CPUS

        return LOCAL_CPUS
    from curate import jobs

    with jobs.cluster(address) as cpus:
        return cpus


def _say(context: Context, found: Estimate) -> None:
    out = context.out
    out.line(f"to read: {found.n_clips:,} clips, {found.n_bytes / 1e9:.2f} GB, {duration(found.footage_s)} of footage")
    if found.rate is None or found.seconds is None or found.day_hours is None:
        out.line(
            "time: unknown; nothing is to be decoded, or no clip could be tried" if found.n_clips else "time: nothing to decode"
        )
        return
    many = f"{found.cores} cores" if found.cores > 1 else "one core"
    out.line(f"time: about {duration(found.seconds)} on {many}, without start-up  (from {found.rate.says})")
    for name, seconds in found.rate.stages.items():
        out.line(f"      {name}: {seconds * found.footage_s / 3600:.2f} core-hours")
    out.line(f"cost: compute {_money(found.compute, '--core-hour')}, reading {found.read:.2f}, "
             f"all clips in the store {_money(found.month, '--gb-month')} a month")  # fmt: skip
    out.line(f"24 h of one such camera: {found.day_hours:.2f} core-hours, compute {_money(found.day_compute, '--core-hour')}")


def _money(value: float | None, option: str) -> str:
    return f"unknown ({option} gives the price)" if value is None else f"{value:.2f}"
