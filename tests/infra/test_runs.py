"""Each writing command leaves one row, however it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.catalog import open_catalog
from infra.clock import FakeClock
from infra.errors import JobError
from infra.runs import recorded
from infra.store import DirStore


def test_a_run_is_recorded_however_it_ends(tmp_path: Path) -> None:
    """Well, by an error of ours, by Ctrl-C, by a bug: one row each, with its exit code; the exception goes on."""
    catalog = open_catalog(DirStore(tmp_path))
    clock = FakeClock()
    with recorded(catalog, "curate", {"only": ["scan"], "weights": Path("w/yolo.onnx"), "run": print}, clock=clock) as run:
        run.inputs["snapshot"] = {"clips": 3}
        run.outputs["n_clips"] = 2
        clock.advance_s(5)
    for error in (JobError("2 of 3 failed"), KeyboardInterrupt(), ZeroDivisionError("a bug")):
        with pytest.raises(type(error)), recorded(catalog, "curate", {}):
            raise error
    rows = catalog.scan("runs").sort("start_ns").collect()
    assert rows["exit_code"].to_list() == [0, 1, 130, 1]
    assert rows["message"].to_list() == ["", "2 of 3 failed", "stopped", "ZeroDivisionError: a bug"]
    first = rows.row(0, named=True)
    assert json.loads(first["arguments"]) == {"only": ["scan"], "weights": "w/yolo.onnx"}
    assert json.loads(first["outputs"]) == {"n_clips": 2}
    assert first["end_ns"] - first["start_ns"] == 5_000_000_000 and rows["run_id"].n_unique() == 4
