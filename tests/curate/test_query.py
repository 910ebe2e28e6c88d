"""Views, distributions, samples and data sets over a store whose rows are written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from curate import datasets, look_weights, open_catalog
from curate.query import Footage
from infra import keys, shelf
from infra.catalog import Catalog, Done
from infra.errors import ArtefactError, QueryError, UsageError

AddClip = Callable[..., str]
LEVELS = list(range(100, 120))  # 20 frames, 2 s


def scanned(
    catalog: Catalog, clip_id: str, lighting: str | None, *, n_frames: int = 4, p_keep: float = 0.2, persons: int = 0
) -> None:
    """Write what scan, detect and tag would: every fifth frame looked at, some persons in each."""
    pts = [5 * i for i in range(n_frames)]
    frames = [{"clip_id": clip_id, "pts": p, "brightness": 100.0, "p_keep": p_keep} for p in pts]
    gop = {"clip_id": clip_id, "gop_index": 0, "start_pts": 0, "end_pts": 20, "pts": [0], "decoded": True, "p_keep": 1.0}
    catalog.commit({"frames": frames, "gops": [gop]}, [Done("clip", clip_id, "scan", "f", 20, n_frames)])
    found = [
        {"clip_id": clip_id, "pts": p, "det_id": f"{p}-{i}", "source": "d@1", "class_name": "person", "score": 0.3 + 0.3 * i,
         "x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0}
        for p in pts for i in range(persons)
    ]  # fmt: skip
    catalog.commit({"detections": found}, [Done("clip", clip_id, "detect", "f", n_frames, len(found))])
    if lighting:
        tags = [{"clip_id": clip_id, "pts": p, "factor": "lighting", "name": lighting, "source": "lighting@1"} for p in pts]
        catalog.commit({"tags": tags}, [Done("clip", clip_id, "tag", "f", n_frames, len(tags))])


def label(catalog: Catalog, clip_id: str, name: str, start: int = 0, end: int = 20) -> None:
    """Write a person's class label."""
    row: dict[str, Any] = {
        "label_id": keys.derived_id(clip_id, name, start), "clip_id": clip_id, "start_pts": start, "end_pts": end, "name": name,
        "annotator": "anna", "created_ns": 1,
    }  # fmt: skip
    catalog.append("labels", [row])


@pytest.fixture
def footage(catalog: Catalog, add_clip: AddClip) -> Footage:
    """Return a store of four clips: two by day without people, one by night with two in each frame, one not scanned."""
    first = add_clip(catalog, "a", LEVELS)
    second = add_clip(catalog, "b", LEVELS[::-1])
    third = add_clip(catalog, "c", [30, *LEVELS[1:]], camera_id="cam2")
    add_clip(catalog, "d", [31, *LEVELS[1:]], camera_id="cam2")
    scanned(catalog, first, "day")
    scanned(catalog, second, "day", p_keep=0.1)
    scanned(catalog, third, "night", persons=2)
    for clip_id, name in ((first, "calm"), (second, "calm"), (third, "fight")):
        label(catalog, clip_id, name)
    return open_catalog(catalog.store)


def test_expressions_narrow_a_view(footage: Footage) -> None:
    """Twelve frames were looked at; four are at night and have people; a view with two conditions has both."""
    assert footage.frames.count() == 12
    night = footage.frames.where("lighting = 'night'").where("n_person > 0 or n_person is null")
    assert night.count() == 4 and night.text == "(lighting = 'night') and (n_person > 0 or n_person is null)"
    assert footage.frames.where("n_person = 0").count() == 8
    assert footage.clips.count() == 4
    assert footage.frames.counting(0.5).where("n_person = 1").count() == 4  # of two persons one scores .3, one .6


def test_an_unknown_column_offers_near_names(footage: Footage) -> None:
    """The person meant n_person."""
    with pytest.raises(QueryError, match="n_person"):
        footage.frames.where("n_persons > 0").count()
    with pytest.raises(QueryError, match="camera_id"):
        footage.frames.distribution(by=["camera"])


def test_a_distribution_gives_rows_and_footage(footage: Footage) -> None:
    """A frame of .1 s looked at with probability .1 stands for 1 s, with .2 for half a second: 2 + 4 s of day, 2 s of night."""
    made = footage.frames.distribution(by=["lighting"])
    assert made.table.to_dicts() == [
        {"lighting": "day", "rows": 8, "share_rows": pytest.approx(2 / 3), "footage_s": pytest.approx(6.0),
         "share_footage": pytest.approx(0.75)},
        {"lighting": "night", "rows": 4, "share_rows": pytest.approx(1 / 3), "footage_s": pytest.approx(2.0),
         "share_footage": pytest.approx(0.25)},
    ]  # fmt: skip
    assert made.denominator_s == pytest.approx(6.0)  # three clips of 2 s were scanned, the fourth was not
    assert "12 rows" in repr(made) and "<table" in made._repr_html_()


def cascaded(catalog: Catalog, clip_id: str, audit: float) -> None:
    """Write what a cascade would, 20 frames all kept: 4 passed, 2 of them with a person; of 16 others 4 were looked at."""
    frames = [{"clip_id": clip_id, "pts": pts, "p_keep": 1.0} for pts in range(20)]
    gop = {"clip_id": clip_id, "gop_index": 0, "start_pts": 0, "end_pts": 20, "pts": [0], "decoded": True, "p_keep": 1.0}
    catalog.commit({"frames": frames, "gops": [gop]}, [Done("clip", clip_id, "scan", "f", 20, 20)])
    same = {"clip_id": clip_id, "step": "detect", "stage": "fine", "number": 0, "source": "d@1"}
    looks = [same | {"pts": None, "p_look": audit, "n_in": 20, "n_passed": 4}]
    looks += [same | {"pts": pts, "p_look": 1.0, "passed": True} for pts in range(4)]
    looks += [same | {"pts": pts, "p_look": audit, "passed": False} for pts in range(4, 8) if audit]
    found = [
        {"clip_id": clip_id, "pts": pts, "det_id": f"{pts}", "source": "d@1", "class_name": "person", "score": 0.9, "x1": 0.0,
         "y1": 0.0, "x2": 1.0, "y2": 1.0}
        for pts in range(2)
    ]  # fmt: skip
    catalog.commit({"detections": found, "looks": looks}, [Done("clip", clip_id, "detect", "f", 20, 2)])


@pytest.mark.parametrize(("audit", "shares"), [(0.25, {1: 0.1, 0: 0.9, None: 0.0}), (0.0, {1: 0.1, 0: 0.1, None: 0.8})])
def test_what_a_cascade_saw_counts_by_its_looks(
    catalog: Catalog, add_clip: AddClip, audit: float, shares: dict[int | None, float]
) -> None:
    """A person in a tenth of the frames is a tenth of the footage, however few others were looked at; without an audit the
    others stay unknown. What does not hang on the looks is weighed as ever."""
    cascaded(catalog, add_clip(catalog, "a", LEVELS), audit)
    frames = open_catalog(catalog.store).frames
    made = frames.distribution(by=["n_person"])
    assert dict(made.table.select("n_person", "share_footage").rows()) == {n: pytest.approx(s) for n, s in shares.items()}
    assert made.footage_s == pytest.approx(made.denominator_s)
    assert frames.where("n_person > 0").distribution(by=["camera_id"]).footage_s == pytest.approx(0.2)
    assert frames.where("n_person = 0").distribution(by=["camera_id"]).footage_s == pytest.approx(2 * shares[0])
    assert frames.distribution(by=["camera_id"]).table["footage_s"].to_list() == [pytest.approx(2.0)]
    assert frames.to_polars()["footage_s"].to_list() == [pytest.approx(0.1)] * 20


def test_what_hangs_on_the_judge_is_derived(catalog: Catalog, add_clip: AddClip) -> None:
    """Classes do, counts of a file, a camera's attribute and a tag's factor that are called n_... do not."""
    cascaded(catalog, add_clip(catalog, "a", LEVELS), 0.25)
    camera = {"camera_id": "cam1", "camera_number": 1, "valid_from_ns": 0, "created_ns": 1, "attributes": '{"n_lanes": "2"}'}
    catalog.append("cameras", [camera])
    tag = {"clip_id": catalog.scan("clips", ["clip_id"]).collect()["clip_id"][0], "pts": 0, "factor": "n_lamps", "name": "2"}
    catalog.commit({"tags": [tag | {"source": "prompts@1"}]}, [Done("clip", tag["clip_id"], "tag", "f", 1, 1)])
    columns = ["n_failures", "n_lanes", "n_lamps", "hour", "n_person", "n_kite", "p_look"]
    assert look_weights.judged(catalog, [*catalog.scan("clips").collect_schema(), *columns]) == {"n_person", "n_kite", "p_look"}
    assert open_catalog(catalog.store).frames.distribution(by=["n_lanes"]).table["footage_s"].to_list() == [pytest.approx(2.0)]


def test_clips_and_intervals_stand_for_their_own_length(footage: Footage) -> None:
    """A clip is 2 s, scanned or not; an interval has the columns of the frame nearest its centre."""
    clips = footage.clips.distribution(by=["camera_id"]).table
    assert dict(clips.select("camera_id", "footage_s").iter_rows()) == {"cam1": pytest.approx(4.0), "cam2": pytest.approx(4.0)}
    intervals = footage.intervals.to_polars()
    assert intervals.select("label", "lighting", "camera_id").sort("label").rows() == [
        ("calm", "day", "cam1"), ("calm", "day", "cam1"), ("fight", "night", "cam2"),
    ]  # fmt: skip


def test_a_retracted_label_is_no_interval(footage: Footage) -> None:
    """What a person took back is not offered again."""
    row = footage.catalog.scan("labels").filter(pl.col("name") == "fight").collect().to_dicts()[0]
    taken = {name: row[name] for name in row if name not in ("batch_id", "schema_version")}
    footage.catalog.append("labels", [{**taken, "label_id": "x", "retracts": row["label_id"]}])
    assert footage.intervals.to_polars()["label"].to_list() == ["calm", "calm"]


def test_a_sample_is_frozen_with_what_it_could_not_meet(footage: Footage) -> None:
    """Six of each lighting were asked for, four nights exist; the same seed gives the same bytes; it is read back by name."""
    drawn = footage.frames.sample(12, by=["lighting"], seed=3, name="even")
    cells = [row.columns["lighting"] for row in drawn.rows]
    assert (cells.count("day"), cells.count("night")) == (6, 4)
    assert [(short.cell, short.wanted, short.found) for short in drawn.shortages] == [("lighting=night", 6, 4)]
    assert {row.p_select for row in drawn.rows if row.columns["lighting"] == "day"} == {6 / 8}
    assert all(row.end_pts == row.start_pts + 1 for row in drawn.rows)
    assert drawn.to_bytes() == footage.frames.sample(12, by=["lighting"], seed=3, name="even").to_bytes()
    selection_id = datasets.save(footage.catalog, drawn)
    assert datasets.save(footage.catalog, drawn) == selection_id and datasets.saved(footage.catalog).height == 1
    assert datasets.load(footage.catalog, "even") == datasets.load(footage.catalog, selection_id) == drawn
    with pytest.raises(UsageError, match="near: even"):
        datasets.load(footage.catalog, "evn")


def test_a_split_keeps_recordings_whole_and_refuses_to_leak(catalog: Catalog, add_clip: AddClip) -> None:
    """Two clips of one recording stay together; split by clip they would come apart, which is refused, or kept and said."""
    for i in range(6):
        clip_id = add_clip(catalog, f"s{i}", [i * 20 + 5] * 10, recording_id=f"r{i // 2}")
        label(catalog, clip_id, "x", 0, 10)
    view = open_catalog(catalog.store).intervals
    thirds = {"train": 1 / 3, "val": 1 / 3, "test": 1 / 3}
    drawn = view.sample(None, split=thirds, split_by="recording_id")
    assert {part: len(drawn.split(part)) for part in thirds} == {"train": 2, "val": 2, "test": 2}
    with pytest.raises(QueryError, match="would leak: recording_id 'r0' stands in"):
        view.sample(None, split=thirds, split_by="clip_id", seed=1)
    forced = view.sample(None, split=thirds, split_by="clip_id", seed=1, force_leak=True)
    assert forced.extra["leaks"]
    with pytest.raises(QueryError, match="source_group is unknown in 6 of 6"):
        view.sample(None, split=thirds, split_by="source_group")
    with pytest.raises(QueryError, match="needs both"):
        view.sample(None, split=thirds)


def test_a_data_set_is_frozen_under_its_name(footage: Footage) -> None:
    """The same again is a no-op; other content is refused; a selection without splits is no data set; truncation is seen."""
    catalog = footage.catalog
    split = footage.intervals.sample(None, split={"train": 0.5, "test": 0.5}, split_by="recording_id", name="s")
    key = datasets.export(catalog, "first", split)
    assert datasets.export(catalog, "first", split) == key and shelf.dataset_names(catalog.store) == ["first"]
    assert shelf.read_dataset(catalog.store, "first") == split
    other = footage.intervals.sample(None, split={"train": 0.5, "test": 0.5}, split_by="recording_id", name="other")
    with pytest.raises(UsageError, match="frozen"):
        datasets.export(catalog, "first", other)
    with pytest.raises(UsageError, match="--split-by"):
        datasets.export(catalog, "second", footage.intervals.sample(None, name="plain"))
    with pytest.raises(UsageError, match="near: first"):
        shelf.read_dataset(catalog.store, "frist")
    catalog.store.put(key, catalog.store.get(key)[:-40])
    with pytest.raises((ArtefactError, ValueError)):
        shelf.read_dataset(catalog.store, "first")


def test_the_vault_is_left_out_unless_asked_for(catalog: Catalog, add_clip: AddClip) -> None:
    """Below 40 recordings there is none, and it is said; from 40 on the same ones are missing in every view."""
    for i in range(41):
        add_clip(catalog, f"v{i}", bytes([i]) * 50, start_ns=i)
        if i == 38:
            assert "40 needed" in str(open_catalog(catalog.store).vault_state())
            assert open_catalog(catalog.store).clips.count() == 39
    closed, opened = open_catalog(catalog.store), open_catalog(catalog.store, vault=True)
    held = closed.vault_state().held
    assert 1 <= len(held) <= 10 and opened.clips.count() == 41
    assert closed.clips.count() == 41 - len(held)
    assert not held & set(closed.clips.to_polars()["recording_id"])
    assert f"{len(held)} of 41" in repr(closed)


def test_objects_show_themselves(footage: Footage) -> None:
    """What a notebook prints says what there is; text of the query is escaped in HTML."""
    assert "12 frames" in repr(footage) and "4 clips" in repr(footage)
    view = footage.frames.where("brightness < 200")
    assert repr(view) == "<12 frames where brightness < 200>"
    assert "brightness &lt; 200" in view._repr_html_()


def test_two_people_who_agree_are_one_interval(footage: Footage) -> None:
    """The same words about the same time make one row that names both; a label with a box is about a part, not the frame."""
    before = footage.intervals.to_polars()
    clip_id = before["clip_id"][0]
    span = {"clip_id": clip_id, "start_pts": 0, "end_pts": 20, "name": before["label"][0], "annotator": "ben", "created_ns": 2}
    boxed = {**span, "label_id": "boxed", "start_pts": 5, "x1": 0.0, "y1": 0.0, "x2": 9.0, "y2": 9.0}
    footage.catalog.append("labels", [{**span, "label_id": "second"}, boxed])
    after = footage.intervals.to_polars()
    assert after.height == before.height
    assert after.filter(pl.col("clip_id") == clip_id)["annotator"].to_list() == ["anna, ben"]
