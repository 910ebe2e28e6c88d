"""`camloop query | sample | dataset`: arguments in, `curate`'s functions, words out.

Nothing heavy is imported until a command runs, so that --help is quick and a light install can show it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from curate import cli_audit, cli_coverage, cli_intervals
from infra import durable
from infra.errors import UsageError

if TYPE_CHECKING:
    from curate.query import Footage, View
    from infra.artefacts import Selection
    from infra.console import Context

_LISTED = ("source_name", "camera_id", "day", "pts_s", "start_pts", "end_pts", "label", "lighting", "n_frames", "codec")
_EXCLUDED: Final = {
    "audit": ("coverage", "intervals", "list", "csv", "columns"),
    "coverage": ("intervals", "by", "list", "csv", "columns", "min_score"),
}  # mode of `camloop query` -> what has no meaning beside it


def _footage(context: Context, *, vault: bool = False) -> Footage:
    from curate.query import open_catalog

    return open_catalog(context.store, vault=vault)


# query


def query(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop query`."""
    parser.add_argument("where", nargs="?", default="", metavar="WHERE", help="such as \"n_person > 0 and lighting = 'night'\"")
    _add_view(parser, default="frame")
    parser.add_argument(
        "--by", type=_names, default=[], metavar="A,B", help="show how rows and footage spread over these columns"
    )
    parser.add_argument("--list", type=int, metavar="N", help="show the first N rows")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all rows")
    parser.add_argument("--columns", action="store_true", help="show the names that WHERE and --by may use")
    cli_intervals.add_arguments(parser)
    cli_audit.add_arguments(parser)
    cli_coverage.add_arguments(parser)
    parser.set_defaults(run=run_query)


def _add_view(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--unit", choices=("frame", "clip", "interval"), default=default, help=f"what a row is (default {default})"
    )
    parser.add_argument("--min-score", type=float, metavar="S", help="detections count from this score (default .25)")
    parser.add_argument("--vault", action="store_true", help="also the held-out part; recorded as a run")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _view(arguments: argparse.Namespace, context: Context) -> View:
    from infra.runs import recorded

    footage = _footage(context, vault=arguments.vault)
    if arguments.vault:
        with recorded(footage.catalog, "vault", vars(arguments), clock=context.clock) as run:
            run.outputs["vault"] = str(footage.vault_state())
    view = footage.view(arguments.unit) if arguments.intervals is None else cli_intervals.view(footage, arguments)
    view = view if arguments.min_score is None else view.counting(arguments.min_score)
    return view.where(arguments.where) if arguments.where else view


def _refuse_together(arguments: argparse.Namespace) -> None:
    """Refuse two modes at once, what a mode does not use, and a number of rows that is none."""
    given = {name for name, value in vars(arguments).items() if not (value is None or value is False or value == [])}
    for mode, others in _EXCLUDED.items():
        beside = [f"--{name.replace('_', '-')}" for name in others if name in given]
        if mode in given and beside:
            raise UsageError(f"--{mode} and {', '.join(beside)} exclude each other")
    if arguments.list is not None and arguments.list < 0:
        raise UsageError(f"--list {arguments.list}: give 0 or more")


def run_query(arguments: argparse.Namespace, context: Context) -> int:
    """Run `camloop query`."""
    _refuse_together(arguments)
    if arguments.intervals is None:
        cli_intervals.refuse_alone(arguments)
    if arguments.coverage:
        durable.check_writable(arguments.coverage, f"--coverage {arguments.coverage}")
    else:
        cli_coverage.refuse_alone(arguments)
    cli_audit.refuse_alone(arguments)
    for path in filter(None, (arguments.csv, arguments.page)):
        durable.check_writable(path, str(path), in_place=True)
    view, out = _view(arguments, context), context.out
    if arguments.audit:
        return cli_audit.run(view, arguments, context)
    if arguments.intervals is not None:
        return cli_intervals.run(view, arguments, context)
    if arguments.coverage:
        return cli_coverage.run(arguments, context, view.footage)
    document: dict[str, Any] = {"unit": view.unit, "where": view.text, "count": view.count()}
    document["vault"] = str(view.footage.vault_state())
    out.line(f"{document['count']:,} {view.unit}s{' where ' + view.text if view.text else ''}   ({document['vault']})")
    if arguments.columns:
        document["columns"] = view.columns
        out.line(", ".join(view.columns))
    if arguments.by:
        made = view.distribution(by=arguments.by)
        document["distribution"] = made.table.to_dicts()
        document["footage_s"], document["denominator_s"] = made.footage_s, made.denominator_s
        rows = [_cells(row, len(arguments.by)) for row in made.table.iter_rows()]
        out.table("", [*arguments.by, "rows", "share", "footage s", "share of footage"], rows)
        out.line(f"they stand for {made.footage_s:,.0f} s of {made.denominator_s:,.0f} s of footage")
    if arguments.list is not None:
        shown = view.lazy().head(arguments.list).collect()
        document["rows"] = shown.to_dicts()
        useful = [name for name in _LISTED if name in shown.columns and shown[name].null_count() < shown.height]
        counts = [name for name in shown.columns if name.startswith("n_") and any(shown[name].fill_null(0))]
        useful += [name for name in counts if name not in useful][: 10 - len(useful)]
        out.table("", useful, shown.select(useful).iter_rows())
    if arguments.csv:
        import polars as pl

        lazy = view.lazy()
        lists = [name for name, dtype in lazy.collect_schema().items() if dtype.is_nested() or dtype == pl.Binary]
        lazy.drop(lists).collect().write_csv(arguments.csv)
        out.line(f"written: {arguments.csv}")
        document["csv"] = str(arguments.csv)
    out.document(document)
    return 0


def _cells(row: Sequence[Any], n_by: int) -> list[Any]:
    values = ["unknown" if value is None else str(value) for value in row[:n_by]]
    rows, share_rows, footage_s, share_footage = row[n_by:]
    return [*values, rows, f"{share_rows:6.1%}", round(footage_s), f"{share_footage:6.1%}"]


# sample


def sample(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop sample`."""
    parser.add_argument("name", metavar="NAME", help="what the selection is called")
    parser.add_argument("n", metavar="N", help="how many rows, or all")
    parser.add_argument("--where", default="", metavar="WHERE", help="as in camloop query")
    _add_view(parser, default="interval")
    parser.add_argument("--by", type=_names, default=[], metavar="A,B", help="columns whose combinations are balanced")
    parser.add_argument(
        "--strategy", choices=("balanced", "random", "undersample"), help="default: balanced with --by, else random"
    )
    parser.add_argument("--shares", metavar="V=S,...", help="shares of the values of the one --by column, such as night=.4")
    parser.add_argument("--seed", type=int, default=7, help="another seed draws others (default 7)")
    parser.add_argument("--purpose", choices=("train", "label", "evaluate", "export"), default="train")
    parser.add_argument("--split", metavar="P=S,...", help="train=.6,val=.2,test=.2; needs --split-by")
    parser.add_argument(
        "--split-by", metavar="COLUMN", help="what stays together: recording_id, camera_id, day, site, source_group"
    )
    parser.add_argument("--force-leak", action="store_true", help="keep a split that leaks; the selection says so for ever")
    cli_intervals.add_arguments(parser, pages=False)
    parser.set_defaults(run=run_sample)


def run_sample(arguments: argparse.Namespace, context: Context) -> int:
    """Run `camloop sample`."""
    from curate import datasets
    from curate.split import parse_shares
    from infra.runs import recorded

    if arguments.intervals is None:
        cli_intervals.refuse_alone(arguments)
    view = _view(arguments, context)
    catalog = view.footage.catalog
    with recorded(catalog, "sample", vars(arguments), clock=context.clock) as run:
        selection = view.sample(
            _count(arguments.n), by=arguments.by, strategy=arguments.strategy, shares=_shares(arguments.shares),
            seed=arguments.seed, name=arguments.name, purpose=arguments.purpose, split_by=arguments.split_by,
            split=parse_shares(arguments.split) if arguments.split else None, force_leak=arguments.force_leak,
        )  # fmt: skip
        if not selection.rows:
            raise UsageError(f"nothing to draw from: {view!r}; camloop query shows what there is")
        selection_id = datasets.save(catalog, selection, clock=context.clock)
        run.inputs["snapshot"], run.outputs["selection_id"] = dict(selection.snapshots), selection_id
    _say_selection(context, selection, selection_id)
    return 0


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise UsageError(f"N is {text!r}; legal: a number of rows, or all")
    return int(text)


def _shares(text: str | None) -> dict[str, float] | None:
    if not text:
        return None
    shares = {}
    for part in text.split(","):
        value, equals, number = part.rpartition("=")
        try:
            shares[value.strip()] = float(number)
        except ValueError as error:
            raise UsageError(f"--shares {part!r}: write VALUE=SHARE, such as night=.4") from error
        if not equals:
            raise UsageError(f"--shares {part!r}: write VALUE=SHARE, such as night=.4")
    return shares


def _say_selection(context: Context, selection: Selection, selection_id: str) -> None:
    from collections import Counter

    from infra.artefacts import SPLITS

    out = context.out
    out.line(f"{selection.name}: {len(selection.rows)} {selection.unit}s of {selection.extra['n_candidates']} found")
    by = selection.extra["by"]
    if by:
        cells = Counter(tuple(row.columns[name] for name in by) for row in selection.rows)
        out.table(
            "", [*by, "drawn"], [(*map(str, cell), n) for cell, n in sorted(cells.items(), key=lambda pair: str(pair[0]))]
        )
    parts = [name for name in SPLITS if selection.split(name)]
    if parts:
        labels = Counter((row.split, row.label or "-") for row in selection.rows)
        names = sorted({label for _, label in labels})
        groups = {part: len({row.group for row in selection.split(part)}) for part in parts}
        rows = [(part, groups[part], *(labels[part, name] for name in names)) for part in parts]
        out.table("", ["split", f"{selection.group_by}s", *names], rows)
    for short in selection.shortages:
        out.line(f"short: {short.cell}: wanted {short.wanted}, found {short.found} ({short.why})")
    for leak in selection.extra["leaks"]:
        out.line(f"LEAK kept on request: {leak}")
    out.line(f"selection {selection_id}")
    out.document(
        {
            "selection_id": selection_id, "name": selection.name, "n_rows": len(selection.rows), "unit": selection.unit,
            "splits": {part: len(selection.split(part)) for part in parts}, "leaks": selection.extra["leaks"],
            "shortages": [{"cell": s.cell, "wanted": s.wanted, "found": s.found, "why": s.why} for s in selection.shortages],
        }
    )  # fmt: skip


# dataset


def dataset(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop dataset`."""
    parser.add_argument("name", metavar="NAME", help="a new name with --selection; else list, or show NAME")
    parser.add_argument("shown", nargs="?", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--selection", metavar="NAME_OR_ID", help="freeze this selection under NAME")
    parser.set_defaults(run=run_dataset)


def run_dataset(arguments: argparse.Namespace, context: Context) -> int:
    """Run `camloop dataset`."""
    from curate import datasets
    from infra import shelf
    from infra.runs import recorded

    catalog, out = _footage(context).catalog, context.out
    if arguments.selection:
        with recorded(catalog, "dataset", vars(arguments), clock=context.clock) as run:
            selection = datasets.load(catalog, arguments.selection)
            run.outputs["key"] = key = datasets.export(catalog, arguments.name, selection)
            run.inputs["selection_id"] = selection.selection_id
        out.line(f"data set {arguments.name}: {selection!r} at {key}")
        out.document(
            {"name": arguments.name, "key": key, "selection_id": selection.selection_id, "n_rows": len(selection.rows)}
        )
        return 0
    if arguments.name == "list" and arguments.shown is None:
        found = {name: shelf.read_dataset(catalog.store, name) for name in shelf.dataset_names(catalog.store)}
        rows = [(name, len(s.rows), s.unit, s.group_by, s.selection_id) for name, s in found.items()]
        out.table("data sets", ["name", "rows", "unit", "split by", "selection"], rows)
        out.document([dict(zip(("name", "n_rows", "unit", "split_by", "selection_id"), row, strict=True)) for row in rows])
        return 0
    name = arguments.shown if arguments.name == "show" and arguments.shown else arguments.name
    selection = shelf.read_dataset(catalog.store, name)
    _say_selection(context, selection, selection.selection_id)
    return 0
