"""The commands of this room: `train`, `export`, `evaluate`. Thin: read, call, print.

A run's id follows from the data set's content, the recipe and the seed: the same command again goes on where it was
stopped, or says that it is finished.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import durable, keys
from infra.artefacts import Report
from infra.catalog import Catalog, open_catalog
from infra.console import Context
from infra.errors import ArtefactError, UsageError
from infra.objects import Store
from infra.runs import recorded
from infra.shelf import full_id, put_bundle, read_bundle, read_dataset

if TYPE_CHECKING:
    from train.checkpoint import Checkpoint
    from train.jobs import Footage, Plan


def train(parser: argparse.ArgumentParser) -> None:
    """Arguments of `camloop train`."""
    parser.add_argument("dataset", nargs="?", help="a data set's name (camloop dataset); not needed with --resume")
    parser.add_argument("--recipe", default="gesture_gru", metavar="NAME", help="built-in or module:function (%(default)s)")
    parser.add_argument("--seed", type=int, help="another seed than the recipe's")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run, with its own recipe")
    parser.add_argument(
        "--ray-address", metavar="A", help="train in a worker of this Ray cluster, restarted when it dies; `local` starts Ray"
    )
    parser.set_defaults(run=_train)


def export(parser: argparse.ArgumentParser) -> None:
    """Arguments of `camloop export`."""
    parser.add_argument("trained", metavar="run", help="a run id, or how it begins")
    parser.add_argument("--name", metavar="MODEL", help="the model's name (default: that of its recipe)")
    parser.add_argument("--simulated", action="store_true", help="mark it as a model of the simulated world, refused elsewhere")
    parser.set_defaults(run=_export)


def evaluate(parser: argparse.ArgumentParser) -> None:
    """Arguments of `camloop evaluate`."""
    parser.add_argument("bundle", help="a bundle id, or how it begins")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="the data set that judges")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--gate", type=Path, metavar="FILE", help="gate file (TOML); the exit code is 1 unless it is passed")
    parser.add_argument("--baseline", metavar="BUNDLE", help="compare with this bundle on the same frames")
    parser.add_argument("--pair-labels", metavar="A,B", default="", help="repeat the comparison on these classes alone")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page")
    parser.set_defaults(run=_evaluate)


def _train(arguments: argparse.Namespace, context: Context) -> int:
    from train import jobs, recipes

    store = context.store
    if arguments.resume:
        run_id = full_id(store, "runs/", arguments.resume)
        config = read_config(store, run_id)
        dataset, recipe = config["dataset"], recipes.from_json(config["recipe"])
    elif arguments.dataset:
        dataset, recipe = arguments.dataset, recipes.find(arguments.recipe)
        if arguments.seed is not None:
            recipe = dataclasses.replace(recipe, seed=arguments.seed)
    else:
        raise UsageError("train: name a data set, or a run with --resume")
    selection = read_dataset(store, dataset)
    catalog = open_catalog(store, create=False)
    with recorded(catalog, "train", vars(arguments), clock=context.clock) as run:
        plan = jobs.plan(dataset, selection, recipe)
        if arguments.resume and plan.run_id != run_id:
            raise ArtefactError(f"run {run_id} was begun on other rows of data set {dataset!r}: train it anew")
        run.inputs.update(dataset=dataset, selection_id=selection.selection_id, recipe=recipe.name)
        last = _trained(context, catalog, plan, arguments.ray_address)
        run.outputs.update(run_id=plan.run_id, best_epoch=last.best_epoch)
    _print_run(context, plan.run_id, last)
    return 0


def _trained(context: Context, catalog: Catalog, plan: Plan, ray_address: str | None) -> Checkpoint:
    """Return the run's last checkpoint, after what is missing of it was done."""
    from train import checkpoint, jobs

    before = checkpoint.load(catalog.store, plan.run_id)
    if before:
        context.out.note(f"run {plan.run_id[:12]}: {len(before.history)} epochs are done already")
        if before.finished:
            return before
    if ray_address is not None:
        context.out.line(f"training in a Ray worker ({ray_address}); its epochs come into {catalog.store.url} one by one")
        return jobs.ray_run(catalog.store, plan, address=ray_address)
    with context.out.progress(None, f"decoding {plan.dataset}") as task:
        footage = jobs.prepare(catalog, plan, advance=task.advance)
    return _fit(context, catalog.store, plan, footage)


def _fit(context: Context, store: Store, plan: Plan, footage: Footage) -> Checkpoint:
    from train import jobs

    n_steps = math.ceil(len(footage.train) / plan.recipe.batch_windows) * plan.recipe.epochs
    with context.out.progress(n_steps, f"training {plan.recipe.name}") as task:

        def show(row: dict[str, float | None]) -> None:
            val = "" if row["val_loss"] is None else f", val {row['val_loss']:.3f}, accuracy {row['val_accuracy']:.2f}"
            context.out.line(f"epoch {row['epoch']:>3}  loss {row['train_loss']:.3f}{val}")

        return jobs.run(store, plan, footage, on_row=show, on_step=task.advance, clock=context.clock)


def _print_run(context: Context, run_id: str, last: Any) -> None:
    best = last.history[last.best_epoch - 1]
    context.out.line(f"run {run_id}: best epoch {last.best_epoch} of {len(last.history)}")
    context.out.document({"run_id": run_id, "best_epoch": last.best_epoch, "best": best, "history": list(last.history)})


def read_config(store: Store, run_id: str) -> dict[str, Any]:
    """Return `config.json` of a run."""
    config: dict[str, Any] = json.loads(store.get(keys.run_prefix(run_id) + "config.json"))
    return config


def _export(arguments: argparse.Namespace, context: Context) -> int:
    from train import checkpoint, recipes
    from train.export import export as make

    store = context.store
    run_id = full_id(store, "runs/", arguments.trained)
    config, last = read_config(store, run_id), checkpoint.load(store, run_id)
    if last is None:
        raise ArtefactError(f"run {run_id} has not ended an epoch yet: camloop train --resume {run_id}")
    recipe = recipes.from_json(config["recipe"])
    lineage = {
        "run_id": run_id, "dataset": config["dataset"], "selection_id": config["selection_id"], "recipe": recipe.name,
        "seed": recipe.seed, "best_epoch": last.best_epoch, "n_epochs": len(last.history),
    }  # fmt: skip
    with recorded(open_catalog(store, create=False), "export", vars(arguments), clock=context.clock) as run:
        bundle = make(
            last.best, recipe, tuple(config["labels"]), name=arguments.name or recipe.name, lineage=lineage,
            simulated_world_only=arguments.simulated,
        )  # fmt: skip
        bundle_id = put_bundle(store, bundle)
        run.inputs.update(run_id=run_id)
        run.outputs.update(bundle_id=bundle_id)
    spec = bundle.spec
    context.out.line(f"bundle {bundle_id}: {spec.model_name}, {len(bundle.model):,} bytes, a frame every {spec.period_s} s")
    context.out.document({"bundle_id": bundle_id, "run_id": run_id, "n_bytes": len(bundle.model), "labels": bundle.spec.labels})
    return 0


def _evaluate(arguments: argparse.Namespace, context: Context) -> int:
    from train.evaluate import Question, keep
    from train.evaluate import evaluate as judge
    from train.report import page

    store = context.store
    catalog = open_catalog(store, create=False)
    baseline = read_bundle(store, arguments.baseline) if arguments.baseline else None
    bundle = read_bundle(store, arguments.bundle)
    question = Question(
        dataset=arguments.dataset,
        selection=read_dataset(store, arguments.dataset),
        split=arguments.split,
        gate=_read_text(arguments.gate) if arguments.gate else None,
        baseline=baseline,
        pair_labels=tuple(name for name in arguments.pair_labels.split(",") if name),
    )
    with recorded(catalog, "evaluate", vars(arguments), clock=context.clock) as run:
        with context.out.progress(None, f"judging {bundle.spec.model_name}") as task:
            history = _history(store, bundle.spec.lineage.get("run_id"))
            report, predictions = judge(catalog, bundle, question, clock=context.clock, advance=task.advance, history=history)
        report_id = keep(catalog, report, predictions)
        if arguments.html:
            durable.write(arguments.html, page(report, report_id).encode())
        run.inputs.update(bundle_id=bundle.bundle_id, dataset=arguments.dataset, selection_id=report.selection_id)
        run.outputs.update(report_id=report_id, verdict=report.verdict)
    _print_report(context, report, report_id)
    return 0 if report.verdict in ("passed", "not gated") else 1


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"gate file {path}: {error}") from error


def _history(store: Store, run_id: str | None) -> list[dict[str, Any]]:
    key = keys.run_prefix(run_id or "none") + "history.json"
    return json.loads(store.get(key)) if run_id and store.head(key) else []


def _print_report(context: Context, report: Report, report_id: str) -> None:
    columns = ("slice", "metric", "value", "low", "high", "n", "groups", "threshold", "verdict")
    rows = [(c.slice, c.metric, c.value, c.low, c.high, c.n, c.n_groups, c.threshold, c.verdict) for c in report.cells]
    context.out.table(f"{report.model_name} on {report.dataset} ({report.judged} output)", columns, rows)
    for cell in report.cells:
        if cell.verdict in ("failed", "unknown"):
            context.out.line(f"{cell.slice}: {cell.verdict}: {cell.why}")
    for entry in report.detail.get("filters", {}).get("slices", ()):
        context.out.line(entry["says"])
    for paired in report.detail["paired"]:
        over = ", ".join(paired["labels"]) or "all classes"
        bounds = "no interval" if paired["low"] is None else f"[{paired['low']:+.3f}, {paired['high']:+.3f}]"
        context.out.line(f"minus {paired['baseline_name']} on {over}: {paired['value']:+.3f} {bounds}")
    context.out.line(f"report {report_id}: {report.verdict}")
    context.out.document({"report_id": report_id, "verdict": report.verdict, "report": json.loads(report.to_bytes())})
