"""What filters of a store lost: estimates from tables whose truth is known, slices, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from curate import cascade, factors, layers, look_weights, losses
from curate.plan import Options
from curate.query import Footage, open_catalog
from curate.run import curate
from infra import keys
from infra import losses as floor
from infra.catalog import Catalog, Done
from infra.cli import main
from infra.errors import QueryError
from infra.settings import Settings

AddClip = Callable[..., str]


def gated(catalog: Catalog, add_clip: AddClip, name: str, missed: int, camera_id: str) -> None:
    """Add a clip of 200 GOPs of a second: 40 decoded and moving, 160 dropped with p = .25, of which `missed` would move."""
    clip_id = add_clip(catalog, name, [10, 20 + missed], camera_id=camera_id)
    rows = []
    for number, start in enumerate(range(0, 2000, 10)):
        kept, moves = number < 40, number < 40 + missed
        looked = kept or keys.uniform(clip_id, number) < 0.25
        rows.append(
            {
                "clip_id": clip_id, "gop_index": number, "start_pts": start, "end_pts": start + 10, "decoded": looked,
                "motion": [None, 0.3 if moves else 0.001] if looked else None, "p_keep": 1.0 if kept else 0.25,
            }
        )  # fmt: skip
    catalog.commit({"gops": rows}, [Done("clip", clip_id, "scan", "f", 200, 200)])


def test_the_packet_gate_by_camera(catalog: Catalog, add_clip: AddClip) -> None:
    """Counts are those of the rows; the interval holds the truth; a camera whose gate was not used is left out."""
    gated(catalog, add_clip, "a", 0, "cam1")
    gated(catalog, add_clip, "b", 60, "cam2")
    plain = add_clip(catalog, "c", [5, 6], camera_id="cam3")
    gop = {"clip_id": plain, "gop_index": 0, "start_pts": 0, "end_pts": 2, "decoded": True, "motion": [0.5], "p_keep": 1.0}
    catalog.commit({"gops": [gop]}, [Done("clip", plain, "scan", "f", 1, 1)])
    [whole] = losses.losses(open_catalog(catalog.store))
    assert (whole.filter, whole.unit, whole.audit.n_in, whole.audit.n_kept) == (losses.GATE, "gop", 400, 80)
    assert whole.audit.low <= 80 / 140 <= whole.audit.high and whole.audit.recall is not None
    first, second = losses.losses(open_catalog(catalog.store), by=["camera_id"])
    assert (first.group, second.group) == (("cam1",), ("cam2",))
    assert first.audit.n_found == 0 and first.audit.recall == 1 and first.audit.low > 40 / (40 + 3 * 160 / 30)
    assert second.audit.low <= 0.4 <= second.audit.high and second.audit.high < 0.7
    [sliced] = losses.losses(open_catalog(catalog.store), slice_text="camera_id = 'cam2'")
    assert sliced.audit == second.audit
    assert losses.losses(open_catalog(catalog.store), moving=0.5)[0].audit.recall is None
    assert second.needed[0.95] is None and (first.needed[0.95] or 0) > 0
    assert losses.table([first, second], ["camera_id"])["camera_id"].to_list() == ["cam1", "cam2"]


def test_a_clip_that_the_gate_decoded_whole_is_not_counted_and_this_is_said(
    catalog: Catalog, add_clip: AddClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its 30 moving GOPs, all kept, would raise the recall; nothing in the tables tells it from a scan without a gate."""
    gated(catalog, add_clip, "a", 60, "cam1")
    assert main(["query", "--audit", "--store", str(tmp_path / "store")]) == 0
    before = capsys.readouterr().out
    whole = add_clip(catalog, "b", [5, 6], camera_id="cam2")
    gop = {"clip_id": whole, "decoded": True, "motion": [0.5], "p_keep": 1.0}
    rows = [gop | {"gop_index": i, "start_pts": i, "end_pts": i + 1} for i in range(30)]
    catalog.commit({"gops": rows}, [Done("clip", whole, "scan", "f", 30, 30)])
    assert main(["query", "--audit", "--store", str(tmp_path / "store")]) == 0
    after = capsys.readouterr().out
    assert after == before and "recall over all footage is higher" in " ".join(after.split())
    assert "of clips in which it dropped something" in " ".join(after.split())


STAGES = """
[[stage]]
name = "cheap"
step = "detect"
weights = "cheap.onnx"
when = "brightness > 150"
audit = 0.5

[[stage]]
name = "fine"
step = "detect"
weights = "fine.onnx"
when = "n_person > 0"
min_score = 0.3
audit = 1
"""


@pytest.fixture
def curated(tmp_path: Path, catalog: Catalog, add_clip: AddClip, make_detector: Callable[..., Path]) -> Footage:
    """Return a store in which a cascade that drops half of the persons has run: they are where it is brighter than about 75."""
    for name, size_px in (("cheap.onnx", 32), ("fine.onnx", 64)):
        make_detector(tmp_path / name, size_px=size_px)
    (tmp_path / "cascade.toml").write_text(STAGES)
    for name in ("a", "b"):
        add_clip(catalog, name, [(8 if name == "a" else 6) * i for i in range(30)], camera_id=f"cam_{name}")
    found = cascade.read(tmp_path / "cascade.toml")
    wanted = Options(steps=("scan", "detect"), cascade=found, sheet=factors.parse(factors.DEFAULT), every_s=0.1)
    curate(catalog, wanted, Settings())
    return open_catalog(catalog.store)


def test_each_stage_and_the_whole_cascade(curated: Footage) -> None:
    """The first condition loses what an audit of half finds; the second, audited at every frame, is known exactly."""
    cheap, fine, whole = losses.losses(curated)
    assert [loss.filter for loss in (cheap, fine, whole)] == ["cheap", "fine", losses.WHOLE]
    frames = curated.frames.to_polars()
    truth = frames.filter(pl.col("brightness") > 150).height / frames.filter(pl.col("brightness") > 73).height
    assert cheap.audit.n_in == 60 and cheap.audit.n_kept == frames.filter(pl.col("brightness") > 150).height
    assert 0 < cheap.audit.n_found < cheap.audit.n_looked < cheap.audit.n_dropped
    assert cheap.audit.low <= truth <= cheap.audit.high and whole.audit.low <= truth <= whole.audit.high
    assert fine.audit.n_in == cheap.audit.n_kept and (fine.audit.recall, fine.audit.low, fine.audit.high) == (1, 1, 1)
    by_camera = losses.losses(curated, by=["camera_id"])
    assert [loss.group for loss in by_camera] == [("cam_a",), ("cam_b",)] * 3
    assert sum(loss.audit.n_in for loss in by_camera[:2]) == 60


def test_a_slice_by_what_the_filters_decide_is_refused(curated: Footage) -> None:
    """n_person is unknown of what was dropped: such a slice would show a recall of 1."""
    with pytest.raises(QueryError, match="n_person: it is known only of frames"):
        losses.losses(curated, slice_text="n_person > 0")
    with pytest.raises(QueryError, match="no column 'n_persons'"):
        losses.losses(curated, positive="n_persons > 0")


def test_a_slice_by_what_people_said_of_some_frames_is_refused(curated: Footage, catalog: Catalog) -> None:
    """Labels of one clip of two: who was looked at is who passed; with a label on every frame it is a slice like others."""
    clips = sorted(catalog.scan("clips").collect()["clip_id"])
    label = {"name": "Person", "annotator": "p", "created_ns": 1}
    catalog.append("labels", [label | {"label_id": "1" * 32, "clip_id": clips[0]}])
    footage = open_catalog(catalog.store)
    for what in ({"slice_text": "label = 'Person'"}, {"slice_text": "label is null"}, {"by": ["label"]}):
        with pytest.raises(QueryError, match="label is known of 30 of 60 frames only"):
            losses.losses(footage, **what)
    catalog.append("labels", [label | {"label_id": "2" * 32, "clip_id": clips[1]}])
    whole = losses.losses(footage)
    labelled = losses.losses(open_catalog(catalog.store), slice_text="label = 'Person'")
    assert [loss.audit for loss in labelled] == [loss.audit for loss in whole]


def test_a_factor_said_of_some_gated_clips_makes_no_slice(catalog: Catalog, add_clip: AddClip) -> None:
    """The clip whose weather somebody named is the one of which something was seen: by clips it is refused, too."""
    gated(catalog, add_clip, "a", 0, "cam1")
    gated(catalog, add_clip, "b", 60, "cam2")
    first, second = sorted(catalog.scan("clips").collect()["clip_id"])
    for clip_id in (first, second):
        frame = {"clip_id": clip_id, "pts": 0, "brightness": 9.0, "p_keep": 1.0}
        catalog.commit({"frames": [frame]}, [Done("clip", clip_id, "tag", "f", 1, 1)])
    label = {"factor": "weather", "name": "rain", "annotator": "p", "created_ns": 1}
    catalog.append("labels", [label | {"label_id": "1" * 32, "clip_id": first}])
    with pytest.raises(QueryError, match="weather is known of 1 of 2 frames only"):
        losses.losses(open_catalog(catalog.store), slice_text="weather = 'rain'")
    catalog.append("labels", [label | {"label_id": "2" * 32, "clip_id": second}])
    [loss] = losses.losses(open_catalog(catalog.store), slice_text="weather = 'rain'")
    assert loss.audit.n_in == 400


def test_what_two_modules_say_of_one_thing_is_the_same(curated: Footage, catalog: Catalog) -> None:
    """A GOP moves where a layer begins; a column that hangs on the judge's looks is one that the filters decide."""
    assert layers.ON[2] == losses.MOVING
    clip_id = catalog.scan("clips").collect()["clip_id"][0]
    tags = [
        {"clip_id": clip_id, "pts": 0, "factor": factor, "name": "x", "source": source}
        for factor, source in (("crowd", "rule@1"), ("people", "rule@1"), ("lighting", "lighting@1"))
    ]
    catalog.commit({"tags": tags}, [Done("clip", clip_id, "tag", "f", 1, 3)])
    footage = open_catalog(catalog.store)
    names = footage.frames.columns
    judged = look_weights.judged(catalog, names)
    assert {"n_person", "p_look", "crowd", "people"} <= judged <= floor.decided(catalog, names, footage.clips.columns)
    assert "lighting" not in judged | floor.decided(catalog, names, footage.clips.columns)


def test_the_command(curated: Footage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table for people, one document for programs; what does not belong to it is refused in one line."""
    at = ["--store", str(tmp_path / "store")]
    assert main(["query", "--audit", *at, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["audit"]
    assert [row["filter"] for row in rows] == ["cheap", "fine", "cascade"] and 0 < rows[0]["low"] < rows[0]["recall"] < 1
    assert rows[1]["looks_95"] is not None and rows[0]["looks_95"] is None
    assert main(["query", "camera_id = 'cam_a'", "--audit", "--by", "camera_id", "--positive", "n_car > 0", *at]) == 0
    assert "looks for 95%" in " ".join(capsys.readouterr().out.split())
    assert main(["query", "--moving", ".1", *at]) == 2 and main(["query", "--audit", "--columns", *at]) == 2
    assert "only together with --audit" in capsys.readouterr().err


def test_nothing_filtered_says_so(
    catalog: Catalog, add_clip: AddClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store without gate or cascade has no losses to estimate; one that was not scanned says what to do."""
    clip_id = add_clip(catalog, "a", [1, 2])
    assert main(["query", "--audit", "--store", str(tmp_path / "store")]) == 0
    assert "run camloop curate" in capsys.readouterr().out
    gop = {"clip_id": clip_id, "gop_index": 0, "start_pts": 0, "end_pts": 2, "decoded": True, "motion": [0.5], "p_keep": 1.0}
    catalog.commit({"gops": [gop]}, [Done("clip", clip_id, "scan", "f", 1, 1)])
    assert main(["query", "--audit", "--store", str(tmp_path / "store")]) == 0
    assert "nothing was filtered" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        (["--by", "hour"], 0, "the packet gate can be judged by clip columns only"),
        (["brightness > 3"], 0, "the packet gate can be judged by clip columns only"),
        (["camera_id = 'cam9'"], 0, "nothing that was filtered lies in this slice"),
        (["--by", "brightnes"], 2, "no column 'brightnes'; did you mean brightness"),
        (["camera = 'cam1'"], 2, "no column 'camera'"),
    ],
)
def test_a_slice_that_leaves_the_gate_out_says_so(
    catalog: Catalog, add_clip: AddClip, asked: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four fifths were dropped: no slice makes that 'nothing was filtered'."""
    gated(catalog, add_clip, "a", 0, "cam1")
    assert main(["query", *asked, "--audit", "--store", catalog.store.url]) == code
    shown = "".join(capsys.readouterr())
    assert says in shown and "nothing was filtered" not in shown


def test_slices_by_what_a_rule_made_of_detections(catalog: Catalog, add_clip: AddClip) -> None:
    """A factor of a rule or of prompts is refused whatever its name; an attribute is not, whatever its name."""
    gated(catalog, add_clip, "a", 0, "cam1")
    clip_id = catalog.scan("clips").collect()["clip_id"][0]
    attributes = json.dumps({"people_flow": "high", "n_lanes": "2"})
    camera = {"camera_id": "cam1", "camera_number": 1, "valid_from_ns": 0, "created_ns": 1, "attributes": attributes}
    catalog.append("cameras", [camera])
    tags = [
        {"clip_id": clip_id, "pts": 0, "factor": factor, "name": "x", "source": source}
        for factor, source in (("crowd", "rule@1"), ("weather", "prompts@1"), ("lighting", "lighting@1"))
    ]
    catalog.commit({"tags": tags}, [Done("clip", clip_id, "tag", "f", 1, 3)])
    footage = open_catalog(catalog.store)
    for name in ("crowd", "weather", "crowd_source", "people", "n_person", "p_look"):
        with pytest.raises(QueryError, match=f"{name}: it is known only of frames"):
            losses.losses(footage, by=[name])
        with pytest.raises(QueryError, match=f"{name}: it is known only of frames"):
            losses.losses(footage, slice_text=f"{name} is null")
    [loss] = losses.losses(footage, by=["people_flow", "n_lanes"])
    assert loss.group == ("high", "2")
    assert losses.losses(footage, by=["lighting"]) == []


def test_the_command_curates_by_a_cascade(
    tmp_path: Path, catalog: Catalog, add_clip: AddClip, make_detector: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """`camloop curate --cascade FILE` needs no --without embed; weights beside it are refused; a bad file names its line."""
    for name, size_px in (("cheap.onnx", 32), ("fine.onnx", 64)):
        make_detector(tmp_path / name, size_px=size_px)
    path = tmp_path / "cascade.toml"
    path.write_text(STAGES)
    add_clip(catalog, "a", [200] * 10)
    curating = ["curate", "--local", "--cascade", str(path), "--store", str(tmp_path / "store")]
    assert main([*curating, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == {"scan": 1, "detect": 1, "tag": 1}
    assert main([*curating, "--weights", str(tmp_path / "fine.onnx")]) == 2
    assert "--cascade and --weights exclude each other" in capsys.readouterr().err
    path.write_text(STAGES.replace("n_person > 0", "n_persons > 0"))
    assert main(curating) == 2 and "cascade.toml line 13" in capsys.readouterr().err
    assert main(["curate", "--cascade", str(tmp_path / "none.toml"), "--store", str(tmp_path / "store")]) == 2
