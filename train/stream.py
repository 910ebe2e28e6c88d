"""Whole recordings through exported models: one decoding, any number of judges, each as a Pi would run it.

    clips of the recordings, in order -> infra.predictor.recording_frames -> Judge.see() for every judge

A judge is an `infra.predictor.Predictor` with a load. Under a load, a frame that comes while the last one is still being
worked on is lost, and the next one after that is taken: what "newest frame first" does on a Pi whose model needs
`busy_periods` periods a frame. Without load every due frame is judged. Rows say which predictions count, afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infra.artefacts import Bundle, SelectionRow, Split
from infra.errors import JobError, MediaError, ObjectMissing
from infra.objects import Store
from infra.predictor import Predictor, RecordedFrame, recording_frames
from infra.records import Clip, Prediction
from train.footage import MAX_FAILED_SHARE


class Judge:
    """One exported model that watches recordings.

    Args:
        bundle: the model.
        busy_periods: how many of its periods one frame keeps it busy; 0 = judged at once.
    """

    def __init__(self, bundle: Bundle, *, busy_periods: float = 0.0) -> None:
        self.bundle = bundle
        self.predictor = Predictor(bundle)
        self.size_px = (bundle.spec.width_px, bundle.spec.height_px)
        self.found: list[tuple[str, int, Prediction]] = []
        self._busy_ns = round(busy_periods * bundle.spec.period_s * 1_000_000_000)
        self._free_ns: int | None = None

    def see(self, frame: RecordedFrame) -> None:
        """Look at one frame, unless busy, and keep the prediction if there is one."""
        if frame.begins:
            self.predictor.reset()
            self._free_ns = None
        if self._free_ns is not None and frame.time_ns < self._free_ns:
            return
        prediction = self.predictor.step(frame.rgb, frame.time_ns, pts=frame.pts)
        if prediction is not None:
            self.found.append((frame.clip.clip_id, frame.pts, prediction))
            if self._busy_ns:
                self._free_ns = frame.time_ns + self._busy_ns


def watch(store: Store, clips: Sequence[Clip], judges: Sequence[Judge], *, advance: Callable[[int], None]) -> dict[str, str]:
    """Show all clips to all judges; judges of one picture size share the decoding.

    Args:
        store: where the clips lie.
        clips: recording by recording, in the order of filming.
        judges: who looks.
        advance: called with 1 after each clip, for each picture size.

    Returns:
        clip id -> why it could not be read; the rest of its recording was not seen either.

    Raises:
        JobError: more than a tenth of the clips could not be read.
    """
    failed: dict[str, str] = {}
    for size_px in dict.fromkeys(judge.size_px for judge in judges):
        mine = [judge for judge in judges if judge.size_px == size_px]
        for recording in _recordings(clips):
            current: list[str] = []
            try:
                with contextlib.closing(_files(store, recording, current, advance)) as readable:
                    for frame in recording_frames(readable, size_px):
                        for judge in mine:
                            judge.see(frame)
            except (MediaError, ObjectMissing) as error:
                failed[current[-1]] = str(error)
    if len(failed) > MAX_FAILED_SHARE * len(clips):
        name, why = next(iter(failed.items()))
        raise JobError(f"{len(failed)} of {len(clips)} clips cannot be read, at most a tenth may fail; {name}: {why}")
    return failed


def _recordings(clips: Sequence[Clip]) -> list[list[Clip]]:
    found: dict[tuple[str, str | None], list[Clip]] = {}
    for clip in clips:
        found.setdefault((clip.recording_id, clip.boot_id), []).append(clip)
    return list(found.values())


def _files(
    store: Store, clips: Iterable[Clip], current: list[str], advance: Callable[[int], None]
) -> Generator[tuple[Path, Clip], None, None]:
    """Yield each clip with a readable file, open while it is looked at; note which clip it is."""
    for clip in clips:
        current.append(clip.clip_id)
        with store.local(clip.key) as path:
            yield path, clip
        advance(1)


def judged(judge: Judge, rows: Sequence[SelectionRow], split: Split) -> pl.DataFrame:
    """Return a judge's predictions with the row that covers each, if any.

    Args:
        judge: after `watch`.
        rows: all rows with labels of the judged split; of rows that overlap, the first counts.
        split: its name.

    Returns:
        clip_id, pts, row (index in `rows` or null), group, truth, split (null where no row covers), label, prob,
        smoothed and raw (lists of probabilities, smoothed as the bundle says).
    """
    by_clip: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_clip.setdefault(row.clip_id, []).append(number)
    found = []
    for clip_id, pts, prediction in judge.found:
        covering = (i for i in by_clip.get(clip_id, ()) if rows[i].start_pts <= pts < rows[i].end_pts)
        first = next(covering, None)
        where = (None,) * 4 if first is None else (first, rows[first].group, rows[first].label, split)
        said = (prediction.label, prediction.prob, list(prediction.probs), list(prediction.raw_probs))
        found.append((clip_id, pts, *where, *said))
    return pl.DataFrame(found, schema=SCHEMA, orient="row")


SCHEMA: dict[str, pl.DataType] = {
    "clip_id": pl.String(),
    "pts": pl.Int64(),
    "row": pl.Int64(),
    "group": pl.String(),
    "truth": pl.String(),
    "split": pl.String(),
    "label": pl.String(),
    "prob": pl.Float64(),
    "smoothed": pl.List(pl.Float64()),
    "raw": pl.List(pl.Float64()),
}
"""Columns of `judged`."""


def answers(predictions: pl.DataFrame, output: str) -> NDArray[np.int64]:
    """Return the index of the most probable class per prediction, int64 (n,), of the "smoothed" or the "raw" output."""
    if predictions.is_empty():
        return np.empty(0, np.int64)
    return np.asarray(np.array(predictions[output].to_list(), np.float64).argmax(1), np.int64)
