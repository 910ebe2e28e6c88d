"""Events: where a layer is on, as intervals of clips, joined across the clip borders of a recording.

    clips -> chains of clips that follow each other -> scores on one time axis -> intervals -> cut at clip borders

Rows are a question, not a table: nothing is stored, so every threshold may be asked again. A row lies within one clip; the
rows of an event share an `event_id` = hash(recording, layer, source, first clip, first start_pts, min_score if not .25).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate import intervals
from curate.chains import COLUMNS, Chain, chains, length_ns, to_ns, to_pts
from curate.intervals import Rule, Runs, Samples
from curate.layers import Layer
from curate.scores import Scores, estimate, scores, stood_for
from infra import keys
from infra.catalog import Catalog
from infra.views import MIN_SCORE

Rows = list[dict[str, Any]]

EVENTS: Final = pl.Schema(
    {
        "camera_id": pl.String, "recording_id": pl.String, "clip_id": pl.String, "source_name": pl.String,
        "layer": pl.String, "source": pl.String, "event_id": pl.String, "start_pts": pl.Int64, "end_pts": pl.Int64,
        "start_s": pl.Float64, "end_s": pl.Float64, "start_utc_ns": pl.Int64, "end_utc_ns": pl.Int64, "peak": pl.Float64,
        "peak_pts": pl.Int64, "unknown_s": pl.Float64, "start_known": pl.Boolean, "end_known": pl.Boolean,
    }
)  # fmt: skip
"""Columns of `Events.rows`: [start_pts, end_pts) of the clip; `_s` = pts x time base; `_utc_ns` null where the clip's start
is unknown; `peak` the highest score at `peak_pts`, null in padding; `unknown_s` seconds of it without a score;
`start_known` whether what comes just before it was looked at (so that the event did begin here), `end_known` likewise."""


@dataclass(frozen=True, slots=True)
class Events:
    """The intervals of a layer, and what there was to look at.

    Attributes:
        rows: columns of `EVENTS`, by camera, then time.
        cameras: camera_id, n_events, footage_s, on_s (in intervals, padding included), unknown_s (without a score), and
            shares of the frames of all scanned clips, estimated (`scores.estimate`): share_on (score at least `on`),
            share_off, share_unknown; null where nothing was scanned.
    """

    rows: pl.DataFrame
    cameras: pl.DataFrame

    def only(self, wanted: pl.DataFrame) -> Events:
        """Return the rows named by (event_id, clip_id, start_pts); n_events and on_s count them alone."""
        rows = self.rows.join(wanted, on=["event_id", "clip_id", "start_pts"], how="semi", maintain_order="left")
        counts = rows.group_by("camera_id").agg(
            n_events=pl.col("event_id").n_unique().cast(pl.Int64), on_s=(pl.col("end_s") - pl.col("start_s")).sum()
        )
        cameras = self.cameras.drop("n_events", "on_s").join(counts, on="camera_id", how="left", maintain_order="left")
        return Events(rows, cameras.with_columns(pl.col("n_events", "on_s").fill_null(0)).select(_CAMERAS.names()))


_CAMERAS: Final = pl.Schema(
    {
        "camera_id": pl.String, "n_events": pl.Int64, "footage_s": pl.Float64, "on_s": pl.Float64, "unknown_s": pl.Float64,
        "n_frames": pl.Int64, "share_on": pl.Float64, "share_off": pl.Float64, "share_unknown": pl.Float64,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Marked:
    """What the scores of one clip say: runs in ns from its first frame, and `stood_for` of the frames on, off and looked at."""

    runs: Runs
    frames: NDArray[np.float64]


@dataclass(slots=True)
class _Total:
    """What was counted of one camera; `frames` as in `Marked`."""

    n_events: int = 0
    footage_s: float = 0.0
    on_s: float = 0.0
    known_s: float = 0.0
    frames: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 2)))

    def add_clip(self, marked: Marked) -> None:
        self.known_s += int((marked.runs.marks.end - marked.runs.marks.start).sum()) / 1e9
        self.frames += marked.frames

    def add_chain(self, chain: Chain, rows: Rows) -> None:
        self.n_events += len({row["event_id"] for row in rows})
        self.footage_s += int((chain.extent[:, 1] - chain.extent[:, 0]).sum()) / 1e9
        self.on_s += sum(row["end_s"] - row["start_s"] for row in rows)

    def row(self, n_frames: int) -> dict[str, Any]:
        on, off, looked = self.frames
        shares: list[float | None] = [None] * 3
        if n_frames:
            found = [estimate(part, looked, n_frames) / n_frames for part in (on, off)]
            shares = [*found, max(0.0, 1 - sum(found))]
        return {
            "n_events": self.n_events, "footage_s": self.footage_s, "on_s": self.on_s,
            "unknown_s": max(0.0, self.footage_s - self.known_s), "n_frames": n_frames,
            **dict(zip(("share_on", "share_off", "share_unknown"), shares, strict=True)),
    }  # fmt: skip


def find(catalog: Catalog, layer: Layer, clip_ids: Collection[str] | None = None) -> Events:
    """Return where a layer is on.

    Args:
        catalog: the tables.
        layer: what to look for.
        clip_ids: the clips to look at; None: all.

    Raises:
        QueryError: a class that was never found, or an expression with an unknown column.
    """
    catalog = catalog.at(catalog.snapshot())  # one state of the tables, whoever writes meanwhile
    clips = (
        catalog.scan("clips", [*COLUMNS, "n_frames", "source_name"])
        .filter(pl.col("first_pts").is_not_null(), pl.col("end_pts").is_not_null())
        .collect()
    )
    if clip_ids is not None:
        clips = clips.filter(pl.col("clip_id").is_in(list(clip_ids)))
    known = {clip["clip_id"]: clip for clip in clips.to_dicts()}
    by_clip = {clip_id: _mark(known[clip_id], found, layer) for clip_id, found in scores(catalog, layer, known)}
    sources = _sources(catalog, layer.step)
    rows: Rows = []
    totals: dict[str, _Total] = {str(name): _Total() for name in clips["camera_id"].unique().sort()}
    for clip_id, camera_id in clips.select("clip_id", "camera_id").sort("clip_id").iter_rows():
        if clip_id in by_clip:
            totals[camera_id].add_clip(by_clip[clip_id])
    for chain in chains(list(known.values()), layer.join_s):
        made = _events(chain, layer, by_clip, sources)
        totals[chain.clips[0]["camera_id"]].add_chain(chain, made)
        rows += made
    scanned = clips.join(catalog.scan("gops", ["clip_id"]).unique().collect(), on="clip_id", how="semi")
    of_camera = dict(scanned.group_by("camera_id").agg(pl.col("n_frames").sum()).iter_rows())
    order = ["camera_id", "start_utc_ns", "recording_id"]
    return Events(
        pl.DataFrame(rows, EVENTS).sort(order, nulls_last=True, maintain_order=True),
        pl.DataFrame([{"camera_id": name, **total.row(of_camera.get(name, 0))} for name, total in totals.items()], _CAMERAS),
    )


def _mark(clip: Mapping[str, Any], found: Scores, layer: Layer) -> Marked:
    start, end = (to_ns(at, clip, 0) for at in (found.pts, found.end_pts))
    length = length_ns(clip)
    is_inside = (start >= 0) & (start < length)
    samples = Samples(start[is_inside], np.minimum(end, length)[is_inside], found.value[is_inside])
    factor, p_keep = found.factor[is_inside], found.p_keep[is_inside]
    on, off = ((level * factor).astype(np.float32).astype(np.float64) for level in (layer.on, layer.off))  # as scores are kept
    is_on = samples.value >= on
    frames = np.stack([stood_for(p_keep[is_on]), stood_for(p_keep[~is_on]), found.looked])
    return Marked(intervals.runs(samples, on, off), frames)


def _sources(catalog: Catalog, step: str) -> dict[str, str]:
    """Return clip_id -> `step@fingerprint` of what made its scores."""
    live = catalog.live().filter(pl.col("step") == step, pl.col("scope") == "clip")
    return {
        clip_id: f"{step}@{fingerprint[:12]}" for clip_id, fingerprint in live.select("scope_id", "fingerprint").iter_rows()
    }


def _events(chain: Chain, layer: Layer, by_clip: Mapping[str, Marked], sources: Mapping[str, str]) -> Rows:
    """Return the rows of one chain, in order."""
    offsets = zip(chain.clips, chain.extent[:, 0].tolist(), strict=True)
    runs = intervals.joined([by_clip[clip["clip_id"]].runs.later(at) for clip, at in offsets if clip["clip_id"] in by_clip])
    first, bounds = chain.clips[0], (int(chain.extent[0, 0]), int(chain.extent[-1, 1]))
    rule = Rule(**{name: round(getattr(layer, f"{name}_s") * 1e9) for name in ("merge", "least", "pad")})
    source = sources.get(first["clip_id"], f"{layer.step}@unknown" if layer.step != "where" else "where@1")
    counted = [] if layer.min_score == MIN_SCORE else [repr(layer.min_score)]  # so that ids with the default stay
    rows: Rows = []
    for start, end in runs.find(rule, bounds).tolist():
        pieces = intervals.cut((start, end), chain.extent)
        begins = chain.clips[pieces[0][0]]
        start_pts = to_pts(start, begins, int(chain.extent[pieces[0][0], 0]))
        recording = first["recording_id"] or first["clip_id"]
        event_id = keys.derived_id(recording, layer.name, source, begins["clip_id"], start_pts, *counted)
        common = {"layer": layer.name, "source": source, "event_id": event_id}
        rows += [common | _piece(chain, runs, piece) for piece in pieces]
        _, rows[-len(pieces)]["start_known"], rows[-1]["end_known"] = intervals.known((start, end), runs.marks)
    return rows


def _piece(chain: Chain, runs: Runs, piece: tuple[int, int, int]) -> dict[str, Any]:
    """Return what a row says of the part of an event that lies in one clip."""
    number, start, end = piece
    clip, offset = chain.clips[number], int(chain.extent[number, 0])
    start_pts, end_pts = to_pts(start, clip, offset), to_pts(end, clip, offset)
    tick_s = clip["time_base_num"] / clip["time_base_den"]
    peak, at = runs.highest(start, end) or (None, None)
    utc_ns = clip["start_ns"]
    return {
        **{name: clip[name] for name in ("camera_id", "recording_id", "clip_id", "source_name")},
        "start_pts": start_pts, "end_pts": end_pts, "start_s": start_pts * tick_s, "end_s": end_pts * tick_s,
        "start_utc_ns": None if utc_ns is None else utc_ns + start - offset,
        "end_utc_ns": None if utc_ns is None else utc_ns + end - offset,
        "peak": peak, "peak_pts": None if at is None else to_pts(at, clip, offset),
        "unknown_s": (end - start - intervals.known((start, end), runs.marks)[0]) / 1e9,
        "start_known": True, "end_known": True,
    }  # fmt: skip
