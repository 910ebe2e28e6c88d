"""`camloop curate`: arguments in, `curate.run` over the clips, words out.

Nothing heavy is imported until the command runs, so that --help is quick and a light install can show it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from curate import cli_cascade
from infra.errors import UsageError

if TYPE_CHECKING:
    from curate.plan import Options, Plan, Step
    from curate.run import Result
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
    return plan.Options(
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
    )


def run_curate(arguments: argparse.Namespace, context: Context) -> int:
    """Run `camloop curate`."""
    from contextlib import nullcontext
    from functools import partial

    from curate import jobs, openclip, pipeline, plan
    from curate.run import curate as work
    from infra.catalog import open_catalog
    from infra.cluster import LOCAL
    from infra.runs import recorded

    options, out = _options(arguments), context.out
    for weights in options.weights:
        if weights.status == "unknown":
            out.note(f"weights {weights.path.name}: unknown, {weights.note} (SHA-256 {weights.sha256})")
    catalog = open_catalog(context.store, create=False)
    made = plan.make(catalog, options)
    _say_plan(context, made)
    needs_ray = not arguments.local and any(one.pixel_steps for one in made.works)
    with recorded(catalog, "curate", vars(arguments), clock=context.clock) as run:
        run.inputs["snapshot"] = catalog.snapshot()
        if options.embedder_path is not None:
            name, _ = openclip.describe(options.embedder_path, options.embedder_model)
            run.inputs["openclip"] = {"source": name, "path": str(options.embedder_path), "model_name": options.embedder_model}
        address = arguments.ray_address or context.settings.ray_address
        by_ray = partial(jobs.run_ray, restarts=jobs.RETRIES if address not in (None, LOCAL) else 0)
        with jobs.cluster(address) if needs_ray else nullcontext(1) as cpus, out.progress(len(made.works), "clips") as task:
            result = work(
                catalog, options, context.settings, clock=context.clock, cpus=cpus, max_failures=arguments.max_failures,
                engine=by_ray if needs_ray else pipeline.run_local, advance=task.advance,
            )  # fmt: skip
        run.outputs.update(clips=result.tally.clips, rows=result.tally.rows, n_failed=len(result.tally.failed))
    _say_result(context, result)
    return 0


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


def _say_result(context: Context, result: Result) -> None:
    tally, out = result.tally, context.out
    if tally.clips:
        rows = [(step, tally.clips[step], tally.rows[step]) for step in STEPS if step in tally.clips]
        out.table("", ["step", "clips", "rows"], rows)
    for name, why in tally.failed[:10]:
        out.line(f"failed: {name}: {why}")
    if len(tally.failed) > 10:
        out.line(f"... and {len(tally.failed) - 10} more in table failures")
    seconds = result.seconds.get("pixels", 0.0)
    if tally.n_frames:
        out.line(f"{tally.n_frames} frames in {seconds:.1f} s, {tally.n_frames / seconds:.1f} frames/s")
    out.document(
        {
            "clips": tally.clips, "rows": tally.rows, "n_frames": tally.n_frames, "seconds": result.seconds,
            "failed": [{"clip": name, "why": why} for name, why in tally.failed],
            "quarantined": result.plan.quarantined, "waiting": result.plan.waiting, "expired": result.plan.expired,
        }
    )  # fmt: skip
