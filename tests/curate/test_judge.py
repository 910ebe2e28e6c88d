"""Where a cascade curated, only its last detector speaks: in layers, in boxes on pages, as in the columns n_<class>."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate import cascade, events, events_page, factors, layers, run_page
from curate.plan import Options
from curate.query import Footage, open_catalog
from curate.run import curate
from infra import views
from infra.catalog import Catalog, Done
from infra.errors import QueryError
from infra.settings import Settings

AddClip = Callable[..., str]
CHEAP, FINE = "cheap@1", "fine@2"
STAGES = """
[[stage]]
name = "cheap"
step = "detect"
weights = "cheap.onnx"

[[stage]]
name = "fine"
step = "detect"
weights = "fine.onnx"
when = "n_person > 0"
min_score = 0.3
"""


def written(catalog: Catalog, add_clip: AddClip) -> str:
    """Write what a cascade would: at 0, 5, 10, 15 cheap saw a person and a car; fine looked at all and saw one at 10 only."""
    clip_id = add_clip(catalog, "a", [40] * 20)
    gop = {"clip_id": clip_id, "gop_index": 0, "start_pts": 0, "end_pts": 20, "pts": [0], "decoded": True, "p_keep": 1.0}
    frames = [{"clip_id": clip_id, "pts": pts, "brightness": 40.0, "p_keep": 1.0} for pts in (0, 5, 10, 15)]
    catalog.commit({"frames": frames, "gops": [gop]}, [Done("clip", clip_id, "scan", "f", 20, 4)])
    box = {"clip_id": clip_id, "x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0}
    seen = [(CHEAP, name, pts) for pts in (0, 5, 10, 15) for name in ("person", "car")] + [(FINE, "person", 10)]
    boxes = [
        {**box, "det_id": str(i), "source": source, "class_name": name, "pts": pts, "score": 0.9 if source == CHEAP else 0.6}
        for i, (source, name, pts) in enumerate(seen)
    ]
    looks: list[dict[str, Any]] = [
        {"clip_id": clip_id, "pts": pts, "step": "detect", "number": number, "stage": source[:-2], "source": source,
         "p_look": 1.0, "passed": True}
        for number, source in enumerate((CHEAP, FINE)) for pts in (None, 0, 5, 10, 15)
    ]  # fmt: skip
    catalog.commit({"detections": boxes, "looks": looks}, [Done("clip", clip_id, "detect", "e" * 32, 4, len(boxes))])
    return clip_id


def test_a_layer_of_a_class_is_what_the_judge_says(catalog: Catalog, add_clip: AddClip) -> None:
    """The cheap detector saw a person everywhere with .9: the layer has the judge's one, and no class of the cheap one."""
    clip_id = written(catalog, add_clip)
    assert set(views.detections(catalog).collect()["source"]) == {FINE}
    person = layers.layer("person", least_s=0)
    found = events.find(catalog, person)
    assert found.rows.select("start_pts", "end_pts").rows() == [(10, 15)]
    assert found.rows["peak"].to_list() == [pytest.approx(0.6)]
    with pytest.raises(QueryError, match="no detection of class 'car'"):
        events.find(catalog, layers.layer("car"))
    shown = events_page._boxes(catalog, person, [(clip_id, pts) for pts in (5, 10)])
    assert {frame: [box.name for box in boxes] for frame, boxes in shown.items()} == {(clip_id, 10): ["60%"]}


@pytest.fixture
def curated(tmp_path: Path, catalog: Catalog, add_clip: AddClip, make_detector: Callable[..., Path]) -> Footage:
    """Return a store that a cascade of two detectors curated; the first also knows cars, the second birds."""
    make_detector(tmp_path / "cheap.onnx", size_px=32)
    make_detector(tmp_path / "fine.onnx", names=("person", "bird"))
    (tmp_path / "cascade.toml").write_text(STAGES)
    add_clip(catalog, "a", [160 + i for i in range(20)])
    found = cascade.read(tmp_path / "cascade.toml")
    steps = Options(steps=("scan", "detect"), cascade=found, sheet=factors.parse(factors.DEFAULT), every_s=0.5)
    curate(catalog, steps, Settings())
    return open_catalog(catalog.store)


def test_the_page_of_a_run_shows_the_boxes_that_count(curated: Footage) -> None:
    """Each picture has the judge's person and bird, no car, and no second person."""
    drawn = run_page._drawn(curated.frames.where("n_person > 0").lazy())
    _, kept, *others = run_page._examples(curated)
    assert "Kept: a person was found" in kept and kept.count("<image ") == drawn.height == 4
    for shown in (kept, *others):
        assert shown.count("person 0.") == shown.count("bird 0.") == shown.count("<image ") > 0 and "car 0." not in shown
    assert curated.catalog.scan("detections").filter(pl.col("class_name") == "car").collect().height == 4
