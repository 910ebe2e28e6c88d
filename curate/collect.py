"""From batches to table rows: put clips together again, commit them in groups, one batch per step.

Frames arrive in any order and mixed with other clips'. A clip is complete when its end row is there and as many frames
as that row names. Complete clips are committed every 96th of the run (`LEAST_CLIPS` to `CLIPS` clips) or every `SECONDS`
seconds, whichever comes first: that is what a kill can cost, beside the clips that are in work. A failed clip becomes a row
of `failures`, once per try; it is never done.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from curate import cascade, crops, detect, scan, scene
from curate.cascade import Look
from curate.layers import ON
from curate.plan import STEPS, Step, Work, failure_id
from infra import keys
from infra.catalog import Catalog, Done
from infra.clock import Clock

CLIPS, LEAST_CLIPS = 64, 4
COMMITS = 96  # of a run that has the clips for it: what a killed driver costs is what was not committed
SECONDS = 20.0
PERSON: Final = "person"

Row = dict[str, Any]


@dataclass(slots=True)
class Flow:
    """What went through one stage so far.

    Attributes:
        n_in: frames that came to it; for decoding, frames of the clips.
        n_passed: of these, frames that met its condition; all without one.
        n_out: frames that it looked at: those that passed, and those looked at for the audit; for decoding, kept frames.
        n_found: of these, frames with a box from `cascade.MIN_SCORE` on; for other stages the same as n_out.
        seconds: that its workers were busy, in sum.
    """

    n_in: int = 0
    n_passed: int = 0
    n_out: int = 0
    n_found: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Seen:
    """What came of the clips of one camera so far: what the live funnel shows (`curate/live.py`).

    Attributes:
        n_clips: clips that came through or failed.
        n_failed: of these, failed.
        footage_s: their length, seconds.
        n_gops: GOPs of clips that were scanned.
        n_decoded: of these, decoded.
        n_moving: of these, with a frame that moves (`layers.ON`).
        n_looked: frames that the last detector looked at.
        n_found: of these, frames with what is sought (`Tally.sought`), from `cascade.MIN_SCORE` on.
        n_tagged: clips that were tagged.
    """

    n_clips: int = 0
    n_failed: int = 0
    footage_s: float = 0.0
    n_gops: int = 0
    n_decoded: int = 0
    n_moving: int = 0
    n_looked: int = 0
    n_found: int = 0
    n_tagged: int = 0


@dataclass(slots=True)
class Tally:
    """What a run did: step -> clips done and rows made; failed clips with their reason; frames looked at; stage -> its flow.

    `footage_s` is the length of the clips that came through, seconds; `cameras` what came of each camera's clips; `sought`
    what its `n_found` counts: "person", or "a box" where the last detector does not know persons.
    """

    clips: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)
    n_frames: int = 0
    footage_s: float = 0.0
    stages: dict[str, Flow] = field(default_factory=dict)
    cameras: dict[str, Seen] = field(default_factory=dict)
    sought: str = PERSON

    def seen(self, work: Work) -> Seen:
        """Return what came so far of the camera of a clip, to be added to."""
        return self.cameras.setdefault(str(work.clip["camera_id"]), Seen())

    def flow(self, stage: str, *, n_in: int, n_passed: int, n_out: int, n_found: int, seconds: float) -> None:
        """Add what one clip sent through a stage."""
        flow = self.stages.setdefault(stage, Flow())
        flow.n_in, flow.n_passed, flow.n_out = flow.n_in + n_in, flow.n_passed + n_passed, flow.n_out + n_out
        flow.n_found, flow.seconds = flow.n_found + n_found, flow.seconds + seconds

    def add(self, step: str, n_clips: int, n_rows: int) -> None:
        self.clips[step] = self.clips.get(step, 0) + n_clips
        self.rows[step] = self.rows.get(step, 0) + n_rows


@dataclass(slots=True)
class _Open:
    frames: list[Row] = field(default_factory=list)
    pts: set[int] = field(default_factory=set)
    end: Mapping[str, Any] | None = None


class Collector:
    """Gathers batches and commits.

    Args:
        catalog: where rows go.
        works: the clips of this run.
        looks: the models that looked, in order.
        clock: says when it is time to commit.
        tally: counts.
    """

    def __init__(
        self, catalog: Catalog, works: Iterable[Work], *, looks: Sequence[Look], clock: Clock, tally: Tally
    ) -> None:  # fmt: skip
        self._catalog, self._clock, self._tally = catalog, clock, tally
        self._works = {work.clip_id: work for work in works}
        self._looks = tuple(looks)
        self._judge = cascade.counting(looks)
        classes = self._judge.classes if self._judge else (PERSON,)
        tally.sought = tally.sought if PERSON in classes else "a box"
        self._sought = [number for number, name in enumerate(classes) if name == PERSON or PERSON not in classes]
        self._open: dict[str, _Open] = {}
        self._finished: set[str] = set()
        self._complete: list[tuple[Work, _Open]] = []
        self._n_clips = min(CLIPS, max(LEAST_CLIPS, len(self._works) // COMMITS))
        self._since_ns = clock.mono_ns()

    def add(self, batch: Mapping[str, Any]) -> int:
        """Take one batch; return how many clips it completed."""
        columns = {name: column for name, column in batch.items() if not name.endswith("_rgb")}
        n_complete = 0
        for i, clip_id in enumerate(columns["clip_id"]):
            if str(clip_id) in self._finished:  # Ray gives rows again when the worker dies that gave them
                continue
            held = self._open.setdefault(str(clip_id), _Open())
            if columns["end"][i]:
                held.end = json.loads(columns["end"][i])
            elif (pts := int(columns["pts"][i])) not in held.pts:
                held.pts.add(pts)
                held.frames.append({name: column[i] for name, column in columns.items()})
            if held.end is not None and len(held.frames) == held.end["n_frames"]:
                n_complete += 1
                self._finished.add(str(clip_id))
                self._finish(str(clip_id), self._open.pop(str(clip_id)))
        if len(self._complete) >= self._n_clips or self._clock.mono_ns() - self._since_ns > SECONDS * 1e9:
            self.flush()
        return n_complete

    def _finish(self, clip_id: str, held: _Open) -> None:
        work = self._works[clip_id]
        assert held.end is not None
        seen = self._tally.seen(work)
        seen.n_clips, seen.footage_s = seen.n_clips + 1, seen.footage_s + work.footage_s
        if "error" in held.end:
            seen.n_failed += 1
            self._fail(work, held.end)
            return
        held.frames.sort(key=lambda row: int(row["pts"]))
        self._tally.n_frames += len(held.frames)
        self._tally.footage_s += work.footage_s
        self._count(work, held)
        self._see(seen, held)
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
            rows = {"gops": [{"clip_id": work.clip_id, **gop} for gop in held.end["gops"]], "frames": frames}
            if "scene" in held.end:
                rows["scenes"] = [{"clip_id": work.clip_id, **scene.unpacked(held.end["scene"])}]
            return rows
        mine, clip_id = [look for look in self._looks if look.step == step], work.clip_id
        judge = cascade.counting(self._looks)
        table, rows_of = ("detections", _detections) if step == "detect" else ("embeddings", partial(_embeddings, judge))
        looked = [(look, frame) for frame in held.frames for look in mine if _looked(look, frame)]
        made = {table: [row for look, frame in looked for row in rows_of(look, clip_id, frame)]}
        if any(look.number is not None for look in mine):
            made["looks"] = [row for look in mine for row in _look_rows(look, clip_id, held.frames)]
        if "looks" in made and step == "detect":
            made["audits"] = [row for look in mine for row in _audit_rows(look, mine[-1], clip_id, held.frames)]
        return made

    def _count(self, work: Work, held: _Open) -> None:
        """Add a complete clip to the tally of every stage."""
        assert held.end is not None
        frames, n_clip = held.frames, int(work.clip["n_frames"])
        n, seconds = len(frames), float(held.end.get("seconds", 0.0))
        self._tally.flow("decode", n_in=n_clip, n_passed=n_clip, n_out=n, n_found=n, seconds=seconds)
        for look in self._looks:
            asked = [frame for frame in frames if look.number is None or not math.isnan(frame[look.p_look])]
            looked = [frame for frame in asked if _looked(look, frame)]
            found = [frame for frame in looked if look.step != "detect" or _has_box(frame[look.made])]
            n_passed = len(asked) if look.number is None else sum(bool(frame[look.met]) for frame in asked)
            self._tally.flow(
                look.name, n_in=len(asked), n_passed=n_passed, n_out=len(looked), n_found=len(found),
                seconds=sum(float(frame[look.seconds]) for frame in frames),
            )  # fmt: skip

    def _see(self, seen: Seen, held: _Open) -> None:
        """Add a complete clip to what came of its camera."""
        assert held.end is not None
        gops, judge = held.end.get("gops", ()), self._judge
        seen.n_gops += len(gops)
        seen.n_decoded += sum(bool(gop["decoded"]) for gop in gops)
        on = ON[2 if "scene" in held.end else 1]
        seen.n_moving += sum(any(score is not None and score >= on for score in gop["motion"] or ()) for gop in gops)
        looked = [frame[judge.made] for frame in held.frames if _looked(judge, frame)] if judge else []
        seen.n_looked += len(looked)
        seen.n_found += sum(_has_box(packed, self._sought) for packed in looked)


def _looked(look: Look, frame: Row) -> bool:
    return look.number is None or float(frame[look.p_look]) > 0


def _has_box(packed: bytes, classes: Sequence[int] | None = None) -> bool:
    """Say whether there is a box from `cascade.MIN_SCORE` on: of some classes, or of any."""
    rows = np.frombuffer(packed, dtype="<f4").reshape(-1, 6)
    enough = rows[:, 4] >= np.float32(cascade.MIN_SCORE)
    return bool((enough if classes is None else enough & np.isin(rows[:, 5], classes)).any())


def _detections(look: Look, clip_id: str, frame: Row) -> list[Row]:
    pts, source = int(frame["pts"]), look.source
    return [
        {
            "clip_id": clip_id, "pts": pts, "det_id": keys.derived_id(clip_id, pts, source, number), "source": source,
            "class_name": box.class_name, "score": box.score, "x1": box.x1, "y1": box.y1, "x2": box.x2, "y2": box.y2,
        }
        for number, box in enumerate(detect.unpack(frame[look.made], look.classes))
    ]  # fmt: skip


def _embeddings(judge: Look | None, look: Look, clip_id: str, frame: Row) -> list[Row]:
    """Return the vector of a frame, or those of its boxes, each under the det_id of its row in `detections`."""
    pts = int(frame["pts"])
    vectors: list[tuple[str | None, bytes]] = [(None, frame[look.made])]
    if look.crops is not None and judge is not None:
        found = crops.unpack(frame[look.made])
        vectors = [(keys.derived_id(clip_id, pts, judge.source, number), vector) for number, vector in found]
    same = {"clip_id": clip_id, "pts": pts, "source": look.source}
    return [same | {"det_id": det_id, "dim": len(vector) // 2, "vector": vector} for det_id, vector in vectors]


def _look_rows(look: Look, clip_id: str, frames: Sequence[Row]) -> list[Row]:
    """Return the rows of `looks` of one stage and clip: first one for the clip with its counts, then one per look."""
    same = {"clip_id": clip_id, "step": look.step, "stage": look.name, "number": look.number, "source": look.source}
    asked = [frame for frame in frames if not math.isnan(frame[look.p_look])]
    n_passed = sum(bool(frame[look.met]) for frame in asked)
    no_counts = {"n_in": None, "n_passed": None}
    whole = {**same, "pts": None, "p_look": look.audit, "passed": None, "n_in": len(asked), "n_passed": n_passed}
    return [whole] + [
        same | {"pts": int(frame["pts"]), "p_look": float(frame[look.p_look]), "passed": bool(frame[look.passed])} | no_counts
        for frame in asked
        if _looked(look, frame)
    ]


def _audit_rows(look: Look, judge: Look, clip_id: str, frames: Sequence[Row]) -> list[Row]:
    """Return the rows of `audits` of one stage and clip: what it would have dropped, and what the last detector found there."""
    audited = [frame for frame in frames if _looked(look, frame) and not frame[look.passed]]
    return [
        {
            "audit_id": keys.derived_id("audit", clip_id, int(frame["pts"]), look.name), "step": look.name, "clip_id": clip_id,
            "pts": int(frame["pts"]), "p_look": float(frame[look.p_look]), "dropped": True,
            "positive": _has_box(frame[judge.made]) if _looked(judge, frame) else None,
        }
        for frame in audited
    ]  # fmt: skip


def _plain(value: Any) -> Any:
    """Return a numpy scalar as Python's own; NaN, which batches use for unknown, as None."""
    made = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(made, float) and made != made else made
