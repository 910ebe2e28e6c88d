"""The commands curate, query, sample and dataset as people and programs call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import keys
from infra.catalog import Catalog, open_catalog
from infra.cli import main
from infra.store import DirStore

AddClip = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path, catalog: Catalog, add_clip: AddClip) -> str:
    """Return the URL of a store with eight labelled clips of four recordings."""
    for i in range(8):
        clip_id = add_clip(catalog, f"c{i}", [20 + 25 * i] * 20, recording_id=f"r{i // 2}", camera_id=f"cam{i % 2}")
        row: dict[str, Any] = {
            "label_id": keys.derived_id(clip_id), "clip_id": clip_id, "start_pts": 0, "end_pts": 20, "annotator": "anna",
            "name": "fight" if i < 4 else "calm", "created_ns": 1,
        }  # fmt: skip
        catalog.append("labels", [row])
    return str(tmp_path / "store")


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, Any, str]:
    """Run a command with --json; return exit code, its document and what stood on standard error."""
    code = main([*argv, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out.strip() else None, err


def test_from_clips_to_a_data_set(store: str, tiny_detector: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """curate, query, sample with a split, dataset; each writing command leaves a row of runs; a rerun does nothing."""
    at = ("--store", store)
    curating = ("curate", "--local", "--without", "embed", "--weights", str(tiny_detector), *at)
    code, document, err = call(capsys, *curating)
    assert code == 0 and document["clips"] == {"scan": 8, "detect": 8, "tag": 8} and "unknown" in err
    assert call(capsys, *curating)[1]["clips"] == {}
    code, document, _ = call(capsys, "query", "n_person > 0", "--by", "camera_id,lighting", "--list", "2", *at)
    assert (
        code == 0 and document["count"] == sum(row["rows"] for row in document["distribution"]) and len(document["rows"]) == 2
    )
    csv = tmp_path / "rows.csv"
    call(capsys, "query", "--csv", str(csv), *at)
    assert len(csv.read_text().splitlines()) == 1 + 16
    sampling = ("sample", "fights", "all", "--split", "train=.5,val=.25,test=.25", "--split-by", "recording_id", *at)
    code, document, _ = call(capsys, *sampling)
    assert code == 0 and document["splits"] == {"train": 4, "val": 2, "test": 2}
    again = call(capsys, *sampling)[1]
    assert again["n_rows"] == 8
    code, document, _ = call(capsys, "dataset", "fights-1", "--selection", document["selection_id"], *at)
    assert code == 0 and document["key"] == "datasets/fights-1.jsonl"
    assert [one["name"] for one in call(capsys, "dataset", "list", *at)[1]] == ["fights-1"]
    assert call(capsys, "dataset", "show", "fights-1", *at)[1]["splits"] == {"train": 4, "val": 2, "test": 2}
    runs = open_catalog(DirStore(Path(store))).scan("runs").collect()
    assert sorted(set(runs["command"])) == ["curate", "dataset", "sample"] and set(runs["exit_code"]) == {0}


def test_people_get_tables(store: str, tiny_detector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json the same commands print words: counts, shares, shortages."""
    at = ("--store", store)
    assert main(["curate", "--local", "--without", "embed", "--weights", str(tiny_detector), *at]) == 0
    assert "to do: scan 8, detect 8, tag 8" in capsys.readouterr().out
    assert main(["query", "--by", "lighting", *at]) == 0
    out = capsys.readouterr().out
    assert "share of footage" in out and "infrared" in out and "no vault" in out
    assert main(["sample", "even", "20", "--by", "camera_id", "--unit", "frame", *at]) == 0
    assert "short: camera_id=cam0: wanted 10, found 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["curate", "--local"], 2, "--without detect"),
        (["curate", "--only", "scan", "--without", "tag"], 2, "exclude each other"),
        (["curate", "--local", "--weights", "absent.onnx", "--without", "embed"], 2, "no weights at absent.onnx"),
        (["query", "n_persn > 0"], 2, "n_person"),
        (["query", "n_person >"], 2, "where-expression"),
        (["sample", "x", "some"], 2, "legal: a number of rows, or all"),
        (["sample", "x", "all", "--split", "train=.5,test=.5", "--split-by", "clip_id"], 2, "would leak"),
        (["sample", "x", "all", "--where", "camera_id = 'nobody'"], 2, "nothing to draw from"),
        (["sample", "x", "4", "--unit", "clip", "--by", "camera_id", "--shares", "cam0=.7,cam1=.6"], 2, "at most 1"),
        (["dataset", "x", "--selection", "nothing"], 2, "no selection 'nothing'"),
        (["dataset", "x"], 2, "no data set 'x'"),
    ],
)
def test_wrong_use_is_one_line(store: str, argv: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one line with the value and the way out, never a traceback."""
    assert main([*argv, "--store", store]) == code
    err = capsys.readouterr().err
    assert says in err and len(err.strip().splitlines()) == 1


def test_a_missing_store_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is made where nothing was."""
    assert main(["query", "--store", str(tmp_path / "nowhere")]) == 1
    assert "nothing was ingested there" in capsys.readouterr().err and not (tmp_path / "nowhere").exists()
