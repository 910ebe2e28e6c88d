"""The page of a run: the funnel, what each stage took and cost, examples of what it kept and dropped, and what was lost.

    tables -> funnel, losses        the run's tally -> stages        a draw by hash -> example frames -> pictures

Everything but the stages is read from the tables, so the page also says what earlier runs did. Examples are drawn by a hash
of (clip_id, pts), not chosen: the same store shows the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from curate import losses, thumbnails
from curate.collect import Tally
from curate.funnel import Stage, funnel
from curate.query import Footage
from curate.run import Result
from curate.scores import motion_on
from infra import durable, keys, page, views
from infra.clock import Clock
from infra.page import Markup
from infra.words import duration

EXAMPLES: Final = 6  # of each kind
CAMERAS: Final = 60  # with more, a table of each camera would be the page
_DRAWN_FROM: Final = 20_000  # kept frames of a kind among which examples are drawn


def write(path: Path, footage: Footage, result: Result, *, clock: Clock) -> None:
    """Write the page of a run.

    Args:
        path: the HTML file.
        footage: the store.
        result: what the run did.
        clock: stamps the page.

    Raises:
        OSError: it cannot be written.
    """
    durable.write(path, render(footage, result, clock=clock).encode())


def render(footage: Footage, result: Result, *, clock: Clock) -> str:
    """Return the page as HTML."""
    from datetime import UTC, datetime

    stages = funnel(footage)
    found = {stage.name: stage for stage in stages}
    person = next(stage for stage in stages if stage.name.startswith("with "))
    facts = {
        "of footage": duration(found["clips"].footage_s), "decoded": _share(found["decoded"]),
        "moving": _share(found["moving"]),
        person.name: _share(person), "clips failed": len(result.tally.failed),
        "this run": f"{result.seconds.get('all', 0.0):.0f} s",
    }  # fmt: skip
    body = [page.facts(facts), _funnel(stages), *_by_camera(footage), _stages(result.tally), _losses(footage)]
    body += [*_examples(footage), _failures(result.tally)]
    made = datetime.fromtimestamp(clock.now_ns() / 1e9, UTC)
    lead = f"{footage.catalog.store.url}, {made:%Y-%m-%d %H:%M} UTC, {footage.vault_state()}."
    return page.page("camloop curate", body, lead=lead)


def _share(stage: Stage) -> str:
    return "-" if stage.share is None else f"{stage.share:.1%}"


def _funnel(stages: Sequence[Stage]) -> str:
    rows = [
        (stage.name, stage.rows, stage.unit, duration(stage.footage_s), _share(stage), _bar(stage.share)) for stage in stages
    ]
    note = "<p class='soft'>Moving, with and tagged are estimates for all footage: what was looked at by chance counts 1/p.</p>"
    return "<h2>Funnel</h2>" + page.table(["", "rows", "", "footage", "share", ""], rows) + note


def _bar(share: float | None) -> Markup:
    width = 260 * min(share or 0.0, 1.0)
    bar = f'<rect width="{max(width, 1):.1f}" height="12" rx="3" fill="var(--accent)"/>'
    return Markup(f'<svg width="264" height="14" role="img">{bar}</svg>')


def _by_camera(footage: Footage) -> list[str]:
    stages = funnel(footage, by_camera=True)
    cameras = list(dict.fromkeys(stage.camera_id for stage in stages))
    if not 1 < len(cameras) <= CAMERAS:
        return []
    rows = []
    for camera in cameras:
        mine = [stage for stage in stages if stage.camera_id == camera]
        rows.append((camera, duration(mine[0].footage_s), *(_share(stage) for stage in mine[1:])))
    return ["<h3>Each camera</h3>", page.table(["camera", "footage", *(stage.name for stage in stages[1:7])], rows)]


def _stages(tally: Tally) -> str:
    if not tally.stages:
        return "<h2>Stages</h2><p>This run decoded nothing.</p>"
    busy = sum(flow.seconds for flow in tally.stages.values()) or 1.0
    rows = [
        (
            name, flow.n_in, flow.n_passed, flow.n_out, flow.n_found, f"{flow.seconds:.1f} s", f"{flow.seconds / busy:.0%}",
            f"{24 * flow.seconds / tally.footage_s:.2f}" if tally.footage_s else None,
        )
        for name, flow in tally.stages.items()
    ]  # fmt: skip
    columns = ["stage", "in", "passed its condition", "looked at", "found", "busy", "share", "core-hours a camera-day"]
    note = "<p class='soft'>Looked at beyond what passed: the audit. Busy: of all workers together.</p>"
    return f"<h2>What this run did, stage by stage</h2>{page.table(columns, rows)}{note}"


def _losses(footage: Footage) -> str:
    found = losses.losses(footage)
    head = "<h2>What the filters lost</h2>"
    if not found:
        return head + "<p>Nothing was filtered: every frame of the grid was looked at by every model.</p>"
    rows = []
    for loss in found:
        of = loss.audit
        needed = loss.needed
        rows.append(
            (
                loss.filter, loss.unit, of.n_in, of.n_kept, of.n_looked, of.n_found,
                page.interval(of.recall, of.low, of.high, None, "open"),
                "-" if of.recall is None else f"{of.recall:.3f} [{of.low:.3f}, {of.high:.3f}]",
                *(needed[wanted] for wanted in losses.WANTED),
            )
        )  # fmt: skip
    columns = ["filter", "unit", "in", "kept", "dropped, looked at", "found in these", "recall", "95 %"]
    columns += [f"looks for {wanted:g}" for wanted in losses.WANTED]
    return head + page.table(columns, rows)


def _examples(footage: Footage) -> list[str]:
    frames = footage.frames.lazy()
    names = frames.collect_schema().names()
    looked = pl.col("n_person") if "n_person" in names else pl.lit(None, pl.Int64)
    moves = pl.col("motion_score") >= motion_on(footage.catalog)
    kinds = {
        "Kept: a person was found": looked > 0,
        "Moving, looked at, no person": moves & (looked == 0),
        "Moving, not looked at by a detector": moves & looked.is_null(),
        "Still": ~moves,
    }
    drawn = {title: _drawn(frames.filter(condition)) for title, condition in kinds.items()}
    shown = [frame for rows in drawn.values() for frame in rows.select("clip_id", "pts").iter_rows()]
    pictures = thumbnails.pictures(footage.catalog, shown)
    boxes = thumbnails.boxes(
        footage.catalog, shown, pl.col("score") >= views.MIN_SCORE, lambda row: f"{row['class_name']} {row['score']:.2f}"
    )
    body = ["<h2>Examples</h2><p class='soft'>Drawn by a hash of clip and frame, not chosen.</p>"]
    for title, rows in drawn.items():
        tiles = []
        for row in rows.iter_rows(named=True):
            frame = row["clip_id"], row["pts"]
            if frame in pictures:
                tiles.append(pictures[frame].drawn(_title(row), boxes.get(frame, [])))
        if rows.height:
            body.append(f"<h3>{page.text(title)}</h3>{page.tiles(tiles)}")
    return body


def _drawn(frames: pl.LazyFrame) -> pl.DataFrame:
    rows = frames.select("clip_id", "camera_id", "pts", "pts_s", "motion_score").head(_DRAWN_FROM).collect()
    turns = [keys.derived_id("example", clip_id, pts) for clip_id, pts in rows.select("clip_id", "pts").iter_rows()]
    return rows.with_columns(turn=pl.Series(turns, dtype=pl.String)).sort("turn").head(EXAMPLES)


def _title(row: Mapping[str, Any]) -> str:
    score = "" if row["motion_score"] is None else f", motion {row['motion_score']:.3f}"
    return f"{row['camera_id']}, clip {row['clip_id'][:8]} at {row['pts_s']:.1f} s{score}"


def _failures(tally: Tally) -> str:
    if not tally.failed:
        return ""
    return "<h2>Failed</h2>" + page.table(["clip", "why"], tally.failed[:50])
