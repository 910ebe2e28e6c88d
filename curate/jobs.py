"""The table of stages as a Ray Data job: the same rows as the plain loop, on as many machines as there are.

    works --from_items--> decode (actors, fan out) --> detect (actors) --> embed (actors) --iter_batches--> commits (driver)

Ray is imported here and in `train/jobs.py` only. Pixels stay in Ray's object store between stages; what comes back to the
driver are rows. Only the driver commits, so that a job killed at any moment leaves whole batches; what was in flight is done
again by the next run. Decoding happens in child processes of the decode actors (`infra/decoder.py`): a clip that crashes
its decoder cannot take a Ray worker, and the batch mates of a whole block, with it (RELIABILITY.md, finding 5).

Without an address, Ray runs on this machine, with a token of its own, without dashboard or usage statistics.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.cluster import LOCAL, check_address
from infra.errors import CamloopError, JobError
from infra.settings import quiet_libraries

if TYPE_CHECKING:
    from curate.detect import Batch
    from curate.pipeline import Stage
    from curate.plan import Work

OBJECT_STORE_BYTES = 512 * 1024**2  # some 400 frames at 640 px; Ray Data holds decoding back when it fills
LOCAL_CPUS = 2
BLOCKS_PER_WORKER = 64  # tasks of the first stage: a decoder that is killed has one of them in work
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


class Worker:
    """What a Ray actor runs: one stage, built once. Decoding takes one clip and yields batches; the others map batches."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._call = make()

    def __call__(self, batch: Batch) -> Any:
        if "work" not in batch:
            return self._call(batch)
        return (part for work in batch["work"] for part in self._call(pickle.loads(work)))


def run_ray(works: Sequence[Work], stages: Sequence[Stage], *, restarts: int = 0) -> Iterator[Batch]:
    """Run the table on the cluster that `cluster` joined; yield numpy batches without pixels, in any order.

    Args:
        works: the clips.
        stages: the table.
        restarts: how often a batch may be tried again whose worker died: 0 on one machine, where the next run does it;
            `RETRIES` on a cluster, where machines come and go.

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
    given = [{"work": pickle.dumps(work)} for work in works]
    most = BLOCKS_PER_WORKER * stages[0].workers[1]
    rows: Any = ray.data.from_items(given, override_num_blocks=max(1, min(len(works), most)))
    for stage in stages:
        rows = _mapped(rows, stage, restarts)
    try:
        for batch in rows.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
            yield {name: np.asarray(column) for name, column in batch.items() if not name.endswith("_rgb")}
    except CamloopError:
        raise  # Ray gives an error of ours its own class and ours
    except RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise JobError(f"a Ray worker failed: {last}; what was finished is committed, the same command goes on") from error


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
            concurrency=(least, most) if most > least else least,
            max_restarts=-1 if restarts else 0,
            max_task_retries=restarts,
        )
