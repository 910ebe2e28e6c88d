"""`camloop curate`: arguments in, `curate.run` over the clips, words out.

Nothing heavy is imported until the command runs, so that --help is quick and a light install can show it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from curate import cli_cascade, cli_estimate, cli_resources
from infra import durable
from infra.errors import UsageError

if TYPE_CHECKING:
    from curate.plan import Options, Plan, Step
    from curate.run import Engine, Result
    from infra.catalog import Catalog
    from infra.console import Context

STEPS = ("scan", "detect", "embed", "tag")


def curate(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop curate`."""
    parser.add_argument("--only", nargs="+", choices=STEPS, default=[], metavar="STEP", help=f"only these of {' '.join(STEPS)}")
    parser.add_argument("--without", nargs="+", choices=STEPS, default=[], metavar="STEP", help="all steps but these")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="detector: .onnx or .pt of ultralytics, .pth of torchvision"
    )
    parser.add_argument("--openclip-weights", type=Path, metavar="PATH", help="open_clip folder, or a weights file")
    parser.add_argument("--openclip-model", metavar="NAME", help="architecture of a bare weights file, such as ViT-B-32")
    cli_cascade.add_arguments(parser)
    parser.add_argument("--factors", type=Path, metavar="FILE", help="factor sheet (TOML); by default lighting and people")
    parser.add_argument("--every-s", type=float, default=1.0, metavar="S", help="keep a frame every S seconds (default 1)")
    parser.add_argument(
        "--gate",
        choices=("none", "packets"),
        default="none",
        help="packets: decode only where packet sizes speak for motion, and an audit of the rest (default none: everything)",
    )
    parser.add_argument(
        "--motion", type=int, choices=(1, 2), metavar="V", help="motion score: 1 all pixels, 2 the largest thing (with --gate)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="a plain loop in this process instead of Ray")
    where.add_argument("--ray-address", metavar="A", help="join a Ray cluster; by default Ray starts on this machine")
    parser.add_argument(
        "--max-failures", type=float, default=0.5, metavar="SHARE", help="exit 1 when more clips fail (default .5)"
    )
    parser.add_argument("--retry", action="store_true", help="try clips again that failed before in the same way")
    parser.add_argument("--follow", action="store_true", help="also register what arrives, and go on until Ctrl-C")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page (HTML) about this run: funnel, costs, examples")
    parser.add_argument("--by", choices=("camera_id",), help="the funnel for each camera too, while it works and at its end")
    cli_resources.add_arguments(parser)
    cli_estimate.add_arguments(parser)
    parser.set_defaults(run=run_curate)


def _options(arguments: argparse.Namespace) -> Options:
    from curate import factors, openclip, plan
    from curate.detect import read_weights

    if arguments.only and arguments.without:
        raise UsageError("--only and --without exclude each other")
    if not 0 <= arguments.max_failures <= 1:
        raise UsageError(f"--max-failures {arguments.max_failures}: give a share from 0 to 1")
    cascade = cli_cascade.read(arguments)
    chosen = arguments.only or set(STEPS) - set(arguments.without) - cli_cascade.without_stage(cascade)
    steps: tuple[Step, ...] = tuple(step for step in plan.STEPS if step in chosen)
    try:
        text = arguments.factors.read_text() if arguments.factors else factors.DEFAULT
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--factors {arguments.factors}: {error}") from error
    embeds = cascade.last("embed") if cascade else None
    path = embeds.path if embeds else arguments.openclip_weights
    options = plan.Options(
        steps=steps,
        cascade=cascade,
        detector=read_weights(arguments.weights) if arguments.weights else None,
        embedder=openclip.find_weights(path) if path else None,
        embedder_path=path.resolve() if path else None,
        embedder_model=embeds.model if embeds else arguments.openclip_model,
        sheet=factors.parse(text, name=str(arguments.factors or "factors")),
        every_s=arguments.every_s,
        score=arguments.motion or (2 if arguments.gate == "packets" else 1),
        gate=arguments.gate,
        retry=arguments.retry,
        resources=cli_resources.read(arguments),
    )
    models = [step for step in steps if step in ("detect", "embed")]
    named = [look.name for look in cascade.looks if look.step in models] if cascade else models
    options.resources.check_stages(["decode", *named])
    return options


def run_curate(arguments: argparse.Namespace, context: Context) -> int:
    """Run `camloop curate`."""
    from infra.catalog import open_catalog

    options, out = _options(arguments), context.out
    if arguments.follow and (arguments.plan or arguments.page or out.as_json):
        raise UsageError("--follow goes on until it is stopped; --plan, --page and --json are for one run")
    if arguments.by and arguments.plan:
        raise UsageError(f"--by {arguments.by} is about the funnel of a run, and --plan runs nothing: leave one of them out")
    for weights in options.weights:
        if weights.status == "unknown":
            out.note(f"weights {weights.path.name}: unknown, {weights.note} (SHA-256 {weights.sha256})")
    cli_estimate.refuse_alone(arguments)
    if arguments.page:
        durable.check_writable(arguments.page, f"--page {arguments.page}")
    catalog = open_catalog(context.store, create=False)
    if arguments.follow:
        return _follow(arguments, context, options, catalog)
    made = plan_of(catalog, options)
    _say_plan(context, made)
    if arguments.plan:
        return cli_estimate.run(arguments, context, catalog, options, made)
    needs_ray = not arguments.local and any(one.pixel_steps for one in made.works)
    with _engine(arguments, context, options, ray=needs_ray) as (engine, cpus):
        result = _work(arguments, context, options, catalog, made, engine, cpus)
    _say_result(arguments, context, result)
    if arguments.page:
        from curate import run_page
        from curate.query import Footage

        run_page.write(arguments.page, Footage(catalog), result, clock=context.clock)
        out.line(f"page: {arguments.page}")
    return 0


def plan_of(catalog: Catalog, options: Options) -> Plan:
    """Return what is missing."""
    from curate import plan

    return plan.make(catalog, options)


@contextmanager
def _engine(
    arguments: argparse.Namespace, context: Context, options: Options, *, ray: bool
) -> Iterator[tuple[Engine, int]]:  # fmt: skip
    """Yield what runs the stages, and on how many cores; refuse devices that are not there."""
    from functools import partial

    from curate import jobs, pipeline
    from curate.resources import available
    from infra.cluster import LOCAL

    asked = {"device", "providers"} & options.resources.told().keys()
    if not ray:
        if asked and arguments.local:  # else there are no pictures to look at
            options.resources.check(available())
        yield pipeline.run_local, 1
        return
    address = arguments.ray_address or context.settings.ray_address
    with jobs.cluster(address) as cpus:
        if asked:
            options.resources.check(jobs.available(options.resources))
        restarts = jobs.RETRIES if address not in (None, LOCAL) else 0
        yield partial(jobs.run_ray, restarts=restarts, apart=options.resources.are_apart), cpus


def _work(
    arguments: argparse.Namespace, context: Context, options: Options, catalog: Catalog, made: Plan, engine: Engine, cpus: int
) -> Result:
    """Bring everything up to date, with its row in `runs`."""
    from curate import estimate, live, openclip
    from curate.collect import Tally
    from curate.run import curate as work
    from infra.runs import recorded

    with recorded(catalog, "curate", vars(arguments), clock=context.clock) as run:
        run.inputs["snapshot"] = catalog.snapshot()
        if options.embedder_path is not None:
            name, _ = openclip.describe(options.embedder_path, options.embedder_model)
            run.inputs["openclip"] = {"source": name, "path": str(options.embedder_path), "model_name": options.embedder_model}
        if options.cascade is not None and (cuts := [look for look in options.cascade.looks if look.crops]):
            run.inputs["openclip_boxes"] = {"source": cuts[-1].source, "path": str(cuts[-1].path), "model_name": cuts[-1].model}
        run.inputs |= {"resources": told} if (told := options.resources.told()) else {}
        tally, total, start_ns = Tally(), live.Total.of(made.works), context.clock.mono_ns()

        def lines() -> list[str]:
            return live.lines(tally, total, (context.clock.mono_ns() - start_ns) / 1e9, by_camera=bool(arguments.by))

        def line() -> str:
            return live.line(tally, total, (context.clock.mono_ns() - start_ns) / 1e9)

        with context.out.board(lines, line) as board:
            result = work(
                catalog, options, context.settings, clock=context.clock, cpus=cpus, max_failures=arguments.max_failures,
                engine=engine, advance=lambda n, note: board.touch(), planned=made, tally=tally,
            )  # fmt: skip
        run.outputs.update(clips=tally.clips, rows=tally.rows, n_failed=len(tally.failed))
        run.outputs.update(estimate.told(options, result, cpus))
    return result


def _follow(arguments: argparse.Namespace, context: Context, options: Options, catalog: Catalog) -> int:
    """Register and curate what arrives, until Ctrl-C."""
    from curate import follow
    from infra.errors import StoreError

    out, told = context.out, ""
    with _engine(arguments, context, options, ray=not arguments.local) as (engine, cpus):
        out.line(f"following {catalog.store.url}: clips are curated as they arrive; Ctrl-C ends it")
        while True:
            try:
                arrived = follow.register_arrived(catalog, clock=context.clock)
                if arrived is not None:
                    out.line(f"{len(arrived.registered)} clips registered, {len(arrived.failed)} unreadable (table failures)")
                made = plan_of(catalog, options) if catalog.scan("clips", ["clip_id"]).head(1).collect().height else None
                if made is not None and made.works:
                    _say_result(arguments, context, _work(arguments, context, options, catalog, made, engine, cpus))
                told = ""
            except StoreError as error:  # it comes back; what was committed stays
                if str(error) != told:
                    out.note(f"{error}; tried again every {follow.REST_S:.0f} s")
                told = str(error)
            context.clock.sleep_s(follow.REST_S)


def _say_plan(context: Context, made: Plan) -> None:
    out = context.out
    counts = {step: sum(step in work.missing for work in made.works) for step in STEPS}
    todo = ", ".join(f"{step} {n}" for step, n in counts.items() if n)
    out.line(f"{made.n_clips} clips; to do: {todo or 'nothing'}")
    if made.waiting:
        out.line(f"{len(made.waiting)} clips wait for step scan: run camloop curate without --only")
    if made.expired:
        out.line(f"{len(made.expired)} clips are expired: their objects are gone, their rows stay")
    if made.quarantined:
        out.line(f"{len(made.quarantined)} clips failed before and are left alone (table failures; --retry tries them again)")


def _say_result(arguments: argparse.Namespace, context: Context, result: Result) -> None:
    import dataclasses

    from curate import live

    tally, out = result.tally, context.out
    if tally.clips:
        rows = [(step, tally.clips[step], tally.rows[step]) for step in STEPS if step in tally.clips]
        out.table("", ["step", "clips", "rows"], rows)
    for name, why in tally.failed[:10]:
        out.line(f"failed: {name}: {why}")
    if len(tally.failed) > 10:
        out.line(f"... and {len(tally.failed) - 10} more in table failures")
    if tally.stages or tally.failed:
        total, seconds = live.Total.of(result.plan.works), result.seconds.get("pixels", 0.0)
        for text in live.lines(tally, total, seconds, by_camera=bool(arguments.by)):
            out.line(text)
    out.document(
        {
            "clips": tally.clips, "rows": tally.rows, "n_frames": tally.n_frames, "seconds": result.seconds,
            "cameras": {name: dataclasses.asdict(seen) for name, seen in tally.cameras.items()},
            "failed": [{"clip": name, "why": why} for name, why in tally.failed],
            "quarantined": result.plan.quarantined, "waiting": result.plan.waiting, "expired": result.plan.expired,
        }
    )  # fmt: skip
