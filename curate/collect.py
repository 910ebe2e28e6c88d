"""From batches to table rows: put clips together again, commit them in groups, one batch per step.

Frames arrive in any order and mixed with other clips'. A clip is complete when its end row is there and as many frames
as that row names. Complete clips are committed every `CLIPS` clips or `SECONDS` seconds, whichever comes first: that is what
a kill can cost. A failed clip becomes a row of `failures`, once per try; it is never done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curate import detect, scan
from curate.plan import STEPS, Step, Work, failure_id
from infra import keys
from infra.catalog import Catalog, Done
from infra.clock import Clock

CLIPS = 64
SECONDS = 20.0

Row = dict[str, Any]


@dataclass(slots=True)
class Tally:
    """What a run did: step -> clips done and rows made; failed clips with their reason; frames looked at."""

    clips: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)
    n_frames: int = 0

    def add(self, step: str, n_clips: int, n_rows: int) -> None:
        self.clips[step] = self.clips.get(step, 0) + n_clips
        self.rows[step] = self.rows.get(step, 0) + n_rows


@dataclass(slots=True)
class _Open:
    frames: list[Row] = field(default_factory=list)
    end: Mapping[str, Any] | None = None


class Collector:
    """Gathers batches and commits.

    Args:
        catalog: where rows go.
        works: the clips of this run.
        sources: step -> `name@version` for its rows.
        classes: class names of the detector, in index order.
        dim: length of an embedding, 0 without one.
        clock: says when it is time to commit.
        tally: counts.
    """

    def __init__(
        self, catalog: Catalog, works: Iterable[Work], *, sources: Mapping[str, str], classes: Sequence[str], clock: Clock,
        tally: Tally,
    ) -> None:  # fmt: skip
        self._catalog, self._clock, self._tally = catalog, clock, tally
        self._works = {work.clip_id: work for work in works}
        self._sources, self._classes = sources, classes
        self._open: dict[str, _Open] = {}
        self._complete: list[tuple[Work, _Open]] = []
        self._since_ns = clock.mono_ns()

    def add(self, batch: Mapping[str, Any]) -> int:
        """Take one batch; return how many clips it completed."""
        columns = {name: column for name, column in batch.items() if not name.endswith("_rgb")}
        n_complete = 0
        for i, clip_id in enumerate(columns["clip_id"]):
            held = self._open.setdefault(str(clip_id), _Open())
            if columns["end"][i]:
                held.end = json.loads(columns["end"][i])
            else:
                held.frames.append({name: column[i] for name, column in columns.items()})
            if held.end is not None and len(held.frames) == held.end["n_frames"]:
                n_complete += 1
                self._finish(str(clip_id), self._open.pop(str(clip_id)))
        if len(self._complete) >= CLIPS or self._clock.mono_ns() - self._since_ns > SECONDS * 1e9:
            self.flush()
        return n_complete

    def _finish(self, clip_id: str, held: _Open) -> None:
        work = self._works[clip_id]
        assert held.end is not None
        if "error" in held.end:
            self._fail(work, held.end)
            return
        held.frames.sort(key=lambda row: int(row["pts"]))
        self._tally.n_frames += len(held.frames)
        self._complete.append((work, held))

    def _fail(self, work: Work, end: Mapping[str, Any]) -> None:
        step, fingerprint = next(iter(work.missing.items()))
        row = {
            "failure_id": failure_id(work.clip_id, step, fingerprint), "source_uri": work.clip["source_name"],
            "clip_id": work.clip_id, "step": step, "error_class": end["error_class"], "message": end["error"],
            "created_ns": self._clock.now_ns(),
        }  # fmt: skip
        self._catalog.append("failures", [row], clock=self._clock)
        self._tally.failed.append((str(work.clip["source_name"]), end["error"]))

    def incomplete(self) -> list[str]:
        """Return the clips of which something came back, but not their end."""
        return sorted(self._open)

    def flush(self) -> None:
        """Commit what is complete: one batch per step, in the order of the steps."""
        complete, self._complete = self._complete, []
        self._since_ns = self._clock.mono_ns()
        for step in STEPS:
            mine = [(work, held) for work, held in complete if step in work.missing and step != "tag"]
            if not mine:
                continue
            rows: dict[str, list[Row]] = {}
            done = []
            for work, held in mine:
                made = self._rows(step, work, held)
                for name, table_rows in made.items():
                    rows.setdefault(name, []).extend(table_rows)
                n_out = sum(map(len, made.values())) if step != "scan" else len(held.frames)
                n_in = int(work.clip["n_frames"]) if step == "scan" else len(held.frames)
                done.append(Done("clip", work.clip_id, step, work.missing[step], n_in, n_out))
            self._catalog.commit(rows, done, clock=self._clock)
            self._tally.add(step, len(mine), sum(row.n_out for row in done))

    def _rows(self, step: Step, work: Work, held: _Open) -> dict[str, list[Row]]:
        if step == "scan":
            assert held.end is not None
            frames = [{name: _plain(row[name]) for name in ("clip_id", "pts", *scan.MEASURES)} for row in held.frames]
            return {"gops": [{"clip_id": work.clip_id, **gop} for gop in held.end["gops"]], "frames": frames}
        if step == "detect":
            return {"detections": [row for frame in held.frames for row in self._detections(work.clip_id, frame)]}
        return {"embeddings": [self._embedding(work.clip_id, frame) for frame in held.frames]}

    def _detections(self, clip_id: str, frame: Row) -> list[Row]:
        pts, source = int(frame["pts"]), self._sources["detect"]
        return [
            {
                "clip_id": clip_id, "pts": pts, "det_id": keys.derived_id(clip_id, pts, source, number), "source": source,
                "class_name": box.class_name, "score": box.score, "x1": box.x1, "y1": box.y1, "x2": box.x2, "y2": box.y2,
            }
            for number, box in enumerate(detect.unpack(frame["detections"], self._classes))
        ]  # fmt: skip

    def _embedding(self, clip_id: str, frame: Row) -> Row:
        vector = frame["embedding"]
        return {
            "clip_id": clip_id, "pts": int(frame["pts"]), "det_id": None, "source": self._sources["embed"],
            "dim": len(vector) // 2, "vector": vector,
        }  # fmt: skip


def _plain(value: Any) -> Any:
    """Return a numpy scalar as Python's own; NaN, which batches use for unknown, as None."""
    made = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(made, float) and made != made else made
