"""A training run from plan to last checkpoint; the same function in this process and in a Ray Train job.

    plan()     data set, recipe -> Plan, whose run_id follows from both
    prepare()  clips -> decoded footage -> window sets of train and val
    run()      writes config.json, goes on from the last checkpoint, saves one after every epoch
    ray_run()  the same in one Ray Train worker, started again when it dies

The only importer of Ray in this room.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infra import keys
from infra.artefacts import Selection, SelectionRow
from infra.catalog import Catalog
from infra.clock import Clock
from infra.cluster import LOCAL, check_address
from infra.errors import JobError, UsageError
from infra.objects import Store
from infra.settings import quiet_libraries
from infra.shelf import read_dataset
from train import checkpoint
from train.checkpoint import Checkpoint
from train.dataset import WindowSet, labels_of, usable, window_set
from train.footage import clips_of, load
from train.loop import fit
from train.recipes import Recipe

VERSION = 1
"""Raised by hand when the same data set and recipe would train another model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run before it begins: what it learns from, and how."""

    run_id: str
    dataset: str
    selection_id: str
    recipe: Recipe
    labels: tuple[str, ...]
    rows: tuple[SelectionRow, ...]

    def config(self, failed: dict[str, str]) -> bytes:
        """Return `config.json`: everything needed to repeat the run, and the clips that could not be read."""
        document = {
            "run_id": self.run_id,
            "dataset": self.dataset,
            "selection_id": self.selection_id,
            "labels": self.labels,
            "recipe": self.recipe.to_json(),
            "failed_clips": failed,
        }
        return json.dumps(document, indent=1, sort_keys=True).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Footage:
    """Decoded windows of both parts, and the clips that gave none."""

    train: WindowSet
    val: WindowSet
    failed: dict[str, str]


def plan(dataset: str, selection: Selection, recipe: Recipe) -> Plan:
    """Return the run that learns `selection` by `recipe`.

    Raises:
        UsageError: fewer than two classes to learn.
    """
    labels = labels_of(selection)
    selection_id = selection.selection_id
    run_id = keys.derived_id("train", VERSION, selection_id, keys.json_sha256(recipe.to_json()))
    rows = (*usable(selection, "train"), *usable(selection, "val"))
    return Plan(run_id=run_id, dataset=dataset, selection_id=selection_id, recipe=recipe, labels=labels, rows=rows)


def prepare(catalog: Catalog, plan: Plan, *, advance: Callable[[int], None] = lambda n: None) -> Footage:
    """Decode what the run needs.

    Raises:
        UsageError: no row of the training part is long enough for a window.
        JobError: too many clips cannot be read.
    """
    recipe = plan.recipe
    cache = load(catalog.store, clips_of(catalog, plan.rows), plan.rows, recipe, advance=advance)
    train = window_set(cache, plan.rows, "train", plan.labels, recipe.window, balance=recipe.balance)
    val = window_set(cache, plan.rows, "val", plan.labels, recipe.window, balance=False)
    if not len(train):
        raise UsageError(f"data set {plan.dataset!r}: no row has {recipe.window.n_frames} frames, the recipe drops short ones")
    return Footage(train=train, val=val, failed=dict(cache.failed))


def run(
    store: Store,
    plan: Plan,
    footage: Footage,
    *,
    on_row: Callable[[dict[str, float | None]], None] = lambda row: None,
    on_step: Callable[[int], None] = lambda n: None,
    clock: Clock | None = None,
) -> Checkpoint:
    """Train, going on from the run's last checkpoint; every epoch is in the store before the next begins."""
    store.put(keys.run_prefix(plan.run_id) + "config.json", plan.config(footage.failed))

    def on_epoch(state: Checkpoint) -> None:
        checkpoint.save(store, plan.run_id, state)
        on_row(state.history[-1])

    start = checkpoint.load(store, plan.run_id)
    n = len(plan.labels)
    return fit(plan.recipe, footage.train, footage.val, n, start=start, on_epoch=on_epoch, on_step=on_step, clock=clock)


def ray_run(
    store: Store, plan: Plan, *, address: str = LOCAL, num_cpus: int = 2, max_failures: int = 3, records: str | None = None
) -> Checkpoint:
    """Train in one worker of Ray Train and return the last checkpoint; a worker that dies is started again and goes on.

    Args:
        store: one that every node of the cluster reaches; it travels to the worker with its settings.
        plan: the run.
        address: "auto", HOST:PORT or ray://HOST:PORT of a cluster; "local" starts Ray on this machine for this run.
        num_cpus: of the worker.
        max_failures: how often it may die.
        records: a folder or URL for Ray's own records (our checkpoints are in the store); default: Ray's.

    Raises:
        UsageError: an address of no known form.
        JobError: no cluster answers, or the worker died once too often; the same command goes on from the last epoch.
    """
    check_address(address)
    quiet_libraries()
    import ray
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    try:
        joined = not ray.is_initialized()
        if joined and address == LOCAL:
            ray.init(num_cpus=num_cpus + 1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
        elif joined:
            ray.init(address=address, log_to_driver=False)
        try:
            TorchTrainer(
                ray_worker,
                train_loop_config={"store": store, "dataset": plan.dataset, "recipe": plan.recipe.to_json()},
                scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": num_cpus}),
                run_config=RunConfig(storage_path=records, failure_config=FailureConfig(max_failures=max_failures)),
            ).fit()
        finally:
            if joined:
                ray.shutdown()
    except (RayError, TrainingFailedError, ConnectionError) as error:
        last = " ".join((str(error).strip() or type(error).__name__).splitlines()[-1].split())
        raise JobError(f"training in Ray at {address} failed: {last}; the same command goes on from the last epoch") from error
    found = checkpoint.load(store, plan.run_id)
    if found is None:
        raise JobError(f"training in Ray at {address} left no checkpoint in {store.url}: does every node reach this store?")
    return found


def ray_worker(config: dict[str, Any]) -> None:
    """What the worker does: the same as `camloop train`, reporting each epoch to Ray."""
    import ray.train

    from infra.catalog import open_catalog
    from train.recipes import from_json

    store, dataset = config["store"], config["dataset"]
    made = plan(dataset, read_dataset(store, dataset), from_json(config["recipe"]))
    run(store, made, prepare(open_catalog(store, create=False), made), on_row=lambda row: ray.train.report(dict(row)))
