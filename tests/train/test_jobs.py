"""The same run in a Ray Train worker: equal bits, also when the worker is killed on the way."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from infra.artefacts import Selection
from infra.catalog import Catalog
from infra.errors import JobError
from infra.store import MemoryStore
from train import checkpoint, jobs
from train.checkpoint import Checkpoint

Run = tuple[jobs.Plan, jobs.Footage, Checkpoint]


@pytest.fixture
def ray_cluster() -> Iterator[None]:
    """Start Ray with one worker's worth of processors on this machine."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("ray_cluster")
def test_a_ray_worker_gives_the_same_bits(dots: tuple[Catalog, Selection], dots_run: Run, tmp_path: Path) -> None:
    """The last weights of a Ray worker equal those of the plain loop."""
    catalog, _ = dots
    plan, plain = in_the_loop(dots, dots_run, epochs=1)
    last = jobs.ray_run(catalog.store, plan, num_cpus=1, records=str(tmp_path))
    assert last.finished
    assert all(torch.equal(last.model[name], value) for name, value in plain.model.items())


def in_the_loop(dots: tuple[Catalog, Selection], dots_run: Run, *, epochs: int) -> tuple[jobs.Plan, Checkpoint]:
    """Return a run of so many epochs, and what the plain loop makes of it."""
    _, footage, _ = dots_run
    recipe = dataclasses.replace(dots_run[0].recipe, name=f"ray{epochs}", epochs=epochs)
    plan = jobs.plan("dots", dots[1], recipe)
    return plan, jobs.run(MemoryStore(), plan, footage)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_ray_worker_goes_on_to_the_same_bits(
    dots: tuple[Catalog, Selection], dots_run: Run, tmp_path: Path
) -> None:
    """The worker is killed after its first epoch; Ray starts another, and the last weights equal those of the plain loop."""
    catalog, _ = dots
    plan, plain = in_the_loop(dots, dots_run, epochs=4)
    killed: list[int] = []

    def kill_after_first_epoch() -> None:
        while checkpoint.load(catalog.store, plan.run_id) is None:
            time.sleep(0.05)
        mine = psutil.Process().children(recursive=True)
        killed.extend(p.pid for p in mine if any("TrainWorker" in part for part in p.cmdline()))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_after_first_epoch, daemon=True)
    thread.start()
    last = jobs.ray_run(catalog.store, plan, num_cpus=1, records=str(tmp_path))
    thread.join(timeout=5)
    assert last.finished and len(killed) == 1
    assert all(torch.equal(last.model[name], value) for name, value in plain.model.items())


def test_no_cluster_is_one_line(dots: tuple[Catalog, Selection], dots_run: Run) -> None:
    """An address at which no cluster answers is named at once, with what to do."""
    with pytest.raises(JobError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 "):
        jobs.ray_run(dots[0].store, dots_run[0], address="127.0.0.1:1")
