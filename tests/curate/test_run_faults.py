"""Curation under fire: poisoned clips, weights that are swapped in mid-run, two jobs at once.

`CAMLOOP_TEST_COUNT` (1) multiplies the clips: 40 of them are 2,000 clips, 200 of them poisoned.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate import factors, jobs, pipeline
from curate.detect import Batch, read_weights
from curate.pipeline import Stage
from curate.plan import Options, Work
from curate.run import Engine, Result, curate
from infra.catalog import Catalog, Done, open_catalog
from infra.errors import JobError
from infra.settings import Settings
from infra.store import DirStore
from tests.curate.poisoned_scan import KINDS, PoisonedDecode, poison

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
CLIPS, POISONED = 50 * COUNT, 5 * COUNT
REASONS = {
    "segfault": "killed by SIGSEGV", "abort": "killed by SIGABRT", "hang": "decoder over 2 s", "8 GB": "decoder over 1500 MB",
    "endless": "decoder over 2 s",
}  # fmt: skip
AddClip = Callable[..., str]


def options(detector: Path, **more: Any) -> Options:
    """Return what a run is asked for."""
    steps: Any = ("scan", "detect", "tag")
    return Options(steps=steps, detector=read_weights(detector), sheet=factors.parse(factors.DEFAULT), **more)


def poisoned(engine: Engine) -> Engine:
    """Return an engine whose decoder takes poison."""

    def run(works: Sequence[Work], stages: Sequence[Stage]) -> Iterator[Batch]:
        first, *rest = stages
        assert isinstance(first.make, partial)
        return engine(
            works, [dataclasses.replace(first, make=partial(PoisonedDecode, *first.make.args, **first.make.keywords)), *rest]
        )

    return run


def rows(catalog: Catalog) -> dict[str, pl.DataFrame]:
    """Return the live rows of a store, without what differs between two undisturbed runs."""
    keys = {"frames": ["clip_id", "pts"], "detections": ["clip_id", "pts", "det_id"], "tags": ["clip_id", "pts", "factor"]}
    return {name: catalog.scan(name).drop("batch_id").sort(by).collect() for name, by in keys.items()}


@pytest.mark.parametrize("by_ray", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_poisoned_clips(
    catalog: Catalog, add_clips: Callable[..., list[str]], tiny_detector: Path, tmp_path: Path, by_ray: bool
) -> None:
    """One clip in ten kills, hangs or floods its decoder: the others are tagged, these have a reason and at most two tries."""
    levels = {f"c{i}": [(5 * i) % 250, (7 * i + 3) % 250] * (5 + i // 250) for i in range(CLIPS - POISONED)}
    kinds = [(KINDS[number % len(KINDS)], tmp_path / f"tries-{number}") for number in range(POISONED)]
    poisons = {f"p{number}": poison(*kind, number) for number, kind in enumerate(kinds)}
    good, bad = set(add_clips(catalog, levels)), dict(zip(add_clips(catalog, poisons), kinds, strict=True))
    wanted, start_s = options(tiny_detector), time.monotonic()
    if by_ray:
        with jobs.cluster(None, cpus=4) as cpus:  # two decoders: while one hangs, the other works
            result = curate(catalog, wanted, Settings(), engine=poisoned(jobs.run_ray), cpus=cpus)
    else:
        result = curate(catalog, wanted, Settings(), engine=poisoned(pipeline.run_local))
    assert set(catalog.done("tag")) == good and result.tally.clips["tag"] == len(good) == CLIPS - POISONED
    failures = {row["clip_id"]: row["message"] for row in catalog.scan("failures").collect().iter_rows(named=True)}
    assert set(failures) == set(bad)
    for clip_id, (kind, tries) in bad.items():
        assert REASONS[kind] in failures[clip_id], (kind, failures[clip_id])
        assert len(tries.read_text()) == 2
    assert time.monotonic() - start_s < 120 + 10 * POISONED
    again = curate(catalog, wanted, Settings(), engine=poisoned(pipeline.run_local))
    assert again.tally.clips == {} and set(again.plan.quarantined) == set(bad)


class TestSwappedWeights:
    """The file of a model is replaced while a job runs."""

    def test_no_mixed_rows(
        self, catalog: Catalog, add_clip: AddClip, tmp_path: Path, make_detector: Callable[..., Path]
    ) -> None:
        """Whenever it happens, every row was made by the weights that it names, and what could not be so is not there."""
        other = make_detector(tmp_path / "other.onnx", names=("cow", "van")).read_bytes()
        clip_ids = [add_clip(catalog, f"c{i}", [200 - i] * 20) for i in range(3)]
        rng = random.Random(11)
        for number in range(3 * COUNT):
            path = make_detector(tmp_path / f"d{number}.onnx", names=("person", f"thing{number}"))
            first = path.read_bytes()
            wanted, moment = options(path), rng.choice(["before", "while it is opened", "after a clip"])

            def swap(path: Path = path) -> None:
                path.write_bytes(other)

            def engine(
                works: Sequence[Work], stages: Sequence[Stage], moment: str = moment, swap: Any = swap
            ) -> Iterator[Batch]:
                if moment == "before":
                    swap()
                thread = threading.Timer(rng.random() * 0.3, swap)
                if moment == "while it is opened":
                    thread.start()
                try:
                    for n, batch in enumerate(pipeline.run_local(works, stages)):
                        if moment == "after a clip" and n == 1:
                            swap()
                        yield batch
                finally:
                    if moment == "while it is opened":
                        thread.join()

            try:
                run(catalog, wanted, engine)
            except JobError as error:
                assert "changed since the job began" in str(error)
            named = catalog.scan("detections").select("source", "class_name").unique().collect().rows()
            mine = {(source, name) for source, name in named if source.startswith(f"d{number}@")}
            assert mine <= {(wanted.weights[0].source, name) for name in ("person", f"thing{number}")}
            path.write_bytes(first)
            run(catalog, wanted)
            assert set(catalog.scan("detections").collect()["source"]) == {wanted.weights[0].source}
        assert set(catalog.done("detect")) == set(clip_ids)


def run(catalog: Catalog, wanted: Options, engine: Engine = pipeline.run_local) -> Result:
    """Run the loop, all clips anew."""
    return curate(catalog, wanted, Settings(), engine=engine)


def test_two_jobs_at_once(tmp_path: Path, add_clip: AddClip, tiny_detector: Path) -> None:
    """Two jobs over the same clips at the same time end with the rows of one."""
    stores = [open_catalog(DirStore(tmp_path / name)) for name in ("one", "two")]
    for catalog in stores:
        for i in range(8):
            add_clip(catalog, f"c{i}", [20 * i + 10] * 20)
    run(stores[0], options(tiny_detector))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run(open_catalog(DirStore(tmp_path / "two")), options(tiny_detector))
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    expected, found = rows(stores[0]), rows(stores[1])
    assert all(expected[name].equals(found[name]) for name in expected)
    assert len(stores[1].done("tag")) == 8


def test_what_a_kill_can_cost(catalog: Catalog, add_clip: AddClip) -> None:
    """At no moment is more than a 96th of a run's clips finished and uncommitted: a killed driver does that much again."""
    add_clip(catalog, "c0", b"first")
    row = catalog.scan("clips").drop("batch_id").collect().row(0, named=True)
    others = [{**row, "clip_id": f"{number:032x}", "key": f"clips/{number}.mp4"} for number in range(1, 400)]
    catalog.commit({"clips": others}, [Done("clip", str(other["clip_id"]), "register", "f", 1, 1) for other in others])
    uncommitted = []

    def engine(works: Sequence[Work], stages: Sequence[Stage]) -> Iterator[Batch]:
        for number, work in enumerate(works[:60]):
            end = json.dumps({"n_frames": 0, "seconds": 0.0, "gops": []}).encode()
            yield {"clip_id": np.array([work.clip_id]), "end": np.array([end], dtype=object)}
            uncommitted.append(number + 1 - len(catalog.done("scan")))

    scanned = Options(steps=("scan",), sheet=factors.parse(factors.DEFAULT))
    run(catalog, scanned, engine)
    assert max(uncommitted) == 400 // 96 - 1
    assert uncommitted.count(0) == 15
