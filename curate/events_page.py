"""A self-contained page of events: what was found, per camera and one by one, each with a picture of its peak.

At most `most` events are listed, those with the highest peaks, in the order of time; the page says how many it leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import polars as pl

from curate import thumbnails
from curate.events import Events
from curate.layers import Layer
from curate.thumbnails import Frame, Thumbnail
from infra import page, views
from infra.catalog import Catalog
from infra.page import Box, Markup

MOST: Final = 200
PIECES: Final = 4  # files of one event that are named
DAYS: Final = 62  # days in the calendar of a camera
_WIDTH_PX: Final = 180

Row = Mapping[str, Any]


def render(catalog: Catalog, layer: Layer, found: Events, *, where: str = "", most: int = MOST) -> str:
    """Return the page as HTML.

    Args:
        catalog: where clips and detections are.
        layer: what was looked for.
        found: what was found.
        where: the expression that chose among it.
        most: events listed.
    """
    zones = views.clips_view(catalog).select("clip_id", pl.col("time_zone").fill_null("UTC")).collect()
    found_rows = found.rows.join(zones, on="clip_id", how="left", maintain_order="left")
    events = by_event(found_rows)
    shown = sorted(sorted(events, key=lambda rows: -_peak(rows))[:most], key=events.index)
    frames = [frame for frame in map(_frame, shown) if frame[1] is not None]
    pictures, boxes = thumbnails.pictures(catalog, frames), _boxes(catalog, layer, frames)
    totals = found.cameras.select(pl.sum("footage_s", "on_s", "unknown_s")).row(0, named=True)
    facts = {
        "events": f"{len(events):,}", "in events": length(totals["on_s"]), "of footage": length(totals["footage_s"]),
        "not looked at": length(totals["unknown_s"]), "cameras": found.cameras.height,
    }  # fmt: skip
    left_out = f"<p>The {most} with the highest peaks of {len(events):,} events; the others are in --csv.</p>" * (
        len(events) > most
    )
    columns = ["", f"when ({_zones(found_rows)})", "where", "length", "peak", "event"]
    rows = [_listed(rows, pictures.get(_frame(rows)), boxes.get(_frame(rows), [])) for rows in shown]
    chosen = f"<p>Only where <code>{page.text(where)}</code>.</p>" if where else ""
    spread = [_calendar(str(key[0]), part) for key, part in found_rows.partition_by("camera_id", as_dict=True).items()]
    body = [page.facts(facts), chosen, _cameras(found.cameras), *spread, "<h2>Events</h2>", left_out, page.table(columns, rows)]
    return page.page(f"Events: {layer.name}", body, lead=describe(layer))


def describe(layer: Layer) -> str:
    """Return in one sentence what makes an event of this layer."""
    parts = [] if layer.is_expression else [f"on from {layer.on:g}, off below {layer.off:g}"]
    parts += [f"detections count from {layer.min_score:g}"] if layer.min_score != views.MIN_SCORE else []
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
    return None if at_ns is None else f"{local(at_ns, 'UTC')}Z"


def local(at_ns: int, time_zone: str) -> str:
    """Return a UTC time as the digits of a zone's clocks, such as `2026-01-09T10:00:00.001`."""
    seconds, rest = divmod(at_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, ZoneInfo(time_zone)):%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03}"


def _zones(rows: pl.DataFrame) -> str:
    """Return the zones in which times are shown; without any time UTC's."""
    return ", ".join(rows.filter(pl.col("start_utc_ns").is_not_null())["time_zone"].unique().sort()) or "UTC"


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
    begins_ns, ends_ns, zone = first["start_utc_ns"], last["end_utc_ns"], first["time_zone"]
    day = "time unknown" if begins_ns is None else f"{local(begins_ns, zone)[:10]} {zone}"
    times = "" if None in (begins_ns, ends_ns) else f"{local(begins_ns, zone)[11:]} to {local(ends_ns, zone)[11:]}"
    doubts = ["may have begun earlier"] * (not first["start_known"]) + ["may have gone on"] * (not last["end_known"])
    when = [_cell(day, times), _cell("", ", ".join(doubts))]
    shown_rows = rows if len(rows) <= PIECES else [*rows[: PIECES - 1], rows[-1]]
    where = [_cell(row["source_name"], f"{row['start_s']:.3f} to {row['end_s']:.3f} s") for row in shown_rows]
    if len(rows) > PIECES:
        where.insert(PIECES - 1, _cell("", f"... {len(rows) - PIECES} more files ..."))
    seconds = sum(row["end_s"] - row["start_s"] for row in rows)
    unknown = sum(row["unknown_s"] for row in rows)
    shown = Markup('<span class="soft">no picture: the clip is gone or cannot be decoded</span>')
    if picture is not None:
        shown = Markup(f'<div style="width:{_WIDTH_PX}px">{picture.drawn(first["camera_id"], boxes)}</div>')
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


def _calendar(camera_id: str, rows: pl.DataFrame) -> str:
    """Return days (down) by hours of the camera's zone (across): the darker, the more of the hour lies in events.

    Nothing without times. An event that a change of the clocks falls into stands as by the clocks of its beginning.
    """
    hour_ns = 3_600_000_000_000
    held: dict[tuple[int, int], int] = {}  # (day, hour) -> ns in events
    for start_ns, end_ns, zone in rows.select("start_utc_ns", "end_utc_ns", "time_zone").drop_nulls().iter_rows():
        ahead_ns = _ahead_ns(start_ns, zone)
        start, end = start_ns + ahead_ns, end_ns + ahead_ns
        for hour in range(start // hour_ns, -(-end // hour_ns)):
            held[divmod(hour, 24)] = held.get(divmod(hour, 24), 0) + min(end, (hour + 1) * hour_ns) - max(start, hour * hour_ns)
    days = sorted({day for day, _ in held})[-DAYS:]
    if not days:
        return ""
    cell, left, top = 22, 84, 18
    parts = [f'<text class="soft" x="{left + hour * cell}" y="12">{hour:02}</text>' for hour in range(0, 24, 3)]
    for line, day in enumerate(days):
        y, name = top + line * 14, datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")
        parts.append(f'<text class="soft" x="0" y="{y + 10}">{name}</text>')
        for hour in range(24):
            share = min(1.0, held.get((day, hour), 0) / hour_ns)
            colour = (
                f'fill="var(--accent)" opacity="{0.15 + 0.85 * share**0.5:.2f}"'
                if share
                else 'fill="var(--line)" opacity=".45"'
            )
            title = f"<title>{name} {hour:02}h: {length(share * 3600)} in events</title>"
            parts.append(
                f'<rect x="{left + hour * cell}" y="{y}" width="{cell - 2}" height="12" rx="2" {colour}>{title}</rect>'
            )
    width, height = left + 24 * cell, top + 14 * len(days)
    svg = f'<svg viewBox="0 0 {width} {height}" style="width:100%;max-width:{width}px" role="img">{"".join(parts)}</svg>'
    return (
        f'<div class="card"><h3>{page.text(camera_id)}: days with events, by hour ({page.text(_zones(rows))})</h3>{svg}</div>'
    )


def _ahead_ns(at_ns: int, time_zone: str) -> int:
    """Return by how much a zone's clocks are ahead of UTC at a time."""
    ahead = datetime.fromtimestamp(at_ns // 1_000_000_000, ZoneInfo(time_zone)).utcoffset()
    return 0 if ahead is None else round(ahead.total_seconds()) * 1_000_000_000


def _boxes(catalog: Catalog, layer: Layer, frames: Sequence[Frame]) -> dict[Frame, list[Box]]:
    """Return the detections of the layer's class on the shown frames, those that reach `off`."""
    if layer.is_motion or layer.is_expression or not frames:
        return {}
    which = (pl.col("class_name") == layer.name) & (pl.col("score") >= layer.off)
    return thumbnails.boxes(catalog, frames, which, lambda row: f"{row['score']:.0%}")
