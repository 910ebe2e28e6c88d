"""What filters before the footage lost, cited by the gate of a model: the packet gate and cascades, slice by slice."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from infra import keys
from infra.artefacts import Bundle, Report, ReportCell, Selection, read_gate
from infra.catalog import Catalog, Done, open_catalog
from infra.clock import FakeClock
from infra.errors import QueryError, UsageError
from infra.records import Slice
from infra.store import DirStore
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


def cascade(catalog: Catalog, clip_id: str, *, missed: int, audit: float) -> None:
    """Curate a clip by one stage: of 200 frames 60 pass, all with a person; `missed` of the others hold one."""
    frames = [{"clip_id": clip_id, "pts": pts, "brightness": 0.8, "p_keep": 1.0} for pts in range(200)]
    gops = [
        {"clip_id": clip_id, "gop_index": 0, "start_pts": 0, "end_pts": 200, "decoded": True, "motion": [0.3], "p_keep": 1.0}
    ]
    catalog.commit({"gops": gops, "frames": frames}, [Done("clip", clip_id, "scan", "f", 200, 200)])
    same = {"clip_id": clip_id, "step": "detect", "stage": "fine", "number": 0, "source": "yolo@1"}
    looks: list[dict[str, Any]] = [{**same, "pts": None, "p_look": audit, "n_in": 200, "n_passed": 60}]
    boxes = []
    for pts in range(200):
        passed = pts % 10 < 3
        if passed or keys.uniform(clip_id, pts) < audit:
            looks.append({**same, "pts": pts, "p_look": 1.0 if passed else audit, "passed": passed})
            if passed or (pts % 10 == 5 and pts // 10 < missed):
                box = {"clip_id": clip_id, "pts": pts, "det_id": f"{pts}", "source": "yolo@1", "class_name": "person"}
                boxes.append({**box, "score": 0.9})
    catalog.commit({"looks": looks, "detections": boxes}, [Done("clip", clip_id, "detect", "f", 200, len(boxes))])


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
    with pytest.raises(QueryError, match="n_cars"):
        ask(catalog, ["exact"], gated(positive="n_cars > 0"))


def test_filters_in_a_row_are_multiplied(catalog: Catalog) -> None:
    """A gate that lost something and a cascade that lost something: less survives both, and neither hides the other."""
    gate(catalog, add(catalog, "a", "cam1"), missed=10)
    cascade(catalog, add(catalog, "b", "cam1"), missed=12, audit=1.0)
    [entry] = ask(catalog, ["a", "b"], gated())["slices"]
    one, _, two = entry["filters"]
    assert entry["recall"] == pytest.approx(one["recall"] * two["recall"]) and one["recall"] < 1 > two["recall"]
    assert entry["low"] == pytest.approx(one["low"] * two["low"]) and "together [" in entry["says"]


def test_the_gate_file_asks(catalog: Catalog) -> None:
    """What stands at its top holds for slices that do not say; what cannot be asked is refused with what is legal."""
    slices = '[[slice]]\nname = "a"\nwhere = ""\nthreshold = 0.5\n[[slice]]\nname = "b"\nwhere = ""\nmin_recall = 0.5\n'
    a, b = read_slices(read_gate('min_recall = 0.95\npositive = "n_car > 0"\nmoving = 0.01\n' + slices)[1])
    assert (a.min_recall, a.positive, a.moving) == (0.95, "n_car > 0", 0.01) and b.min_recall == 0.5
    for wrong in ("min_recall = 95", "min_recall = 'all'", "moving = 0", "positive = 3"):
        with pytest.raises(UsageError, match=f"slice 'a': {wrong.split()[0]} = .*; legal: "):
            read_slices(read_gate(wrong + "\n" + slices)[1])
    with pytest.raises(UsageError, match="legal: judged = 'raw'"):
        read_gate("max_recall = 1\n" + slices)


def test_a_report_cites_the_filters_and_a_release_is_refused_by_them(
    dots: tuple[Catalog, Selection], dots_bundle: Bundle, tmp_path: Path
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
    said = objection(dots_bundle, refused)
    assert said is not None and "all failed" in said and "the recall of 0.99 that the gate file asks for is missed" in said
