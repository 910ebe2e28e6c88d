"""The commands `ingest` (what has arrived becomes rows of `clips`) and `label` (people's words in and out)."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from curate import arrivals, cameras, capture_time, imports, label_files, label_folders, labels
from curate.arrivals import Found
from curate.cameras import Registry
from curate.imports import Import
from curate.register import Outcome, Registrar
from infra import durable, keys, runs
from infra.catalog import STORE_KEY, Catalog, open_catalog
from infra.console import Context
from infra.errors import JobError, UsageError
from infra.records import CameraRow
from infra.store import DirStore, open_store

_SHOWN = 20


def ingest(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop ingest`."""
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="folder, video or s3://bucket/prefix; none: what uploaders put under clips/"
    )
    where = parser.add_argument_group("which camera (default: first folder below PATH)")
    where.add_argument("--cameras", type=Path, metavar="FILE", help="cameras.toml: folders, sites, zones, clock offsets")
    where.add_argument("--camera", metavar="ID", help="all files are of this camera")
    where.add_argument(
        "--time-pattern", metavar="P", help="time in the file names, such as cam_%%Y%%m%%d_%%H%%M%%S; remembered"
    )
    known = parser.add_argument_group("what people know already")
    known.add_argument("--labels", choices=["folders"], help="the first folder below PATH is the class of the clip")
    known.add_argument("--table", type=Path, metavar="CSV", help="one row per file (path relative to PATH) or per image")
    known.add_argument(
        "--columns", metavar="M=C,...", help="path=..,label=..,group=..; frame labels: video=..,frame=..; others are factors"
    )
    known.add_argument("--null", metavar="TEXT", help="text in the table that means: not known")
    known.add_argument("--rest", metavar="NAME", help="class of what the labels leave out (default: it stays unlabelled)")
    how = parser.add_argument_group("how")
    how.add_argument("--in-place", action="store_true", help="register where the files lie; the store must contain PATH")
    how.add_argument(
        "--image-rate", type=_rate, default=Fraction(1), metavar="N", help="frames a second of images without times (1)"
    )
    how.add_argument(
        "--max-failures", type=float, metavar="SHARE", help="exit 1 above this share (default: only when all fail)"
    )
    how.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    parser.set_defaults(run=_ingest)


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of frames a second")
    return rate


def _ingest(args: argparse.Namespace, context: Context) -> int:
    if args.labels and args.table:
        raise UsageError("--labels folders and --table both say the classes; give one of them")
    for option in ("columns", "null"):
        if getattr(args, option) is not None and args.table is None:
            raise UsageError(f"--{option} describes a --table FILE, which is missing")
    if args.rest is not None and not (args.labels or args.table):
        raise UsageError("--rest names what labels leave out; give --table FILE or --labels folders with it")
    if args.time_pattern is not None:
        capture_time.compile_pattern(args.time_pattern)
    registry = cameras.read(args.cameras) if args.cameras else None
    store = context.store
    catalog = open_catalog(store, create=False) if store.head(STORE_KEY) is not None else None
    known = cameras.in_force(catalog) if catalog else {}
    found = _find(args, context, catalog)
    if catalog is None and not found.arrivals:
        raise UsageError(f"nothing has arrived under {store.url}/{keys.CLIPS}, and no PATH was given; check --store")
    found = arrivals.assign_cameras(
        found, camera=args.camera, registry=registry, folders_are_classes=bool(args.labels or args.table)
    )
    imported = _imported(args, found)
    rows = cameras.wanted_rows(
        (arrival.camera_id for arrival in found.arrivals), known, registry, args.time_pattern, context.clock.now_ns()
    )
    plan = _show_plan(context, found, known, rows, registry, imported, args)
    if args.dry_run:
        context.out.line("Nothing was written (--dry-run).")
        context.out.document({"plan": plan, "written": False})
        return 0
    catalog = catalog or open_catalog(store)
    with runs.recorded(catalog, "ingest", vars(args), clock=context.clock) as run:
        registrar = Registrar(catalog, known, rows, clock=context.clock, imported=imported, image_rate=args.image_rate)
        registrar.write_cameras(registry.cameras if registry else ())
        with context.out.progress(len(found.arrivals), "registering") as task:
            outcome = registrar.run(found.arrivals, lambda name: task.advance(1, name))
        n_asked = len(found.arrivals)
        if registry is not None or _is_own(args, context):  # a corrected camera corrects its clips, wherever they came from
            outdated = registrar.outdated()
            n_asked += len(outdated)
            with context.out.progress(len(outdated), "correcting") as task:
                outcome = registrar.run(outdated, lambda name: task.advance(1, name))
        if _is_own(args, context):
            outcome = registrar.run(registrar.gone({stat.key for stat in context.store.list(keys.CLIPS)}))
        run.outputs |= {"n_registered": len(outcome.registered), "n_failed": len(outcome.failed), "n_labels": outcome.n_labels}
        _show_outcome(context, outcome, plan)
        return _judge(outcome, n_asked, args.max_failures)


def _is_own(args: argparse.Namespace, context: Context) -> bool:
    """Say whether the store's own `clips/` is meant: no PATH, or the path of it."""
    if args.path is None:
        return True
    own = f"{context.store.url.rstrip('/')}/{keys.CLIPS}".rstrip("/")
    return bool(args.path.rstrip("/") == own or ("://" not in args.path and Path(args.path).resolve() == Path(own).resolve()))


def _find(args: argparse.Namespace, context: Context, catalog: Catalog | None) -> Found:
    store = context.store
    if _is_own(args, context):
        held = catalog.scan("clips", ["key"]).collect()["key"].to_list() if catalog else []
        return arrivals.in_clips(store, held)
    if args.in_place:
        return arrivals.in_place(store, _prefix_in_store(args.path, store.url))
    if "://" in args.path:
        url, _, rest = args.path.removeprefix("s3://").partition("/")
        place = (
            open_store(f"s3://{url}", context.settings)
            if args.path.startswith("s3://")
            else open_store(args.path, context.settings)
        )
        return arrivals.in_place(place, rest if args.path.startswith("s3://") else "")
    return arrivals.in_folder(Path(args.path).expanduser(), skip=store.path if isinstance(store, DirStore) else None)


def _prefix_in_store(path: str, store_url: str) -> str:
    """Return the key prefix of PATH inside the store.

    Raises:
        UsageError: PATH lies outside.
    """
    if "://" not in path and "://" not in store_url:
        root, inside = Path(store_url).resolve(), Path(path).expanduser().resolve()
        if not inside.exists():
            raise UsageError(f"{path}: no such folder or file")
        if inside.is_relative_to(root):
            return "" if inside == root else inside.relative_to(root).as_posix() + ("/" if inside.is_dir() else "")
    elif path.rstrip("/") == store_url.rstrip("/") or path.startswith(store_url.rstrip("/") + "/"):
        return path[len(store_url.rstrip("/")) :].lstrip("/")
    raise UsageError(
        f"--in-place: {path} does not lie in the store {store_url}; give --store a folder or bucket that contains it"
    )


def _imported(args: argparse.Namespace, found: Found) -> Import | None:
    if args.labels == "folders":
        return imports.from_folders(found.arrivals, rest=args.rest)
    if args.table is None:
        return None
    beside = Path(args.path or ".") / args.table
    table = args.table if args.table.exists() or not beside.exists() else beside
    return imports.from_table(table, args.columns, found.arrivals, null=args.null, rest=args.rest)


def _show_plan(
    context: Context, found: Found, known: Mapping[str, Sequence[CameraRow]], rows: Mapping[str, Sequence[CameraRow]],
    registry: Registry | None, imported: Import | None, args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """Show what would be done, before anything is written; return it as a document."""
    groups: dict[str, list[arrivals.Arrival]] = {}
    for arrival in found.arrivals:
        groups.setdefault(arrival.camera_id, []).append(arrival)
    table = [
        (camera_id, "new" if camera_id not in known else "changed" if camera_id in rows else "known", members[0].camera_from,
         len(members), _size(sum(a.n_bytes for a in members)), members[0].source_name)
        for camera_id, members in sorted(groups.items())
    ]  # fmt: skip
    if table:
        context.out.table("Plan", ["camera", "is", "named by", "clips", "size", "first"], table)
    notes = []
    new = sorted(set(groups) - set(known) - set(registry.cameras if registry else ()))
    if new:
        notes.append(f"{len(new)} new camera{'s' * (len(new) > 1)} ({', '.join(new[:5])}): no site, time zone UTC, "
                     "until --cameras cameras.toml says otherwise")  # fmt: skip
    if any(arrival.camera_from == "name of the ingested folder" for arrival in found.arrivals):
        which = "in class folders" if imported else "directly in PATH"
        notes.append(f"files {which}: camera {found.root_name}; --camera ID overrides")
    if found.left:
        notes.append("left alone: " + ", ".join(f"{n} .{suffix}" for suffix, n in found.left.most_common(6)))
    if imported is not None:
        words = Counter(given.label for given in imported.given.values() if given.label)
        words += Counter(label for given in imported.given.values() for label in given.frames.values())
        notes.append(f"labels by {imported.annotator}: " + ", ".join(f"{n} {word}" for word, n in words.most_common(12)))
        notes += imported.remarks()
    for note in notes:
        context.out.line(f"  {note}")
    return {
        "cameras": [dict(zip(("camera_id", "is", "named_by", "n_clips", "size", "first"), row, strict=True)) for row in table],
        "n_arrivals": len(found.arrivals), "notes": notes, "in_place": bool(args.in_place),
    }  # fmt: skip


def _size(n_bytes: int) -> str:
    return (
        f"{n_bytes / 1e9:.2f} GB"
        if n_bytes >= 1e9
        else f"{n_bytes / 1e6:.1f} MB"
        if n_bytes >= 1e5
        else f"{n_bytes / 1e3:.1f} kB"
    )


def _show_outcome(context: Context, outcome: Outcome, plan: Mapping[str, Any]) -> None:
    counts = {
        "registered": len(outcome.registered), "already known": len(outcome.known), "corrected": len(outcome.corrected),
        "copies of a known clip": len(outcome.copies), "duplicates (failures)": len(outcome.duplicates),
        "expired, object gone": len(outcome.expired),
        "unreadable (failures)": len(outcome.failed), "labels added": outcome.n_labels,
    }  # fmt: skip
    shown = [(what, n) for what, n in counts.items() if n]
    if shown:
        context.out.table("Done", ["what", "n"], shown)
    else:
        context.out.line("Nothing new has arrived under clips/.")
    lines = [f"expired: {name}: its object is gone; its rows stay" for name in outcome.expired]
    lines += [f"unreadable: {name}: {message}" for name, message in outcome.failed]
    lines += [f"duplicate: {name} has the bytes of {other}" for name, other in outcome.duplicates]
    lines += [f"copy: {name} has the bytes of {other}; stored once" for name, other in outcome.copies] + outcome.remarks
    for line in lines[:_SHOWN]:
        context.out.line(f"  {line}")
    if len(lines) > _SHOWN:
        context.out.line(f"  and {len(lines) - _SHOWN} more (--json shows all; table failures keeps them)")
    context.out.document({
        "plan": plan, "written": True, "registered": outcome.registered, "known": outcome.known, "corrected": outcome.corrected,
        "copies": outcome.copies, "duplicates": outcome.duplicates,
        "expired": outcome.expired, "n_labels": outcome.n_labels, "remarks": outcome.remarks,
        "failed": [{"source_name": name, "message": message} for name, message in outcome.failed],
    })  # fmt: skip


def _judge(outcome: Outcome, n_arrivals: int, max_failures: float | None) -> int:
    """Return 0, or raise JobError when all arrivals, or more than the share allowed, failed."""
    n_failed = len(outcome.failed)
    if n_failed and (n_failed == n_arrivals or (max_failures is not None and n_failed > max_failures * n_arrivals)):
        name, message = outcome.failed[0]
        raise JobError(f"{n_failed} of {n_arrivals} could not be registered; the first: {name}: {message}")
    return 0


def label(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop label`."""
    parser.add_argument("action", choices=["import", "export", "list", "retract"], help="what to do")
    parser.add_argument(
        "what",
        nargs="?",
        metavar="FILE|ID",
        help="import: .csv, .json; export: those, or a folder to fill with CLASS/clip; retract: an id",
    )
    parser.add_argument("--annotator", default="person", metavar="NAME", help="whose word it is (default: person)")
    parser.add_argument("--rest", metavar="NAME", help="class of the time that the file's clips leave unlabelled")
    parser.add_argument("--ends", choices=["open", "closed"], default="open", help="closed: the end given is still inside")
    parser.add_argument("--skip-unknown", action="store_true", help="import the rows that are understood, report the others")
    parser.set_defaults(run=_label)


def _label(args: argparse.Namespace, context: Context) -> int:
    if args.what is None and args.action in ("import", "retract"):
        raise UsageError(
            f"label {args.action} needs {'a FILE (.csv or .json)' if args.action == 'import' else 'the ID of a label'}"
        )
    catalog = open_catalog(context.store, create=False)
    if args.action == "import":
        return _label_import(args, context, catalog)
    if args.action == "retract":
        with runs.recorded(catalog, "label retract", vars(args), clock=context.clock):
            gone = labels.retract(catalog, args.what, annotator=args.annotator, created_ns=context.clock.now_ns())
        context.out.line(f"retracted: {gone.name} on clip {gone.clip_id} [{gone.start_pts}, {gone.end_pts})")
        context.out.document({"retracted": gone.label_id})
        return 0
    extents = {extent.clip_id: extent for extent in labels.extents(catalog)}
    live = labels.live(labels.read_all(catalog))
    if args.action == "export" and args.what is not None and not Path(args.what).suffix:
        n_files, n_left = label_folders.export(catalog, Path(args.what), live, extents)
        context.out.line(f"{n_files} files in class folders below {args.what}; {n_left} labels of parts of clips left out")
        context.out.document({"path": args.what, "n_files": n_files, "n_left_out": n_left})
        return 0
    rows = labels.export_rows(live, extents)
    if args.action == "list":
        columns = ("source_name", "start_s", "end_s", "factor", "label", "annotator", "label_id")
        context.out.table(f"{len(rows)} labels", columns, [[row[name] for name in columns] for row in rows])
        context.out.document(rows)
        return 0
    return _label_export(args, context, rows)


def _label_import(args: argparse.Namespace, context: Context, catalog: Catalog) -> int:
    said = label_files.read_file(Path(args.what))
    found = labels.resolve(
        said,
        labels.extents(catalog),
        annotator=args.annotator,
        created_ns=context.clock.now_ns(),
        ends=args.ends,
        rest=args.rest,
    )
    if found.problems and not args.skip_unknown:
        for problem in found.problems[:_SHOWN]:
            context.out.note(problem)
        raise UsageError(
            f"{args.what}: {len(found.problems)} of {len(said)} rows are not understood, nothing was imported; "
            f"the first: {found.problems[0]}; mend them, or say --skip-unknown"
        )
    with runs.recorded(catalog, "label import", vars(args), clock=context.clock) as run:
        n_new = labels.write(catalog, found.labels)
        run.outputs |= {"n_labels": n_new, "n_not_understood": len(found.problems)}
    context.out.line(f"{n_new} labels added, {len(found.labels) - n_new} were there already")
    for what, lines in (("not understood", found.problems), ("contradiction", found.contradictions), ("gap", found.gaps)):
        for line in lines[:_SHOWN]:
            context.out.line(f"  {what}: {line}")
        if len(lines) > _SHOWN:
            context.out.line(f"  {what}: and {len(lines) - _SHOWN} more")
    context.out.document({
        "added": n_new, "known": len(found.labels) - n_new, "not_understood": found.problems,
        "contradictions": found.contradictions, "gaps": found.gaps,
    })  # fmt: skip
    return 0


def _label_export(args: argparse.Namespace, context: Context, rows: Sequence[Mapping[str, Any]]) -> int:
    if args.what is None:
        context.out.document(rows)
        if not context.out.as_json:
            _write_csv(sys.stdout, rows)
        return 0
    path = Path(args.what)
    if path.suffix.lower() not in (".csv", ".json"):
        raise UsageError(f"label export {path}: the ending says the format; legal: .csv, .json, or none for class folders")
    if path.suffix.lower() == ".json":
        durable.write(path, json.dumps(rows, indent=1, ensure_ascii=False).encode())
    else:
        import io

        text = io.StringIO(newline="")
        _write_csv(text, rows)
        durable.write(path, text.getvalue().encode())
    context.out.line(f"{len(rows)} labels written to {path}")
    context.out.document({"path": str(path), "n_labels": len(rows)})
    return 0


def _write_csv(file: IO[str], rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(rows[0]) if rows else ["clip_id", "start_s", "end_s", "label"]
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
