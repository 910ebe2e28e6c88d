"""`camloop doctor`: is this store healthy, and make it so.

Without flags it reads every log and data file and lists what is damaged (exit 1 if anything is), and clips whose objects are
gone (no damage: footage expires by a bucket's rule, its rows stay).
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from infra import maintain
from infra.catalog import Catalog, open_catalog
from infra.console import Context


def doctor(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camloop doctor`."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--repair", action="store_true", help="set damaged ends of table logs aside (renamed, never deleted)")
    what.add_argument("--compact", action="store_true", help="join small files, remove what nobody needs since 24 hours")
    what.add_argument("--self-test", action="store_true", help="try what the store can do, whatever it claims")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, context: Context) -> int:
    if args.self_test:
        return _self_test(context)
    catalog = open_catalog(context.store, create=False)
    if args.compact:
        done = maintain.compact(catalog, clock=context.clock)
        context.out.table(
            "compacted",
            ("table", "files before", "files after", "objects removed"),
            [dataclasses.astuple(row) for row in done],
        )
        context.out.line("" if done else "nothing to compact")
        context.out.document({"compacted": [dataclasses.asdict(row) for row in done]})
        return 0
    document: dict[str, Any] = {}
    if args.repair:
        document["set_aside"] = maintain.repair(catalog)
        for name in document["set_aside"]:
            context.out.line(f"set aside: {name}")
    problems = maintain.check(catalog)
    for problem in problems:
        context.out.line(problem, style="red")
    versions = {} if problems else catalog.snapshot()
    if not problems:
        rows = [(table, version, *_size(catalog.log(table).files())) for table, version in versions.items()]
        context.out.table(f"{context.store.url}: healthy", ("table", "version", "files", "rows", "bytes"), rows)
        document["gone"] = gone = _gone(catalog)
        if gone:
            remedy = "their rows stay; `camloop ingest` marks them expired"
            context.out.line(f"{len(gone)} clips have no object any more, such as {gone[0]}; {remedy}")
    context.out.document(document | {"problems": problems, "versions": versions})
    return 1 if problems else 0


def _gone(catalog: Catalog) -> list[str]:
    """Return the keys of live clips under which no object lies."""
    there = {stat.key for stat in catalog.store.list()}
    wanted = catalog.scan("clips", ["key", "state"]).collect()
    return sorted(key for key, state in wanted.iter_rows() if state == "live" and key not in there)


def _size(files: Any) -> tuple[int, int, int]:
    return len(files), sum(file.n_rows for file in files), sum(file.n_bytes for file in files)


def _self_test(context: Context) -> int:
    found = dataclasses.asdict(context.store.capabilities())
    context.out.table(f"{context.store.url} was seen to do", ("capability", "found"), list(found.items()))
    context.out.document({"capabilities": found})
    return 0 if found["put_if_absent"] else 1
