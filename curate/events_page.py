"""A self-contained page of events: what was found, per camera and one by one, each with a picture of its peak.

At most `most` events are listed, those with the highest peaks, in the order of time; the page says how many it leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl

from curate.events import Events
from curate.layers import Layer
from curate.thumbnails import Thumbnail, thumbnails
from infra import page
from infra.catalog import Catalog
from infra.decoder import DecoderPool
from infra.page import Box, Markup

MOST: Final = 200
_CLIP: Final = ("clip_id", "key", "index", "width_px", "height_px")
_WIDTH_PX: Final = 180

Row = Mapping[str, Any]


def render(catalog: Catalog, layer: Layer, found: Events, *, most: int = MOST) -> str:
    """Return the page as HTML.

    Args:
        catalog: where clips and detections are.
        layer: what was looked for.
        found: what was found.
        most: events listed.
    """
    events = by_event(found.rows)
    shown = sorted(sorted(events, key=lambda rows: -_peak(rows))[:most], key=events.index)
    pictures = _pictures(catalog, [_best(rows) for rows in shown])
    boxes = _boxes(catalog, layer, [_best(rows) for rows in shown])
    totals = found.cameras.select(pl.sum("footage_s", "on_s", "unknown_s")).row(0, named=True)
    facts = {
        "events": f"{len(events):,}", "in events": length(totals["on_s"]), "of footage": length(totals["footage_s"]),
        "not looked at": length(totals["unknown_s"]), "cameras": found.cameras.height,
    }  # fmt: skip
    left_out = f"<p>The {most} with the highest peaks of {len(events):,} events; the others are in --csv.</p>" * (
        len(events) > most
    )
    columns = ["", "when (UTC)", "where", "length", "peak", "event"]
    rows = [_listed(rows, pictures.get(_frame(rows)), boxes.get(_frame(rows), [])) for rows in shown]
    body = [page.facts(facts), _cameras(found.cameras), "<h2>Events</h2>", left_out, page.table(columns, rows)]
    return page.page(f"Events: {layer.name}", body, lead=describe(layer))


def describe(layer: Layer) -> str:
    """Return in one sentence what makes an event of this layer."""
    parts = [] if layer.is_expression else [f"on from {layer.on:g}, off below {layer.off:g}"]
    parts += [f"at least {layer.least_s:g} s", f"joined over {layer.merge_s:g} s"]
    parts += [f"padded by {layer.pad_s:g} s"] if layer.pad_s else []
    if layer.dark:
        parts.append("thresholds by brightness " + ", ".join(f"{level:g}: x{factor:g}" for level, factor in layer.dark))
    if layer.hours:
        named = (f"{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}: x{factor:g}" for a, b, factor in layer.hours)
        parts.append("thresholds by hour " + ", ".join(named))
    return "; ".join(parts) + "."


def by_event(rows: pl.DataFrame) -> list[list[dict[str, Any]]]:
    """Return the rows of each event, in order."""
    events: dict[str, list[dict[str, Any]]] = {}
    for row in rows.iter_rows(named=True):
        events.setdefault(row["event_id"], []).append(row)
    return list(events.values())


def length(seconds: float) -> str:
    """Return a length for people: `7.2 s`, `3:05 min`, `25:00:00 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"


def utc(at_ns: int | None) -> str | None:
    """Return a UTC time as ISO 8601 with milliseconds; None when it is unknown."""
    if at_ns is None:
        return None
    seconds, rest = divmod(at_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03}Z"


def _peak(rows: Sequence[Row]) -> float:
    return max((row["peak"] for row in rows if row["peak"] is not None), default=0.0)


def _best(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: -1.0 if row["peak"] is None else float(row["peak"]))


def _frame(rows: Sequence[Row]) -> tuple[str, int]:
    best = _best(rows)
    return best["clip_id"], best["peak_pts"]


def _listed(rows: Sequence[Row], picture: Thumbnail | None, boxes: Sequence[Box]) -> list[object]:
    """Return the cells of one event."""
    first, last = rows[0], rows[-1]
    begins, ends = utc(first["start_utc_ns"]), utc(last["end_utc_ns"])
    day = "time unknown" if begins is None else begins[:10]
    times = "" if begins is None or ends is None else f"{begins[11:-1]} to {ends[11:-1]}"
    doubts = ["may have begun earlier"] * (not first["start_known"]) + ["may have gone on"] * (not last["end_known"])
    when = [_cell(day, times), _cell("", ", ".join(doubts))]
    where = [_cell(row["source_name"], f"{row['start_s']:.3f} to {row['end_s']:.3f} s") for row in rows]
    seconds = sum(row["end_s"] - row["start_s"] for row in rows)
    unknown = sum(row["unknown_s"] for row in rows)
    shown = Markup('<span class="soft">no picture: the clip is gone or cannot be decoded</span>')
    if picture is not None:
        scaled = [Box(x1=b.x1 * picture.scale, y1=b.y1 * picture.scale, x2=b.x2 * picture.scale, y2=b.y2 * picture.scale,
                      name=b.name) for b in boxes]  # fmt: skip
        drawn = page.picture(picture.jpeg, picture.width_px, picture.height_px, first["camera_id"], scaled)
        shown = Markup(f'<div style="width:{_WIDTH_PX}px">{drawn}</div>')
    held = _cell(length(seconds), f"{unknown:.1f} s of it unknown" if unknown >= 0.05 else "")
    return [
        shown,
        Markup("".join(when)),
        Markup("".join(where)),
        held,
        f"{_peak(rows):.3g}",
        Markup(f"<code>{first['event_id'][:8]}</code>"),
    ]


def _cell(head: str, note: str) -> Markup:
    return Markup(
        f'<div style="overflow-wrap:anywhere">{page.text(head)}</div>'
        f'<div class="soft" style="font-size:.82rem;white-space:nowrap">{page.text(note)}</div>'
    )


def _cameras(cameras: pl.DataFrame) -> str:
    rows = [
        (
            row["camera_id"], f"{row['n_events']:,}", length(row["footage_s"]), length(row["on_s"]), length(row["unknown_s"]),
            *(None if row[name] is None else f"{row[name]:.1%}" for name in ("share_on", "share_off", "share_unknown")),
        )
        for row in cameras.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["camera", "events", "footage", "in events", "not looked at", "frames on", "frames off", "unknown"]
    return page.table(columns, rows)


def _pictures(catalog: Catalog, wanted: Sequence[Row]) -> dict[tuple[str, int], Thumbnail]:
    by_clip: dict[str, list[int]] = {}
    for row in wanted:
        if row["peak_pts"] is not None:
            by_clip.setdefault(row["clip_id"], []).append(row["peak_pts"])
    clips = catalog.scan("clips", _CLIP).filter(pl.col("clip_id").is_in(list(by_clip))).collect()
    made: dict[tuple[str, int], Thumbnail] = {}
    with DecoderPool() as pool:
        for clip in clips.sort("clip_id").iter_rows(named=True):
            found = thumbnails(catalog.store, pool, clip, by_clip[clip["clip_id"]])
            made |= {(clip["clip_id"], pts): picture for pts, picture in found.items()}
    return made


def _boxes(catalog: Catalog, layer: Layer, wanted: Sequence[Row]) -> dict[tuple[str, int], list[Box]]:
    """Return the detections of the layer's class on the shown frames, those that reach `off`."""
    frames = {(row["clip_id"], row["peak_pts"]) for row in wanted}
    if layer.is_motion or layer.is_expression or not frames:
        return {}
    clip_ids = sorted({clip_id for clip_id, _ in frames})
    found = catalog.scan("detections").filter(
        pl.col("clip_id").is_in(clip_ids), pl.col("class_name") == layer.name, pl.col("score") >= layer.off
    )
    made: dict[tuple[str, int], list[Box]] = {}
    for row in found.collect().iter_rows(named=True):
        box = Box(x1=row["x1"], y1=row["y1"], x2=row["x2"], y2=row["y2"], name=f"{layer.name} {row['score']:.0%}")
        made.setdefault((row["clip_id"], row["pts"]), []).append(box)
    return {frame: boxes for frame, boxes in made.items() if frame in frames}
