"""The table of stages as a Ray Data job: the same rows as the plain loop, on as many machines as there are.

    works --parcels--> decode, detect, embed (actors, each all stages) --iter_batches--> commits (driver)
    works --parcels--> decode (actors) --> detect (actors) --> embed (actors) --iter_batches--> commits (driver)    `apart`

By default each actor is a loop of its own (`pipeline.Chain`) on a core, and no picture leaves it; rows alone go through Ray's
object store, so that memory is flat by itself. Pools of their own are for those who size them (--workers) or lend a GPU to the
models: then pictures pass the object store, and Ray Data holds decoding back when it fills.
A batch is full or the last of its parcel, whatever the time (`pipeline.WAIT_S` is the loop's): Ray runs the task of a worker
that died again and leaves out as many blocks as had arrived, so that a task must cut its rows at the same places each time.

Ray is imported here and in `train/jobs.py` only. Only the driver commits, so that a job killed at any moment leaves whole
batches; what was in flight is done again by the next run. Decoding happens in child processes of the actors
(`infra/decoder.py`): a clip that crashes its decoder cannot take a Ray worker, and the batch mates of a whole block, with it
(RELIABILITY.md, finding 5).

Without an address, Ray runs on this machine, with a token of its own, without dashboard or usage statistics.
"""

from __future__ import annotations

import logging
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.pipeline import Chain, Stage
from curate.resources import Available, Resources
from curate.resources import available as of_process
from infra.cluster import LOCAL, check_address
from infra.errors import CamloopError, JobError
from infra.settings import quiet_libraries

if TYPE_CHECKING:
    from curate.detect import Batch
    from curate.plan import Work

OBJECT_STORE_BYTES = 512 * 1024**2  # some 400 frames at 640 px
BLOCK_BYTES = 16 * 1024**2  # of what passes between pools; Ray's 128 MB are 100 frames for which a detector would wait
LOCAL_CPUS = 2
PARCEL_S = 60.0  # of footage: clips that a worker takes together, so that its models get full batches
PARCELS_PER_WORKER = 128  # at least, where there are as many clips: a killed worker has one in work (up to MOST_TASKS parcels)
MOST_TASKS = 4000  # of the first stage; with more parcels a task takes several
ANSWER_S = 120.0  # a worker may have to start first, or another job hold the GPU
RETRIES = 2  # of a batch whose worker died (out of memory, lost machine); Ray's default is for ever


@contextmanager
def cluster(address: str | None, *, cpus: int = LOCAL_CPUS) -> Iterator[int]:
    """Join the cluster at `address`, or start Ray on this machine; yield how many cores it has; leave it at the end.

    Args:
        address: "auto", HOST:PORT or ray://HOST:PORT; "local" or None starts one here.
        cpus: cores that a Ray started here may use.

    Raises:
        UsageError: an address of no known form.
        JobError: nothing answers there.
    """
    if address is not None:
        check_address(address)
    quiet_libraries()
    import ray

    quiet: dict[str, Any] = {"configure_logging": True, "logging_level": logging.ERROR, "log_to_driver": False}
    if address in (None, LOCAL):
        ray.init(
            num_cpus=cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
    else:
        ray.init(address=address, ignore_reinit_error=True, **quiet)
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield int(resources.get("CPU", 1))
    finally:
        ray.shutdown()


def available(resources: Resources) -> Available:
    """Return what a worker of the cluster that `cluster` joined can use; the first that answers speaks for all.

    Raises:
        JobError: none answers.
    """
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpu = 0.01 if resources.needs_gpu and found.get("GPU", 0) else 0.0
    ask: Any = ray.remote(num_cpus=0, num_gpus=gpu)(of_process)
    try:
        answer: Available = ray.get(ask.remote("the Ray cluster"), timeout=ANSWER_S)
    except ray.exceptions.GetTimeoutError as error:
        raise JobError(f"no worker of the Ray cluster was free within {ANSWER_S:g} s to say what it can use") from error
    return answer


class Worker:
    """What a Ray actor runs, built once: a chain that takes works and yields batches, or a stage that maps batches."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._call = make()

    def __call__(self, batch: Batch) -> Any:
        if "works" not in batch:
            return self._call(batch)
        return (part for works in batch["works"] for part in self._call(pickle.loads(works)))


def parcels(works: Sequence[Work], workers: int) -> list[list[Work]]:
    """Return the works in order, in parcels of at least `PARCEL_S` of footage, or less where each worker would get too few.

    Args:
        works: the clips.
        workers: at most.
    """
    least_s = min(PARCEL_S, sum(work.footage_s for work in works) / (PARCELS_PER_WORKER * workers))
    made: list[list[Work]] = []
    held_s = math.inf
    for work in works:
        if held_s >= least_s:
            made.append([])
            held_s = 0.0
        made[-1].append(work)
        held_s += work.footage_s
    return made


def run_ray(
    works: Sequence[Work], stages: Sequence[Stage], *, restarts: int = 0, apart: bool = False
) -> Iterator[Batch]:  # fmt: skip
    """Run the table on the cluster that `cluster` joined; yield numpy batches without pixels, in any order.

    Args:
        works: the clips.
        stages: the table.
        restarts: how often a batch may be tried again whose worker died: 0 on one machine, where the next run does it;
            `RETRIES` on a cluster, where machines come and go.
        apart: each stage is a pool of its own; else each worker runs all stages.

    Raises:
        JobError: a worker failed in a way that is no clip's fault, or died once too often.
    """
    import ray.data
    from ray.data import DataContext
    from ray.exceptions import RayError

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    context.max_errored_blocks = 0
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context.target_max_block_size = BLOCK_BYTES
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cores = [float(node["Resources"].get("CPU", 0.0)) for node in nodes if node["Alive"]] or [1.0]
    if apart:
        pools = [_joined(stages[:1], max(cores), stages[0].workers), *stages[1:]]
    else:
        pools = [_joined(stages, max(cores), (1, max(1, int(sum(cores)))))]
    given = [{"works": pickle.dumps(parcel)} for parcel in parcels(works, pools[0].workers[1])]
    most = max(MOST_TASKS, PARCELS_PER_WORKER * pools[0].workers[1])
    rows: Any = ray.data.from_items(given, override_num_blocks=max(1, min(len(given), most)))
    for pool in pools:
        rows = _mapped(rows, pool, restarts)
    try:
        for batch in rows.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
            yield {name: np.asarray(column) for name, column in batch.items() if not name.endswith("_rgb")}
    except CamloopError:
        raise  # Ray gives an error of ours its own class and ours
    except RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise JobError(f"a Ray worker failed: {last}; what was finished is committed, the same command goes on") from error


def _joined(stages: Sequence[Stage], largest: float, workers: tuple[int, int]) -> Stage:
    """Return one stage that does what these do, one parcel at a time, on a core (decoder and models take turns, mostly)."""
    return Stage(
        step="+".join(stage.step for stage in stages), make=partial(Chain, tuple(stages), math.inf), batch_size=1,
        num_cpus=min(1.0, sum(stage.num_cpus for stage in stages), largest), num_gpus=sum(stage.num_gpus for stage in stages),
        workers=workers,
    )  # fmt: skip


def _mapped(rows: Any, stage: Stage, restarts: int) -> Any:
    least, most = stage.workers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the named parameters that Ray 2.60 asks for lack these two
        return rows.map_batches(
            Worker,
            fn_constructor_args=(stage.make,),
            batch_size=stage.batch_size,
            batch_format="numpy",
            num_cpus=stage.num_cpus,
            num_gpus=stage.num_gpus,
            concurrency=(least, most) if most > least else least,
            max_restarts=-1 if restarts else 0,
            max_task_retries=restarts,
        )
