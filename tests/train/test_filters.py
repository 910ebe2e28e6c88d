"""What filters before the footage lost, cited by the gate of a model: the packet gate and cascades, slice by slice."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from infra import keys, losses
from infra.artefacts import Bundle, Report, ReportCell, Selection, read_gate
from infra.catalog import Catalog, Done, open_catalog
from infra.clock import FakeClock
from infra.errors import QueryError, UsageError
from infra.records import Slice
from infra.store import DirStore
from infra.views import frames_view
from serve.release import objection
from train.evaluate import Question, evaluate
from train.filters import asked, survival
from train.footage import read_clips
from train.report import page
from train.slices import read_slices


def add(catalog: Catalog, name: str, camera_id: str, n_frames: int = 200) -> str:
    """Register one clip of `n_frames` seconds at one frame a second; frames 100 and later are dark. Return its id."""
    clip_id = keys.derived_id("clip", name)
    row = {
        "clip_id": clip_id, "key": f"clips/{name}", "source_name": name, "container": "mp4", "camera_id": camera_id,
        "camera_number": 1, "recording_id": name, "clock": "unknown", "time_base_num": 1, "time_base_den": 1, "first_pts": 0,
        "end_pts": n_frames, "n_frames": n_frames, "width_px": 64, "height_px": 48, "codec": "h264", "rotation_deg": 0,
        "index": "packets", "n_dropped": 0, "n_bytes": 1, "sha256": "0" * 64, "state": "live",
    }  # fmt: skip
    catalog.commit({"clips": [row]}, [Done("clip", clip_id, "register", "f", 1, 1)])
    return clip_id


def gate(catalog: Catalog, clip_id: str, *, missed: int, first: int = 160, p: float = 0.5) -> None:
    """Scan with the packet gate: 40 GOPs kept, all moving; 160 dropped with p, of which `missed` move from `first` on."""
    gops, frames = [], []
    for number in range(200):
        kept = number % 5 == 0
        dropped_moves = first <= number and not kept and number - first < missed * 5 / 4
        looked = kept or keys.uniform(clip_id, number) < p
        motion = [0.3 if kept or dropped_moves else 0.0] if looked else None
        gops.append(
            {"clip_id": clip_id, "gop_index": number, "start_pts": number, "end_pts": number + 1, "decoded": looked,
             "motion": motion, "p_keep": 1.0 if kept else p}
        )  # fmt: skip
        if looked:
            brightness = 0.8 if number < 100 else 0.2
            frames.append({"clip_id": clip_id, "pts": number, "brightness": brightness, "p_keep": 1.0 if kept else p})
    catalog.commit({"gops": gops, "frames": frames}, [Done("clip", clip_id, "scan", "f", 200, len(frames))])


def cascade(catalog: Catalog, clip_id: str, *, missed: int, audit: float, stage: str = "fine") -> None:
    """Curate a clip by one stage: of 200 frames 60 pass, all with a person; `missed` of the others hold one."""
    passed = [pts for pts in range(200) if pts % 10 < 3]
    curated(catalog, clip_id, passed, [*passed, *range(5, 10 * missed, 10)], audit=audit, stage=stage)


def curated(
    catalog: Catalog, clip_id: str, passed: Collection[int], persons: Collection[int], *, audit: float, stage: str = "fine",
    n_met: int | None = None,
) -> None:  # fmt: skip
    """Curate 200 frames: `passed` were looked at for certain, `persons` hold one; `n_met` of them met the condition."""
    frames = [{"clip_id": clip_id, "pts": pts, "brightness": 0.8, "p_keep": 1.0} for pts in range(200)]
    gops = [
        {"clip_id": clip_id, "gop_index": 0, "start_pts": 0, "end_pts": 200, "decoded": True, "motion": [0.3], "p_keep": 1.0}
    ]
    catalog.commit({"gops": gops, "frames": frames}, [Done("clip", clip_id, "scan", "f", 200, 200)])
    same = {"clip_id": clip_id, "step": "detect", "stage": stage, "number": 0, "source": "yolo@1"}
    n_passed = len(passed) if n_met is None else n_met
    looks: list[dict[str, Any]] = [{**same, "pts": None, "p_look": audit, "n_in": 200, "n_passed": n_passed}]
    boxes = []
    for pts in range(200):
        is_certain = pts in passed
        if is_certain or keys.uniform(clip_id, pts) < audit:
            looks.append({**same, "pts": pts, "p_look": 1.0 if is_certain else audit, "passed": is_certain})
            if pts in persons:
                box = {"clip_id": clip_id, "pts": pts, "det_id": f"{pts}", "source": "yolo@1", "class_name": "person"}
                boxes.append({**box, "score": 0.9})
    catalog.commit({"looks": looks, "detections": boxes}, [Done("clip", clip_id, "detect", "f", 200, len(boxes))])


def say(catalog: Catalog, clip_id: str, name: str, factor: str | None = None) -> None:
    """Label a clip from its first to its last frame, as a person would."""
    row = {"label_id": keys.derived_id("label", clip_id, name), "clip_id": clip_id, "start_pts": 0, "end_pts": 200}
    catalog.append("labels", [row | {"factor": factor, "name": name, "annotator": "p", "created_ns": 1}])


def ask(catalog: Catalog, names: Sequence[str], *slices: Slice) -> dict[str, Any]:
    """Return what `survival` says of the named clips."""
    return survival(catalog, list(read_clips(catalog, pl.col("source_name").is_in(names)).values()), slices)


def passed() -> ReportCell:
    """Return a cell whose figure passed."""
    return ReportCell(
        slice="all", where="", metric="accuracy", value=0.9, low=0.8, high=1.0, n=100, n_groups=12, threshold=0.5,
        verdict="passed", why="why",
    )  # fmt: skip


def gated(name: str = "all", where: str = "", wanted: float | None = 0.9, **more: Any) -> Slice:
    """Return a slice with a threshold that asks for a recall."""
    return Slice(name=name, where=where, threshold=0.5, min_recall=wanted, **more)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Return an empty store."""
    return open_catalog(DirStore(tmp_path / "store"))


def test_footage_without_filters_says_nothing(catalog: Catalog) -> None:
    """No entry for clips that no filter touched, whatever went on at other cameras, and whatever the gate file asks for."""
    add(catalog, "plain", "cam1")
    gate(catalog, add(catalog, "other", "cam2"), missed=50)
    assert ask(catalog, ["plain"], gated()) == {}
    cell = passed()
    assert asked(cell, gated(), {}) == cell


def test_the_packet_gate_of_the_judged_cameras(catalog: Catalog) -> None:
    """Of a camera without misses enough survived; of one with 100 missed GOPs beside 40 kept it did not, by both ends."""
    gate(catalog, add(catalog, "good", "cam1"), missed=0)
    gate(catalog, add(catalog, "bad", "cam2"), missed=100, first=0)
    good, bad = (ask(catalog, [name], gated(wanted=0.85)) for name in ("good", "bad"))
    assert (good["cameras"], good["n_clips"], good["n_gated"], good["n_cascaded"]) == (["cam1"], 1, 1, 0)
    [first], [second] = good["slices"], bad["slices"]
    assert first["verdict"] == "passed" and first["recall"] == 1 and 0.85 <= first["low"] < 1
    assert second["verdict"] == "failed" and second["low"] <= 40 / 140 <= second["high"] < 0.85
    assert "the recall of 0.85 that the gate file asks for is missed" in second["says"]
    cell = passed()
    made = asked(cell, gated(wanted=0.85), bad)
    assert made.verdict == "failed" and made.why == f"why; {second['says']}"
    assert asked(dataclasses.replace(cell, verdict="failed"), gated(wanted=0.85), good).verdict == "failed"


def test_other_clips_of_a_judged_camera_count(catalog: Catalog) -> None:
    """What was judged was chosen because something was found there; the clip in which all was lost has the same camera."""
    gate(catalog, add(catalog, "judged", "cam1"), missed=0)
    alone = ask(catalog, ["judged"], gated())["slices"][0]
    gate(catalog, add(catalog, "left", "cam1"), missed=100, first=0)
    both = ask(catalog, ["judged"], gated())["slices"][0]
    assert both["filters"][0]["n_in"] == 2 * alone["filters"][0]["n_in"] and both["high"] < alone["low"]


def test_a_slice_of_frames_has_its_own_recall(catalog: Catalog) -> None:
    """All misses are in the dark half: the light one is shown to be whole, the dark one to be not; a clip column works, too."""
    gate(catalog, add(catalog, "a", "cam1"), missed=75, first=105)
    light, dark, whole = ask(
        catalog, ["a"], gated("light", "brightness > 0.5", 0.8), gated("dark", "brightness < 0.5", 0.8),
        gated("again", "brightness < 0.5", 0.8), gated("one", "camera_id = 'cam1'", 0.8),
    )["slices"]  # fmt: skip
    assert dark["slices"] == ["dark", "again"] and whole["slices"] == ["one"]
    assert light["verdict"] == "passed" and light["recall"] == 1
    assert dark["verdict"] == "failed" and dark["low"] <= 20 / 95 <= dark["high"]
    assert light["filters"][0]["n_found"] == 0 < dark["filters"][0]["n_found"]
    assert light["low"] > whole["recall"] > dark["recall"]


def test_a_cascade_and_what_was_not_audited(catalog: Catalog) -> None:
    """Fully audited it is known exactly; without an audit nothing is shown, and the sentence says why."""
    cascade(catalog, add(catalog, "exact", "cam1"), missed=12, audit=1.0)
    [exact] = ask(catalog, ["exact"], gated(wanted=0.8))["slices"]
    assert exact["recall"] == exact["low"] == exact["high"] == pytest.approx(60 / 72) and exact["verdict"] == "passed"
    assert [row["filter"] for row in exact["filters"]] == ["fine", "cascade"]
    cascade(catalog, add(catalog, "blind", "cam2"), missed=12, audit=0.0)
    [blind] = ask(catalog, ["blind"], gated(wanted=0.8))["slices"]
    assert blind["verdict"] == "unknown" and blind["low"] == pytest.approx(60 / 200)
    assert "of 140 dropped frames none was looked at, it was not audited" in blind["says"]
    [decided] = ask(catalog, ["exact"], gated("people", "n_person > 0", 0.8))["slices"]
    assert (decided["verdict"], decided["recall"], decided["low"]) == ("unknown", None, 0.0)
    assert "n_person is known only of frames that the cascade let through" in decided["says"]
    with pytest.raises(QueryError, match="no column 'cars'"):
        ask(catalog, ["exact"], gated(positive="cars > 0"))
    [never] = ask(catalog, ["exact"], gated(positive="n_car > 0"))["slices"]
    assert never["verdict"] == "unknown" and "n_car: no such class was ever found" in never["says"]


def test_filters_in_a_row_are_multiplied(catalog: Catalog) -> None:
    """A gate that lost something and a cascade that lost something: less survives both, and neither hides the other."""
    gate(catalog, add(catalog, "a", "cam1"), missed=10)
    cascade(catalog, add(catalog, "b", "cam1"), missed=12, audit=1.0)
    [entry] = ask(catalog, ["a", "b"], gated())["slices"]
    one, _, two = entry["filters"]
    assert entry["recall"] == pytest.approx(one["recall"] * two["recall"]) and one["recall"] < 1 > two["recall"]
    assert entry["low"] == pytest.approx(one["low"] * two["low"]) and "together [" in entry["says"]


def test_what_people_said_of_what_passed_makes_no_slice(catalog: Catalog) -> None:
    """One clip passed and was labelled, one was dropped and nobody saw it: half survived, and of no label is it known."""
    first, second = add(catalog, "a", "cam1"), add(catalog, "b", "cam1")
    curated(catalog, first, range(200), range(200), audit=1.0)
    curated(catalog, second, (), range(200), audit=1.0)
    say(catalog, first, "Person")
    say(catalog, first, "rain", "weather")
    asked_by = (
        "label = 'Person'", "weather = 'rain'", "label = 'Nothing'", "label = 'Person' and label is not null", "label is null",
        "weather_source = 'human'",
    )  # fmt: skip
    whole, *slices = ask(catalog, ["a"], gated(), *(gated(text, text) for text in asked_by))["slices"]
    assert (whole["recall"], whole["verdict"]) == (0.5, "failed")
    assert [entry["slices"] for entry in slices] == [[text] for text in asked_by]
    for entry in slices:
        assert (entry["verdict"], entry["recall"], entry["low"], entry["high"]) == ("unknown", None, 0.0, 1.0)
        assert "is known of 200 of 400 frames only" in entry["says"]
    say(catalog, second, "Person")
    person, nothing = ask(catalog, ["a"], gated("all", "label = 'Person'"), gated("none", "label = 'Nothing'"))["slices"]
    assert (person["recall"], person["verdict"]) == (0.5, "failed")
    assert nothing["verdict"] == "unknown" and "no frame of the clips that a cascade curated lies in" in nothing["says"]
    assert ask(catalog, ["a"], gated("other", "camera_id = 'cam2'"))["slices"] == []


def test_a_slice_of_which_the_gate_knows_half_fails_nobody(catalog: Catalog) -> None:
    """The weather of one gated clip was said: both ends allow for the other, so that no slice passes or fails by it."""
    first = add(catalog, "a", "cam1")
    gate(catalog, first, missed=20)
    gate(catalog, add(catalog, "b", "cam1"), missed=100, first=0)
    say(catalog, first, "rain", "weather")
    rain, dry = ask(catalog, ["a"], gated("rain", "weather = 'rain'"), gated("dry", "weather = 'dry'"))["slices"]
    for entry in (rain, dry):
        assert (entry["recall"], entry["verdict"]) == (None, "unknown") and "nobody knows whether" in entry["says"]
        assert "no gop with an event was found" not in entry["says"]
    assert (dry["low"], dry["high"]) == (0.0, 1.0)
    assert rain["low"] <= 40 / (60 + 100) and rain["high"] >= 80 / 100


def test_cells_give_a_lower_end_only(catalog: Catalog) -> None:
    """Persons on all 200 frames, every second meets the condition: half survived, whether a cell left one out or not."""
    for camera, n_met in (("cam1", None), ("cam2", 101)):
        curated(catalog, add(catalog, camera, camera), range(0, 200, 2), range(200), audit=0.4, n_met=n_met)
    plain, once = (ask(catalog, [name], gated(wanted=0.95))["slices"][0] for name in ("cam1", "cam2"))
    assert plain["verdict"] == "failed" and plain["low"] <= 0.5 <= plain["high"] and "once per cell" not in plain["says"]
    assert once["verdict"] == "unknown" and once["low"] <= 0.5 < once["high"] == 1 and "once per cell" in once["says"]
    assert abs(once["recall"] - 0.5) < 0.12 and once["low"] > 0.3
    assert ask(catalog, ["cam2"], gated(wanted=0.3))["slices"][0]["verdict"] == "passed"


def test_one_clip_with_cells_lends_nothing_to_others(catalog: Catalog) -> None:
    """Near a certain look counts, for people who ask, in the clip whose cells left frames out; not in one without cells."""
    curated(catalog, add(catalog, "a", "cam1"), range(0, 200, 2), range(200), audit=0.2)
    curated(catalog, add(catalog, "b", "cam1"), range(0, 200, 10), range(200), audit=0.2, n_met=200)
    near, far = (
        {loss.group: loss for loss in losses.of_cascade(catalog, frames_view(catalog), by=["source_name"], near=near)}
        for near in (True, False)
    )
    assert (near["a",].audit.n_kept, near["b",].audit.n_kept) == (100, 19 * 5 + 3)
    assert (far["a",].audit.n_kept, far["b",].audit.n_kept) == (100, 20)
    assert not near["a",].is_once and near["b",].is_once and far["b",].is_once


def test_cascades_of_several_kinds_count_by_their_positives(catalog: Catalog) -> None:
    """Sixty of 72 survived one and 60 of 60 the other: 120 of 132; a small one without an audit costs what it can hide."""
    cascade(catalog, add(catalog, "a", "cam1"), missed=12, audit=1.0, stage="new")
    cascade(catalog, add(catalog, "b", "cam1"), missed=0, audit=1.0, stage="newer")
    [exact] = ask(catalog, ["a"], gated())["slices"]
    assert exact["recall"] == exact["low"] == exact["high"] == pytest.approx(120 / 132) and exact["verdict"] == "passed"
    cascade(catalog, add(catalog, "c", "cam1"), missed=0, audit=0.0, stage="old")
    [blind] = ask(catalog, ["a"], gated(wanted=0.5))["slices"]
    assert blind["low"] == pytest.approx(180 / (180 + 12 + 140)) and blind["high"] == pytest.approx(180 / 192)
    assert blind["verdict"] == "passed" and "of 140 dropped frames none was looked at" in blind["says"]


def test_the_gate_file_asks(catalog: Catalog) -> None:
    """What stands at its top holds for slices that do not say; what cannot be asked is refused with what is legal."""
    slices = '[[slice]]\nname = "a"\nwhere = ""\nthreshold = 0.5\n[[slice]]\nname = "b"\nwhere = ""\n'
    a, b = read_slices(read_gate('min_recall = 0.95\npositive = "n_car > 0"\nmoving = 0.01\n' + slices)[1])
    assert (a.min_recall, a.positive, a.moving) == (0.95, "n_car > 0", 0.01)
    assert (b.min_recall, b.positive, b.moving) == (None, "n_car > 0", 0.01)
    for wrong in ("min_recall = 95", "min_recall = 'all'", "min_recall = true", "moving = 0", "moving = true", "positive = 3"):
        with pytest.raises(UsageError, match=f"slice 'a': {wrong.split()[0]} = .*; legal: "):
            read_slices(read_gate(wrong + "\n" + slices)[1])
    with pytest.raises(UsageError, match=r"slice 'b': min_recall = 0\.5 without a threshold is never asked"):
        read_slices(read_gate(slices + "min_recall = 0.5\n")[1])
    with pytest.raises(UsageError, match="slice 'a': positive: "):
        read_slices(read_gate('positive = "n_car >"\n' + slices)[1])
    with pytest.raises(UsageError, match="legal: judged = 'raw'"):
        read_gate("max_recall = 1\n" + slices)


def test_a_report_cites_the_filters_and_a_release_is_refused_by_them(
    dots: tuple[Catalog, Selection], dots_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes without filters, whatever is asked; behind a gate that lost most, page and refusal say so."""
    store, selection = dots
    shutil.copytree(Path(store.store.url.removeprefix("file://")), tmp_path / "copy")
    catalog = open_catalog(DirStore(tmp_path / "copy"), create=False)
    few = dataclasses.replace(selection, rows=selection.split("test")[:4])
    text = '[[slice]]\nname = "all"\nwhere = ""\nthreshold = 0.1\n'

    def judged(gate_text: str) -> Report:
        return evaluate(catalog, dots_bundle, Question(dataset="dots", selection=few, gate=gate_text), clock=FakeClock())[0]

    plain, strict = judged(text), judged("min_recall = 0.99\n" + text)
    assert plain.to_bytes() == strict.to_bytes() and b"filters" not in plain.to_bytes()
    assert "What the filters left" not in page(plain, plain.report_id)
    clip = catalog.scan("clips", ["camera_id"]).collect()["camera_id"][0]
    gate(catalog, add(catalog, "night", clip), missed=100, first=0)
    cited, refused = judged(text), judged("min_recall = 0.99\n" + text)
    assert cited.cells == plain.cells and cited.verdict == plain.verdict
    assert refused.verdict == "failed" and refused.cells[0].value == plain.cells[0].value
    assert Report.from_bytes(refused.to_bytes()).to_bytes() == refused.to_bytes()
    shown = page(refused, refused.report_id)
    assert "What the filters left to be judged" in shown and "packet gate" in shown
    assert "in 1 of them the packet gate dropped something" in shown and "what does not move is not asked" in shown
    said = objection(dots_bundle, refused)
    assert said is not None and "all failed" in said and "the recall of 0.99 that the gate file asks for is missed" in said
    cascade(catalog, add(catalog, "later", clip), missed=0, audit=1.0)
    monkeypatch.setattr("train.evaluate.watch", lambda *_, **__: pytest.fail("hours of decoding before a word is refused"))
    with pytest.raises(QueryError, match="no column 'cars'"):
        judged("positive = 'cars > 0'\n" + text)
