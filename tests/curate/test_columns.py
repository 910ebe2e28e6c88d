"""Each step that looks at pixels adds the columns that it declares, uses up its pixels, and passes end rows by."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from curate import cascade, detect, factors, pipeline
from curate.detect import Batch, Weights, read_weights
from curate.plan import Options
from infra.settings import Settings


def check_columns(step: ModuleType, before: Batch, after: Batch, pixels: str) -> None:
    """Assert that exactly the declared columns were read, added and used up."""
    assert set(step.READS) <= set(before)
    assert set(after) == (set(before) - {pixels}) | set(step.ADDS)


@pytest.fixture
def batch() -> Batch:
    """Return two frames of one clip and its end row."""
    ends = np.empty(3, dtype=object)
    ends[:] = [b"", b"", b'{"n_frames": 2}']
    pixels = np.full((3, 64, 64, 3), 200, np.uint8)
    place = {"width_px": np.full(3, 64), "height_px": np.full(3, 64), "scale": np.ones(3)}
    pads = {"pad_x": np.zeros(3), "pad_y": np.zeros(3)}
    return {"clip_id": np.array(["c"] * 3), "pts": np.array([0, 5, 0]), "end": ends, "detect_rgb": pixels, **place, **pads}


def stages(weights: Weights, store: Path) -> list[pipeline.Stage]:
    """Return the table for scan and detect."""
    options = Options(steps=("scan", "detect"), detector=weights, sheet=factors.parse(factors.DEFAULT))
    seen = pipeline.looks(options, ("scan", "detect"))
    return pipeline.table(options, seen, Settings(), str(store), scans=True, cpus=4)


def test_detect_adds_what_it_declares(tiny_detector: Path, batch: Batch, tmp_path: Path) -> None:
    """Boxes for the two frames, nothing for the end row."""
    after = stages(read_weights(tiny_detector), tmp_path)[1].make()(batch)
    assert (after.pop("detect_s") > 0).all()
    check_columns(detect, batch, after, "detect_rgb")
    assert [len(packed) // 24 for packed in after["detections"]] == [2, 2, 0]


def test_the_table_says_how_each_step_runs(tiny_detector: Path, tmp_path: Path) -> None:
    """Two cores hold one worker of each; more cores may have more."""
    decode, found = stages(read_weights(tiny_detector), tmp_path)
    assert (decode.step, decode.batch_size, found.step, found.workers) == ("decode", 1, "detect", (1, 2))
    assert decode.num_cpus + found.num_cpus <= 2


def test_a_long_cascade_fits_a_small_machine(tiny_detector: Path, tmp_path: Path) -> None:
    """One worker of each of four stages on two cores: none waits for cores that the others hold."""
    look = cascade.detector(read_weights(tiny_detector))
    row = [dataclasses.replace(look, name=f"s{number}", number=number) for number in range(4)]
    options = Options(steps=("scan",), sheet=factors.parse(factors.DEFAULT))
    made = pipeline.table(options, row, Settings(), str(tmp_path), scans=True, cpus=2)
    assert [stage.step for stage in made] == ["decode", "s0", "s1", "s2", "s3"]
    assert sum(stage.num_cpus for stage in made) <= 2 and min(stage.num_cpus for stage in made) > 0


def test_batches_are_cut_across_clips() -> None:
    """Parts of 3, 1 and 4 rows become 2, 2, 2, 2 in the same order."""
    parts = [{"end": np.arange(start, stop)} for start, stop in ((0, 3), (3, 4), (4, 8))]
    assert [batch["end"].tolist() for batch in pipeline.rebatched(iter(parts), 2)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [batch["end"].tolist() for batch in pipeline.rebatched(iter(parts), 5)] == [[0, 1, 2, 3, 4], [5, 6, 7]]
