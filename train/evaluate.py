"""The gate: judge the exported file, streamed over the whole recordings of a split, slice by slice.

    1. rows of the split -> their recordings, every clip of them        (footage)
       where filters stood before the footage: what survived them        (filters)
    2. all frames -> the bundle, the bundle under load, the baseline     (stream)
    3. predictions that a row covers -> truth, group, slices             (stream, slices)
    4. confusion matrix per group -> figures with intervals -> verdicts  (metrics, slices)
    5. Report, predictions and figures into the store

Beside the frames stand whole windows (one answer per row), the run under load, and the paired difference to a
baseline on the same frames. `reuse_count` says how often these very rows have judged a model before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infra import keys
from infra.artefacts import Bundle, Report, ReportCell, Selection, SelectionRow, Split, read_gate
from infra.catalog import Catalog
from infra.clock import Clock, SystemClock
from infra.errors import ArtefactError, UsageError
from infra.records import Clip, Slice
from train import filters, metrics
from train.dataset import usable
from train.footage import clips_of, in_order, read_clips
from train.slices import judge, membership, read_slices, single_class
from train.stream import Judge, answers, judged, watch

Output = Literal["raw", "smoothed"]
OUTPUTS: tuple[Output, Output] = ("raw", "smoothed")
DEFAULT_LOAD = 2.0  # periods that a loaded Pi needs for a frame: every second due frame is lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be judged, and how.

    Attributes:
        dataset: the data set's name.
        selection: the data set.
        split: which part.
        gate: text of the gate file; None judges the whole part without thresholds.
        baseline: another bundle, compared on the same frames.
        pair_labels: classes on which alone the comparison is repeated.
        load: periods per frame of the loaded run.
        seed: of resampling.
    """

    dataset: str
    selection: Selection
    split: Split = "test"
    gate: str | None = None
    baseline: Bundle | None = None
    pair_labels: tuple[str, ...] = ()
    load: float = DEFAULT_LOAD
    seed: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """The covered predictions of one judge, with answers as class numbers."""

    table: pl.DataFrame
    truth: NDArray[np.int64]
    labels: tuple[str, ...]

    def counts(self, output: Output, keep: NDArray[np.bool_] | None = None) -> metrics.Array:
        """Return the confusion matrices by group, (G, C, C), of all or of some predictions."""
        keep = np.ones(len(self.truth), bool) if keep is None else keep
        groups = [g for g, kept in zip(self.table["group"].to_list(), keep, strict=True) if kept]
        return metrics.by_group(self.truth[keep], answers(self.table, output)[keep], groups, len(self.labels))[1]


def evaluate(
    catalog: Catalog,
    bundle: Bundle,
    question: Question,
    *,
    clock: Clock | None = None,
    advance: Callable[[int], None] = lambda n: None,
    history: Sequence[Mapping[str, Any]] = (),
) -> tuple[Report, pl.DataFrame]:
    """Judge a bundle; return the Report and all its predictions.

    Args:
        catalog: store and tables.
        bundle: the exported model.
        question: on what, with which gate.
        clock: for `created_ns`.
        advance: called with 1 per clip.
        history: the training run's epochs, for the page.

    Raises:
        UsageError: no labelled row in the split, a label unknown to the bundle, a wrong gate file.
        QueryError: the gate file names a column that is not there.
        JobError: too many clips cannot be read.
    """
    output, slices = _read_gate(question.gate)
    rows = _rows(question, bundle)
    clips = _recordings(catalog, rows)
    survived = filters.survival(catalog, clips, slices)  # before hours of decoding: it refuses what cannot be asked
    main, loaded = Judge(bundle), Judge(bundle, busy_periods=question.load)
    base = [Judge(question.baseline)] if question.baseline else []
    failed = watch(catalog.store, clips, [main, loaded, *base], advance=advance)
    predictions = judged(main, rows, question.split)
    frames = _covered(predictions, bundle.spec.labels)
    if frames.table.is_empty():
        raise ArtefactError(f"bundle {bundle.bundle_id}: no prediction falls into a row of {question.split!r}")
    report = Report(
        bundle_id=bundle.bundle_id, model_name=bundle.spec.model_name, dataset=question.dataset,
        selection_id=question.selection.selection_id,
        group_by=question.selection.group_by or "",
        judged=output, seed=question.seed,
        cells=_cells(catalog, slices, frames, output, question.seed, survived),
        labels=bundle.spec.labels,
        created_ns=(clock or SystemClock()).now_ns(),
        detail=_figures(frames, output, question.seed)
        | {
            "split": question.split,
            "group_names": sorted({str(row.group) for row in rows}),
            "windows": _windows(frames, rows, question.seed),
            "under_load": _under_load(loaded, rows, question, output),
            "paired": [] if not base else _paired(frames, base[0], rows, question, output),
            "failed_clips": failed,
            "n_clips": len(clips),
            "evaluation_part": evaluation_part(rows),
            "reuse_count": reuse_count(catalog, evaluation_part(rows)),
            "history": list(history),
            "lineage": dict(bundle.spec.lineage),
        }
        | ({"filters": survived} if survived else {}),
    )  # fmt: skip
    return report, predictions


def _read_gate(text: str | None) -> tuple[Output, tuple[Slice, ...]]:
    """Return which output is judged, and the slices; the whole part is always among them."""
    if text is None:
        return "smoothed", (Slice(name="all", where="", threshold=None), Slice(name="all", where="", metric="macro_f1"))
    output, tables = read_gate(text)
    slices = read_slices(tables)
    whole = [s for s in (Slice(name="all", where=""),) if ("all", "accuracy") not in {(x.name, x.metric) for x in slices}]
    return ("raw" if output == "raw" else "smoothed"), (*whole, *slices)


def _rows(question: Question, bundle: Bundle) -> tuple[SelectionRow, ...]:
    rows = usable(question.selection, question.split)
    if not rows:
        raise UsageError(f"data set {question.dataset!r} has no labelled row in split {question.split!r}: sample with --split")
    for spec in (bundle.spec, *([question.baseline.spec] if question.baseline else [])):
        strange = sorted({str(row.label) for row in rows} - set(spec.labels))
        if strange:
            raise UsageError(f"model {spec.model_name!r} does not know the labels {strange}; it knows {list(spec.labels)}")
    return rows


def _recordings(catalog: Catalog, rows: Sequence[SelectionRow]) -> list[Clip]:
    """Return every clip of the recordings that the rows touch, in the order of filming."""
    touched = {(c.recording_id, c.boot_id) for c in clips_of(catalog, rows).values()}
    every = read_clips(catalog, pl.col("recording_id").is_in(sorted({recording for recording, _ in touched})))
    return in_order(clip for clip in every.values() if (clip.recording_id, clip.boot_id) in touched)


def _covered(predictions: pl.DataFrame, labels: tuple[str, ...]) -> _Judged:
    table = predictions.filter(pl.col("row").is_not_null())
    truth = np.array([labels.index(name) for name in table["truth"].to_list()], np.int64)
    return _Judged(table=table, truth=truth, labels=labels)


def _cells(
    catalog: Catalog, slices: Sequence[Slice], frames: _Judged, output: Output, seed: int, survived: Mapping[str, Any]
) -> tuple[ReportCell, ...]:
    """Judge every slice, by its figure and, where it asks for that, by what its filters lost."""
    members = membership(catalog, frames.table, slices)
    return tuple(filters.asked(_cell(s, frames, output, members[s.name], seed), s, survived) for s in slices)


def _cell(s: Slice, frames: _Judged, output: Output, members: Sequence[bool | None], seed: int) -> ReportCell:
    """Judge the figure of one slice."""
    keep = np.array([member is True for member in members], bool)
    counts = frames.counts(output, keep)
    rarest = [r for r in (single_class(counts), single_class(frames.counts(output))) if r is not None]
    interval = metrics.metric_interval(counts, s.metric, frames.labels, seed)
    return judge(s, interval, min(rarest, default=None), sum(member is None for member in members))


def _figures(frames: _Judged, output: Output, seed: int) -> dict[str, Any]:
    """Return confusion, per-class figures and both outputs' accuracy."""
    counts = frames.counts(output)
    per_label = {
        label: {
            "recall": asdict(metrics.metric_interval(counts, f"recall:{label}", frames.labels, seed)),
            "precision": asdict(metrics.metric_interval(counts, f"precision:{label}", frames.labels, seed)),
        }
        for label in frames.labels
    }
    raw, smoothed = (metrics.metric_interval(frames.counts(o), "accuracy", frames.labels, seed) for o in OUTPUTS)
    return {
        "confusion": counts.sum(0).astype(int).tolist(),
        "per_label": per_label,
        "outputs": {"raw": asdict(raw), "smoothed": asdict(smoothed)},
        "single_class_groups": single_class(counts) is not None,
    }


def _windows(frames: _Judged, rows: Sequence[SelectionRow], seed: int) -> dict[str, Any]:
    """Return the accuracy of one answer per row: by majority of its frames, and by their mean raw probabilities."""
    c = len(frames.labels)
    raw = np.array(frames.table["raw"].to_list(), np.float64)
    votes = np.eye(c)[raw.argmax(1)]
    number = frames.table["row"].to_numpy()
    seen = np.unique(number)
    truth = np.array([frames.labels.index(str(rows[i].label)) for i in seen], np.int64)
    groups = [rows[i].group for i in seen]
    found: dict[str, Any] = {"n_rows": len(rows), "n_without_prediction": len(rows) - len(seen)}
    for name, values in (("majority", votes), ("mean_prob", raw)):
        answer = np.array([values[number == i].mean(0).argmax() for i in seen], np.int64)
        counts = metrics.by_group(truth, answer, groups, c)[1]
        found[name] = asdict(metrics.metric_interval(counts, "accuracy", frames.labels, seed))
    return found


def _under_load(loaded: Judge, rows: Sequence[SelectionRow], question: Question, output: Output) -> dict[str, Any]:
    frames = _covered(judged(loaded, rows, question.split), loaded.bundle.spec.labels)
    interval = metrics.metric_interval(frames.counts(output), "accuracy", frames.labels, question.seed)
    return {"busy_periods": question.load, "n_predictions": len(loaded.found), "accuracy": asdict(interval)}


def _paired(
    frames: _Judged, base: Judge, rows: Sequence[SelectionRow], question: Question, output: Output
) -> list[dict[str, Any]]:
    """Return accuracy minus the baseline's on the frames that both judged, over all classes and over the named ones."""
    other = _covered(judged(base, rows, question.split), base.bundle.spec.labels)
    first = frames.table.select("clip_id", "pts", "group", "truth", _right(frames, output).alias("first"))
    second = other.table.select("clip_id", "pts", _right(other, output).alias("second"))
    both = first.join(second, on=["clip_id", "pts"], how="inner")
    found = []
    for labels in dict.fromkeys([(), question.pair_labels]):
        kept = both if not labels else both.filter(pl.col("truth").is_in(labels))
        sums = kept.group_by("group").agg(pl.col("first").sum(), pl.col("second").sum(), pl.len().alias("n")).sort("group")
        columns = [sums[name].to_numpy().astype(np.float64) for name in ("first", "second", "n")]
        interval = metrics.difference_interval(columns[0], columns[1], columns[2], question.seed)
        n = max(len(kept), 1)
        shares = {"value_first": columns[0].sum() / n, "value_second": columns[1].sum() / n}
        names = {"baseline_id": base.bundle.bundle_id, "baseline_name": base.bundle.spec.model_name, "labels": list(labels)}
        found.append({**names, **shares, **asdict(interval)})
    return found


def _right(frames: _Judged, output: Output) -> pl.Series:
    return pl.Series(answers(frames.table, output) == frames.truth)


def evaluation_part(rows: Sequence[SelectionRow]) -> str:
    """Return an id of what judges: the same rows give the same id, in whatever data set they stand."""
    return keys.derived_id("evaluation part", *sorted(f"{r.clip_id} {r.start_pts} {r.end_pts} {r.label}" for r in rows))


def reuse_count(catalog: Catalog, part: str) -> int:
    """Return how many Reports of this store were made on the same rows before."""
    n = 0
    for stat in catalog.store.list("reports/"):
        n += Report.from_bytes(catalog.store.get(stat.key)).detail.get("evaluation_part") == part
    return n


def keep(catalog: Catalog, report: Report, predictions: pl.DataFrame) -> str:
    """Put the Report into the store, its figures and the predictions into the tables; return the report id.

    Predictions of clips for which this bundle's are in the table already are not written again.
    """
    report_id = report.report_id
    catalog.store.put(keys.report_key(report_id), report.to_bytes())
    names = ("slice", "metric", "value", "low", "high", "n", "n_groups", "threshold", "verdict")
    shared = {"report_id": report_id, "bundle_id": report.bundle_id, "created_ns": report.created_ns}
    catalog.append("reports", [{**shared, **{n: getattr(c, n) for n in names}} for c in report.cells])
    known = catalog.scan("predictions", ["clip_id", "source"]).filter(pl.col("source") == report.bundle_id)
    there = known.select("clip_id").unique().collect()["clip_id"].to_list()
    fresh = predictions.filter(~pl.col("clip_id").is_in(there))
    if len(fresh):
        table = fresh.select(
            "clip_id", "pts", pl.lit(report.bundle_id).alias("source"), "label", "prob", pl.col("smoothed").alias("probs"),
            "split", "truth",
        )  # fmt: skip
        catalog.append("predictions", table.to_dicts())
    return report_id
