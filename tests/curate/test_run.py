"""Curation by the plain loop: rows, reruns, failures, kills, steps asked for one by one."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from curate import collect, factors, pipeline, plan
from curate.detect import Batch, read_weights
from curate.plan import Options, Work
from curate.query import open_catalog as open_footage
from curate.run import Result, curate
from infra.catalog import Catalog, open_catalog
from infra.errors import JobError, Refused, UsageError
from infra.settings import Settings
from infra.store import DirStore

AddClip = Callable[..., str]
BRIGHT, DARK = [200] * 30, [5] * 30


def options(detector: Path | None, *steps: str, **more: Any) -> Options:
    """Return what a run is asked for; all steps but `embed` unless some are named."""
    return Options(
        steps=tuple(step for step in plan.STEPS if step in (steps or ("scan", "detect", "tag"))),
        detector=read_weights(detector) if detector else None,
        sheet=factors.parse(factors.DEFAULT),
        **more,
    )


def run(catalog: Catalog, wanted: Options, **more: Any) -> Result:
    """Run the plain loop."""
    return curate(catalog, wanted, Settings(), **more)


def view(catalog: Catalog) -> pl.DataFrame:
    """Return what people see of the frames."""
    return open_footage(catalog.store).frames.to_polars()


def test_frames_boxes_and_tags_come_out(catalog: Catalog, add_clip: AddClip, tiny_detector: Path) -> None:
    """Three frames of each clip, one second apart; a person where it is bright; lighting and people as tags."""
    add_clip(catalog, "bright", BRIGHT)
    add_clip(catalog, "dark", DARK)
    result = run(catalog, options(tiny_detector))
    assert result.tally.clips == {"scan": 2, "detect": 2, "tag": 2} and result.tally.n_frames == 6
    rows = view(catalog)
    assert rows.group_by("source_name").agg(pl.col("pts").sort()).sort("source_name")["pts"].to_list() == [[0, 10, 20]] * 2
    seen = rows.select("source_name", "lighting", "people", "n_person").unique().sort("source_name").rows()
    assert seen == [("bright.mp4", "infrared", "one", 1), ("dark.mp4", "night", "none", 0)]
    boxes = catalog.scan("detections").collect()
    assert set(boxes["source"]) == {read_weights(tiny_detector).source} and boxes["det_id"].n_unique() == boxes.height
    assert boxes.filter(pl.col("class_name") == "person").select("x1", "y1", "x2", "y2").unique().rows() == [(22, 14, 42, 34)]
    assert catalog.scan("gops").collect()["clip_id"].n_unique() == 2


def test_a_rerun_does_nothing_and_a_changed_sheet_only_tags(catalog: Catalog, add_clip: AddClip, tiny_detector: Path) -> None:
    """What is done is not done again; another sheet decodes nothing; another interval does everything anew."""
    add_clip(catalog, "a", BRIGHT)
    run(catalog, options(tiny_detector))
    before = catalog.snapshot()
    assert run(catalog, options(tiny_detector)).tally.clips == {} and catalog.snapshot() == before
    other = dataclasses.replace(options(tiny_detector), sheet=factors.parse("[factor.lighting]\nfrom = 'lighting'"))
    result = run(catalog, other)
    assert result.tally.clips == {"tag": 1} and result.tally.n_frames == 0
    assert "people" not in view(catalog).columns
    result = run(catalog, options(tiny_detector, every_s=0.5))
    assert result.tally.clips == {"scan": 1, "detect": 1, "tag": 1} and view(catalog).height == 6


def test_steps_one_by_one_give_the_same_rows(tmp_path: Path, add_clip: AddClip, tiny_detector: Path) -> None:
    """Scan today, detect tomorrow (only kept frames are decoded again), tag later: equal to all at once."""
    stores = [open_catalog(DirStore(tmp_path / name)) for name in ("at_once", "by_one")]
    for catalog in stores:
        add_clip(catalog, "a", [20 + 7 * i for i in range(30)])
        add_clip(catalog, "b", [230 - 7 * i for i in range(25)])
    run(stores[0], options(tiny_detector))
    for step in ("scan", "detect", "tag"):
        run(stores[1], options(tiny_detector, step))
    assert_frame_equal(view(stores[0]), view(stores[1]))
    boxes = [catalog.scan("detections").drop("batch_id").sort("clip_id", "pts", "det_id").collect() for catalog in stores]
    assert boxes[0].height == 12
    assert_frame_equal(*boxes)


def test_rows_that_come_twice_count_once(tmp_path: Path, add_clip: AddClip, tiny_detector: Path) -> None:
    """A worker that died and was run again may give rows twice, also of clips that are complete: the tables do not change."""
    stores = [open_catalog(DirStore(tmp_path / name), create=True) for name in ("once", "twice")]
    for catalog in stores:
        add_clip(catalog, "bright", BRIGHT)
        add_clip(catalog, "dark", DARK)

    def twice(works: Iterable[Work], stages: Sequence[pipeline.Stage]) -> Iterator[Batch]:
        batches = list(pipeline.run_local(works, stages))
        for number, batch in enumerate(batches):
            yield batch
            yield from batches[max(0, number - 1) : number + 1]

    results = [run(stores[0], options(tiny_detector)), run(stores[1], options(tiny_detector), engine=twice)]
    assert results[0].tally.rows == results[1].tally.rows and results[1].tally.clips["scan"] == 2
    assert_frame_equal(view(stores[0]), view(stores[1]))


def test_a_step_without_its_scan_waits(catalog: Catalog, add_clip: AddClip, tiny_detector: Path) -> None:
    """Nothing is done behind the person's back; the clip is counted as waiting."""
    clip_id = add_clip(catalog, "a", BRIGHT)
    result = run(catalog, options(tiny_detector, "detect"))
    assert result.plan.waiting == (clip_id,) and result.tally.clips == {}


def test_a_bad_clip_is_a_failure_and_the_job_goes_on(catalog: Catalog, add_clip: AddClip, tiny_detector: Path) -> None:
    """Text named .mp4 and a truncated file fail once, with their reason; the good clips are done; nobody tries for ever."""
    good = [add_clip(catalog, f"g{i}", [50 + i] * 20) for i in range(3)]
    add_clip(catalog, "text", b"this is a text file, not a video" * 20)
    gone = add_clip(catalog, "gone", [99] * 20)
    catalog.store.delete(catalog.scan("clips").filter(pl.col("clip_id") == gone).collect()["key"][0])
    result = run(catalog, options(tiny_detector))
    assert sorted(name for name, _ in result.tally.failed) == ["gone.mp4", "text.mp4"]
    assert catalog.done("tag") == set(good)
    failures = catalog.scan("failures").collect()
    assert failures.height == 2 and set(failures["step"]) == {"scan"} and all(failures["message"])
    again = run(catalog, options(tiny_detector))
    assert again.tally.failed == [] and len(again.plan.quarantined) == 2
    retried = run(catalog, options(tiny_detector, retry=True), max_failures=1.0)
    assert len(retried.tally.failed) == 2 and catalog.scan("failures").collect().height == 2


def test_too_many_failures_end_the_job_with_what_worked(catalog: Catalog, add_clip: AddClip, tiny_detector: Path) -> None:
    """One good clip of three; half may fail: exit code 1, and the good one is done."""
    good = add_clip(catalog, "good", BRIGHT)
    for name in ("x", "y"):
        add_clip(catalog, name, name.encode() * 100)
    with pytest.raises(JobError, match="2 of 3 clips failed") as raised:
        run(catalog, options(tiny_detector))
    assert raised.value.exit_code == 1 and catalog.done("tag") == {good}


def test_demo_weights_are_refused_outside_the_simulated_world(catalog: Catalog, add_clip: AddClip, tiny_detector: Path) -> None:
    """Refused by name of the cameras; taken where the camera says it is simulated."""
    add_clip(catalog, "a", BRIGHT)
    note = {"sha256": read_weights(tiny_detector).sha256, "simulated_world_only": True}
    tiny_detector.with_name("tiny.onnx.json").write_text(json.dumps(note))
    with pytest.raises(Refused, match="cam1"):
        run(catalog, options(tiny_detector))
    camera = {"camera_id": "cam1", "camera_number": 1, "valid_from_ns": 0, "attributes": json.dumps({"world": "simulated"})}
    catalog.append("cameras", [camera])
    assert run(catalog, options(tiny_detector)).tally.clips["detect"] == 1


@pytest.mark.parametrize(("steps", "says"), [(("detect",), "--without detect"), (("embed",), "--without embed")])
def test_a_step_without_weights_says_what_to_do(steps: tuple[str, ...], says: str) -> None:
    """One line with both ways out."""
    with pytest.raises(UsageError, match=says):
        options(None, *steps)


def test_an_empty_store_says_what_comes_first(catalog: Catalog, tiny_detector: Path) -> None:
    """Nothing was ingested yet."""
    with pytest.raises(UsageError, match="camloop ingest"):
        run(catalog, options(tiny_detector))


def stopping(n_batches: int) -> Callable[[Sequence[Any], Sequence[Any]], Iterator[Batch]]:
    """Return an engine that is stopped by Ctrl-C after some batches."""

    def engine(works: Sequence[Any], stages: Sequence[Any]) -> Iterator[Batch]:
        for number, batch in enumerate(pipeline.run_local(works, stages)):
            if number == n_batches:
                raise KeyboardInterrupt
            yield batch

    return engine


def test_stopped_anywhere_the_same_command_does_the_rest(
    tmp_path: Path, add_clip: AddClip, tiny_detector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each Ctrl-C whole clips are done and none half; the last run gives what an undisturbed one gives."""
    stores = [open_catalog(DirStore(tmp_path / name)) for name in ("calm", "stopped")]
    for catalog in stores:
        for i in range(4):
            add_clip(catalog, f"c{i}", [40 * i + 30] * 45)
    run(stores[0], options(tiny_detector, every_s=0.5))
    monkeypatch.setattr(collect, "CLIPS", 1)
    n_done = []
    for n_batches in (0, 2, 1):
        with pytest.raises(KeyboardInterrupt):
            run(stores[1], options(tiny_detector, every_s=0.5), engine=stopping(n_batches))
        n_done.append(len(stores[1].done("detect")))
        assert stores[1].done("detect") == stores[1].done("scan")
    assert n_done == sorted(n_done) and 0 < n_done[-1] < 4
    result = run(stores[1], options(tiny_detector, every_s=0.5))
    assert result.tally.clips["scan"] == 4 - n_done[-1] and result.tally.clips["tag"] == 4
    assert_frame_equal(view(stores[0]), view(stores[1]))


KILLED = """
import sys
from curate import collect, factors
from curate.detect import read_weights
from curate.plan import Options, Work
from curate.run import curate
from infra.catalog import open_catalog
from infra.settings import Settings
from infra.store import DirStore
from pathlib import Path
collect.CLIPS = 1
catalog = open_catalog(DirStore(Path(sys.argv[1])))
sheet = factors.parse(factors.DEFAULT)
wanted = Options(steps=("scan", "detect"), detector=read_weights(Path(sys.argv[2])), sheet=sheet, every_s=0.1)
curate(catalog, wanted, Settings(), advance=lambda n, note: print(n, flush=True))
"""


def test_killed_by_the_system_the_same_command_does_the_rest(
    tmp_path: Path, catalog: Catalog, add_clip: AddClip, tiny_detector: Path
) -> None:
    """SIGKILL while clips are being committed: no clip half done, none lost, none twice."""
    for i in range(8):
        add_clip(catalog, f"k{i}", [25 * i + 20] * 40)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "store"), str(tiny_detector)], stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == b"1":
            break
    time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    fresh = open_catalog(catalog.store)
    wanted = options(tiny_detector, "scan", "detect", every_s=0.1)
    n_before = len(fresh.done("detect"))
    result = run(fresh, wanted)
    assert len(fresh.done("detect")) == 8 and result.tally.clips["detect"] == 8 - n_before
    frames = fresh.scan("frames").collect()
    assert frames.height == 8 * 40 == frames.unique(["clip_id", "pts"]).height
    assert fresh.scan("detections").collect().unique(["clip_id", "pts", "det_id"]).height == 8 * 40 * 2
