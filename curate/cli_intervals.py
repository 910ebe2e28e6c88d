"""`camloop query --intervals LAYER`: where a layer is on, as a table, JSON, CSV or a page with pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infra.errors import UsageError

if TYPE_CHECKING:
    from curate.events import Events
    from curate.layers import Layer
    from curate.query import Footage, View
    from infra.console import Context

LISTED: Final = 40  # rows on a terminal without --list
_OWN: Final = ("on", "off", "least_s", "merge_s", "pad_s", "dark", "hours", "join_s", "page", "page_most")
_CSV: Final = (
    "camera_id", "clip_id", "source_name", "start_pts", "end_pts", "start_s", "end_s", "event_id", "peak", "start_utc",
    "end_utc", "recording_id", "layer", "source", "peak_pts", "unknown_s", "start_known", "end_known",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser, *, pages: bool = True) -> None:
    """Add what belongs to --intervals; `pages`: also what is written of it."""
    group = parser.add_argument_group("events (WHERE, --by and the like then hold for the intervals)")
    group.add_argument(
        "--intervals", metavar="LAYER", help="motion, a class such as person, or an expression such as \"lighting = 'night'\""
    )
    group.add_argument(
        "--on",
        type=float,
        metavar="X",
        help="score that begins one: share of the picture (.02; --motion 2: .0015) or class (.5)",
    )
    group.add_argument("--off", type=float, metavar="X", help="score below which it ends (default half of --on)")
    group.add_argument("--least-s", type=float, metavar="S", help="drop shorter ones (default .5)")
    group.add_argument("--merge-s", type=float, metavar="S", help="join those at most S seconds apart (default 1)")
    group.add_argument("--pad-s", type=float, metavar="S", help="add S seconds before and after (default 0)")
    group.add_argument("--dark", metavar="B=F,...", help="thresholds times F at brightness B (0..255), such as 20=4,60=2,120=1")
    group.add_argument("--hours", metavar="T-T=F,...", help="thresholds times F at these local hours, such as 22:00-06:00=3")
    group.add_argument("--join-s", type=float, metavar="S", help="a camera's clips at most S seconds apart are one recording")
    if not pages:
        return
    group.add_argument("--page", type=Path, metavar="FILE", help="write an HTML page of events with pictures")
    group.add_argument("--page-most", type=int, metavar="N", help="with at most N of them (default 200)")


def refuse_alone(arguments: argparse.Namespace) -> None:
    """Refuse what has no meaning without --intervals.

    Raises:
        UsageError: one of them was given.
    """
    given = [f"--{name.replace('_', '-')}" for name in _OWN if getattr(arguments, name, None) is not None]
    if given:
        raise UsageError(f"{', '.join(given)}: only together with --intervals LAYER, such as --intervals motion")


def run(asked: View, arguments: argparse.Namespace, context: Context) -> int:
    """Run `camloop query --intervals` on what `asked` returned, narrowed by the where-expression."""
    from curate import events

    layer, out = asked.layer, context.out
    assert layer is not None
    visible = asked.footage.clips.lazy().select("clip_id").collect()["clip_id"].to_list()
    found = events.find(asked.footage.catalog, layer, visible)
    if asked.text:
        found = found.only(asked.lazy().select("event_id", "clip_id", "start_pts").collect())
    document = _say(found, layer, asked, arguments, context)
    if arguments.columns:
        document["columns"] = asked.columns
        out.line(", ".join(asked.columns))
    if arguments.by:
        made = asked.distribution(by=arguments.by)
        document["distribution"] = made.table.to_dicts()
        out.table(
            "", [*arguments.by, "intervals", "seconds"], made.table.select(*arguments.by, "rows", "footage_s").iter_rows()
        )
    if arguments.csv:
        _table(found).write_csv(arguments.csv)
        document["csv"] = str(arguments.csv)
        out.line(f"written: {arguments.csv}")
    if arguments.page:
        from curate import events_page

        most = events_page.MOST if arguments.page_most is None else arguments.page_most
        arguments.page.write_text(
            events_page.render(asked.footage.catalog, layer, found, where=asked.text, most=most), encoding="utf-8"
        )
        document["page"] = str(arguments.page)
        out.line(f"written: {arguments.page}")
    out.document(document)
    return 0


def view(footage: Footage, arguments: argparse.Namespace) -> View:
    """Return the intervals that were asked for.

    Raises:
        UsageError: another unit, or a page that nobody wants.
        QueryError: a layer or a number that cannot be, or --min-score beside a layer with thresholds.
    """
    from curate.layers import read_dark, read_hours

    if arguments.unit == "clip":
        raise UsageError("--unit clip: with --intervals a row is an interval; leave one of them out")
    most = getattr(arguments, "page_most", None)
    if most is not None and (most < 1 or not arguments.page):
        raise UsageError(f"--page-most {most}: legal: 1 or more, together with --page FILE")
    given = {name: getattr(arguments, name) for name in _OWN[:8] if getattr(arguments, name) is not None}
    for name, read in (("dark", read_dark), ("hours", read_hours)):
        if name in given:
            given[name] = read(given[name])
    asked = footage.events(arguments.intervals, **given)
    if arguments.min_score is not None and asked.layer is not None and not asked.layer.is_expression:
        raise UsageError(f"--min-score {arguments.min_score:g}: {arguments.intervals} has its own thresholds, --on and --off")
    return asked


def _say(found: Events, layer: Layer, asked: View, arguments: argparse.Namespace, context: Context) -> dict[str, Any]:
    """Print what was found; return the document."""
    import dataclasses

    from curate.events_page import describe, length
    from curate.layers import ON
    from curate.scores import NO_DETECTOR, motion_versions
    from infra import views

    out, table = context.out, _table(found)
    n_events = table["event_id"].n_unique()
    totals = {name: float(found.cameras[name].sum()) for name in ("footage_s", "on_s", "unknown_s")}
    counted = f"{n_events:,} event{'s' if n_events != 1 else ''} of {layer.name} ({describe(layer).rstrip('.')})"
    out.line(f"{counted}   ({asked.footage.vault_state()})")
    out.table(
        "", ["camera", "events", "footage", "in events", "not looked at", "frames on", "off", "unknown"],
        [
            (row["camera_id"], row["n_events"], length(row["footage_s"]), length(row["on_s"]), length(row["unknown_s"]),
             *(None if row[name] is None else f"{row[name]:.1%}" for name in ("share_on", "share_off", "share_unknown")))
            for row in found.cameras.iter_rows(named=True)
        ],
    )  # fmt: skip
    versions = motion_versions(asked.footage.catalog) if layer.is_motion else ()
    if len(versions) > 1 and arguments.on is None:
        out.line(
            f"clips of this store have motion scores 1 and 2: on from {layer.on:g}, which suits score 1, by default; "
            f"--on {ON[2]:g} suits score 2"
        )
    if found.cameras["n_frames"].sum() == 0 and found.cameras.height:
        out.line("nothing was scanned yet: run camloop curate")
    elif layer.step == views.DETECT and views.looked_at(asked.footage.catalog).is_empty():
        out.line(NO_DETECTOR)
    shown = table.head(LISTED if arguments.list is None else arguments.list)
    out.table(
        "", ["camera", "file", "from s", "to s", "length s", "peak", "begins (UTC)", "event"],
        [
            (row["camera_id"], row["source_name"], f"{row['start_s']:.3f}", f"{row['end_s']:.3f}",
             round(row["end_s"] - row["start_s"], 3), row["peak"], row["start_utc"], row["event_id"][:8])
            for row in shown.iter_rows(named=True)
        ],
    )  # fmt: skip
    if shown.height < table.height:
        out.line(f"... and {table.height - shown.height:,} more (--list N, --csv FILE)")
    return {
        "layer": layer.name, "parameters": dataclasses.asdict(layer), "where": asked.text, "n_events": n_events,
        "motion_scores": list(versions),
        "n_intervals": table.height, **totals, "cameras": found.cameras.to_dicts(), "intervals": table.to_dicts(),
        "vault": str(asked.footage.vault_state()),
    }  # fmt: skip


def _table(found: Events) -> Any:
    """Return the rows as they go into CSV and JSON: UTC as ISO text, null where it is unknown."""
    import polars as pl

    from curate.events_page import utc

    times = {
        name: pl.Series([utc(at) for at in found.rows[f"{name}_ns"]], dtype=pl.String) for name in ("start_utc", "end_utc")
    }
    return found.rows.with_columns(**times).select(_CSV)
