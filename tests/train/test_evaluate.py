"""The gate: the exported file, streamed over whole recordings, judged slice by slice."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from infra import keys, video
from infra.artefacts import Bundle, Report, Selection
from infra.catalog import Catalog
from infra.clock import FakeClock
from infra.errors import ArtefactError, JobError, QueryError, UsageError
from infra.predictor import Predictor
from infra.shelf import put_bundle, read_bundle
from infra.store import MemoryStore
from train import jobs
from train.checkpoint import Checkpoint
from train.evaluate import Question, evaluate, keep, reuse_count
from train.export import PARITY, _OneFrame, export, parity
from train.footage import clips_of, in_order, load
from train.models import build
from train.report import page
from train.stream import Judge, watch

Run = tuple[jobs.Plan, jobs.Footage, Checkpoint]
World = tuple[Catalog, Selection]
GATE = """
judged = "raw"
[[slice]]
name = "bright"
where = "brightness > 0.6"
threshold = 0.6
min_groups = 2
[[slice]]
name = "dark"
where = "brightness <= 0.6"
threshold = 0.6
[[slice]]
name = "all"
where = ""
threshold = 0.6
[[slice]]
name = "all"
where = ""
metric = "recall:left"
threshold = 0.99
"""


def test_frames_are_decoded_as_they_are(dots: World, dots_run: Run) -> None:
    """The cache holds, for each row, exactly the frames of its pts at model size; each row only its own."""
    catalog, _ = dots
    plan, _, _ = dots_run
    rows, clips = plan.rows[:6], clips_of(catalog, plan.rows[:6])
    cache = load(catalog.store, clips, rows, plan.recipe, advance=lambda n: None)
    for row, (first, stop), pts in zip(rows, cache.spans, cache.pts, strict=True):
        assert pts == tuple(range(row.start_pts, row.end_pts, 100)) and stop - first == len(pts)
        with catalog.store.local(clips[row.clip_id].key) as path:
            (direct,) = video.decode(path, pts=pts, size_px=(32, 32))
        assert np.array_equal(direct.rgb, cache.frames[first:stop])
    small = dataclasses.replace(plan.recipe, cache_bytes=1000)
    mapped = load(catalog.store, clips, rows, small, advance=lambda n: None)
    assert isinstance(mapped.frames, np.memmap)
    assert all(np.array_equal(mapped.frames[a:b], cache.frames[a:b]) for a, b in cache.spans)


def test_a_broken_clip_is_named(dots: World, dots_run: Run) -> None:
    """One clip of twenty that is gone is skipped and named; one of three stops the run."""
    catalog, _ = dots
    plan, _, _ = dots_run
    clips = clips_of(catalog, plan.rows)
    victim = plan.rows[0].clip_id
    clips[victim] = dataclasses.replace(clips[victim], key="clips/cam/gone.mp4")
    cache = load(catalog.store, clips, plan.rows, plan.recipe, advance=lambda n: None)
    assert list(cache.failed) == [victim] and cache.spans[0][0] == cache.spans[0][1]
    few = [row for row in plan.rows if row.clip_id in {r.clip_id for r in plan.rows[:6]}]
    with pytest.raises(JobError, match="1 of 3 clips"):
        load(catalog.store, clips, few, plan.recipe, advance=lambda n: None)
    with pytest.raises(ArtefactError, match="not in this store"):
        clips_of(catalog, [dataclasses.replace(plan.rows[0], clip_id="f" * 32)])


def test_exports_are_the_same_file_and_the_same_model(dots_run: Run, dots_bundle: Bundle) -> None:
    """The same weights give the same bytes; torch and the file agree; a wrong file is refused."""
    plan, _, last = dots_run
    again = export(last.best, plan.recipe, plan.labels, name="dots", lineage={"run_id": plan.run_id})
    assert again.bundle_id == dots_bundle.bundle_id
    model = build(plan.recipe.model, 2)
    model.load_state_dict(last.best)
    assert parity(_OneFrame(model).eval(), dots_bundle.model, plan.recipe) <= PARITY
    other = build(plan.recipe.model, 2)
    assert parity(_OneFrame(other).eval(), dots_bundle.model, plan.recipe) > PARITY
    assert [s.name for s in dots_bundle.spec.states] == ["hidden", "previous", "seen"]
    store = MemoryStore()
    bundle_id = put_bundle(store, dots_bundle)
    assert read_bundle(store, bundle_id) == dots_bundle
    store.put(keys.bundle_prefix(bundle_id) + "model.onnx", dots_bundle.model[:-1] + b"\0")
    with pytest.raises(ArtefactError):
        read_bundle(store, bundle_id)


def test_state_goes_over_clip_borders(dots: World, dots_bundle: Bundle) -> None:
    """The second clip of a recording continues the first: one reset a recording, every frame judged once."""
    catalog, selection = dots
    clips = in_order(clips_of(catalog, selection.split("test")).values())[:4]
    judge = Judge(dots_bundle)
    resets = judge.predictor.n_resets
    assert watch(catalog.store, clips, [judge], advance=lambda n: None) == {}
    assert judge.predictor.n_resets - resets == 2
    assert [(c, p) for c, p, _ in judge.found] == [(clip.clip_id, pts) for clip in clips for pts in range(0, 3000, 100)]
    alone = Predictor(dots_bundle)
    with catalog.store.local(clips[1].key) as path:
        (frame, *_), _ = (batch := next(video.decode(path, size_px=(32, 32)))).rgb, batch.pts
    fresh = alone.step(frame, 0)
    carried = next(p for c, pts, p in judge.found if c == clips[1].clip_id and pts == 0)
    assert fresh is not None and fresh.raw_probs != carried.raw_probs


def test_a_busy_model_loses_every_second_frame(dots: World, dots_bundle: Bundle) -> None:
    """Busy for two periods a frame, every second due frame is judged; for three and a half, the next after that."""
    catalog, selection = dots
    clips = in_order(clips_of(catalog, selection.split("test")).values())[:1]
    judges = [Judge(dots_bundle, busy_periods=busy) for busy in (0.0, 2.0, 2.5)]
    watch(catalog.store, clips, judges, advance=lambda n: None)
    times = [[pts for _, pts, _ in judge.found] for judge in judges]
    assert times[0] == list(range(0, 3000, 100))
    assert times[1] == list(range(0, 3000, 200)) and times[2] == list(range(0, 3000, 300))


@pytest.fixture(scope="module")
def judged(dots: World, dots_bundle: Bundle, dots_run: Run) -> tuple[Report, pl.DataFrame]:
    """Return the report and the predictions of the good model, with an untrained baseline."""
    catalog, selection = dots
    plan, _, _ = dots_run
    torch_free = jobs.plan("dots", selection, plan.recipe)
    untrained = build(torch_free.recipe.model, 2).state_dict()
    baseline = export(untrained, plan.recipe, plan.labels, name="untrained", lineage={})
    question = Question(dataset="dots", selection=selection, gate=GATE, baseline=baseline, pair_labels=("left",))
    history = list(dots_run[2].history)
    return evaluate(catalog, dots_bundle, question, clock=FakeClock(), history=history)


def test_slices_get_their_verdicts(judged: tuple[Report, pl.DataFrame]) -> None:
    """Slices of six groups are unknown; the whole passes with its interval; an unreachable recall does not pass."""
    report, _ = judged
    cells = {(c.slice, c.metric): c for c in report.cells}
    assert list(cells) == [("bright", "accuracy"), ("dark", "accuracy"), ("all", "accuracy"), ("all", "recall:left")]
    for name in ("bright", "dark"):
        cell = cells[name, "accuracy"]
        assert (cell.verdict, cell.n_groups, cell.low) == ("unknown", 6, None) and "6 groups, 10 are needed" in cell.why
    whole = cells["all", "accuracy"]
    assert whole.verdict == "passed" and whole.n_groups == 12 and "simulated coverage" in whole.why
    assert whole.n == cells["bright", "accuracy"].n + cells["dark", "accuracy"].n == 12 * 2 * 30
    assert cells["all", "recall:left"].verdict in ("failed", "unknown")
    assert report.judged == "raw" and report.verdict in ("failed", "unknown")
    assert Report.from_bytes(report.to_bytes()) == report or Report.from_bytes(report.to_bytes()).report_id == report.report_id


def test_every_prediction_has_its_truth(judged: tuple[Report, pl.DataFrame], dots: World) -> None:
    """Truth, group and split come from the row that covers the frame; accuracy worked out here equals the report's."""
    report, predictions = judged
    rows = dots[1].split("test")
    assert len(predictions) == 12 * 2 * 30 and predictions["split"].to_list() == ["test"] * len(predictions)
    for row in predictions.sample(40, seed=1).to_dicts():
        covering = [r for r in rows if r.clip_id == row["clip_id"] and r.start_pts <= row["pts"] < r.end_pts]
        assert [(r.label, r.group) for r in covering] == [(row["truth"], row["group"])]
    labels = report.labels
    right = [labels[int(np.argmax(row["raw"]))] == row["truth"] for row in predictions.to_dicts()]
    assert np.mean(right) == pytest.approx(next(c.value for c in report.cells if (c.slice, c.metric) == ("all", "accuracy")))


def test_beside_the_frames_stand_windows_load_and_baseline(judged: tuple[Report, pl.DataFrame]) -> None:
    """Rows get one answer each, the loaded run half the predictions, and an untrained baseline is clearly worse."""
    detail = judged[0].detail
    assert detail["windows"]["n_rows"] == 48 and detail["windows"]["n_without_prediction"] == 0
    assert detail["windows"]["mean_prob"]["value"] > 0.9
    assert detail["under_load"]["n_predictions"] == 12 * 2 * 30 / 2
    over, left = detail["paired"]
    assert over["labels"] == [] and left["labels"] == ["left"] and over["n"] == 720 and left["n"] == 360
    assert over["value"] == pytest.approx(over["value_first"] - over["value_second"]) and over["low"] > 0
    assert sum(map(sum, detail["confusion"])) == 720


def test_the_page_is_self_contained(judged: tuple[Report, pl.DataFrame]) -> None:
    """One HTML document with every slice and verdict, escaped names, no script and no address outside itself."""
    report, _ = judged
    cells = (dataclasses.replace(report.cells[0], slice="<b>&"), *report.cells[1:])
    text = page(dataclasses.replace(report, cells=cells), report.report_id)
    assert text.startswith("<!doctype html>") and "&lt;b&gt;&amp;" in text and "<b>&<" not in text
    assert not re.search(r"<script|https?://(?!www\.w3\.org)|src=", text)
    for word in ("Confusion", "untrained", report.bundle_id, "unknown", "passed", "val loss"):
        assert word in text


def test_figures_and_predictions_are_kept_once(judged: tuple[Report, pl.DataFrame], dots: World) -> None:
    """The report is in the store, its figures in `reports`, predictions once; the reuse of the rows is counted."""
    catalog, _selection = dots
    report, predictions = judged
    part = report.detail["evaluation_part"]
    assert reuse_count(catalog, part) == 0
    report_id = keep(catalog, report, predictions)
    keep(catalog, dataclasses.replace(report, created_ns=report.created_ns + 1), predictions)
    assert Report.from_bytes(catalog.store.get(keys.report_key(report_id))).verdict == report.verdict
    assert reuse_count(catalog, part) == 2
    assert catalog.scan("predictions").collect().height == len(predictions)
    found = catalog.scan("reports").collect().filter(pl.col("report_id") == report_id)
    assert sorted(found["verdict"].to_list()) == sorted(c.verdict for c in report.cells)


def test_wrong_questions_are_refused(dots: World, dots_bundle: Bundle) -> None:
    """An empty split, a label the model does not know and a column nobody has are refused with the remedy."""
    catalog, selection = dots
    nobody = dataclasses.replace(selection, rows=selection.split("train"))
    with pytest.raises(UsageError, match="no labelled row in split 'test'"):
        evaluate(catalog, dots_bundle, Question(dataset="dots", selection=nobody))
    test = selection.split("test")
    odd = dataclasses.replace(selection, rows=tuple(dataclasses.replace(row, label="up") for row in test))
    with pytest.raises(UsageError, match="does not know the labels"):
        evaluate(catalog, dots_bundle, Question(dataset="dots", selection=odd))
    few = dataclasses.replace(selection, rows=test[:4])
    gate = '[[slice]]\nname = "x"\nwhere = "brightnes > 1"\n'
    with pytest.raises(QueryError, match="brightness"):
        evaluate(catalog, dots_bundle, Question(dataset="dots", selection=few, gate=gate))
    with pytest.raises(UsageError, match="metric"):
        gate = '[[slice]]\nname = "x"\nwhere = ""\nmetric = "f2"\n'
        evaluate(catalog, dots_bundle, Question(dataset="dots", selection=few, gate=gate))


def test_frames_nobody_kept_are_unknown(dots: World, dots_bundle: Bundle, tmp_path: Path) -> None:
    """Predictions of a clip without a kept frame are outside every slice, and counted in the cell."""
    from train.slices import membership

    catalog, selection = dots
    table = pl.DataFrame({"clip_id": [selection.rows[0].clip_id, "0" * 32], "pts": [0, 0]})
    from infra.records import Slice

    found = membership(catalog, table, [Slice(name="x", where="brightness > 0"), Slice(name="y", where="")])
    assert found == {"x": [True, None], "y": [True, True]}
