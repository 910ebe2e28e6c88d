"""`camloop query --coverage FILE.html`: arguments in, the coverage page and its tables out.

Expected against found, what is missing, which tags may be believed, floors by the labels, hours and money, and with
`--curated` how a selection differs from the footage. Nothing is tagged here and no table is written.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import durable
from infra.errors import UsageError
from infra.words import duration

if TYPE_CHECKING:
    from curate.coverage import Coverage
    from curate.coverage_page import Findings
    from curate.factors import Sheet
    from curate.query import Footage
    from curate.tag_quality import TagQuality
    from infra.console import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the coverage page to `camloop query`."""
    group = parser.add_argument_group("coverage: expected against found, and which tags may be believed")
    group.add_argument("--coverage", type=Path, metavar="FILE", help="write this HTML page and print its tables")
    group.add_argument("--factors", type=Path, metavar="FILE", help="factor sheet (TOML); by default lighting and people")
    group.add_argument("--curated", metavar="NAME", help="a selection to hold against the footage that it was drawn from")
    group.add_argument(
        "--drawn-by", metavar="NAME", help="the selection that labels were drawn by: only its rows judge tags, by 1/p"
    )
    group.add_argument("--overlap", type=int, metavar="N", help="people who say each tag on Mechanical Turk (3)")
    group.add_argument("--machine-usd", type=float, metavar="USD", help="price of a machine hour (.40)")


def refuse_alone(arguments: argparse.Namespace) -> None:
    """Refuse the arguments of the page without the page.

    Raises:
        UsageError: one of them was given.
    """
    for option in ("factors", "curated", "drawn-by", "overlap", "machine-usd"):
        if getattr(arguments, option.replace("-", "_")) is not None:
            raise UsageError(f"--{option} belongs to the coverage page: add --coverage FILE.html")


def run(arguments: argparse.Namespace, context: Context, footage: Footage) -> int:
    """Measure, write the page, print the tables."""
    from curate import coverage_page, factors

    if arguments.where:
        raise UsageError("--coverage is about all footage; leave WHERE out, or put it into a [[combination]] of the sheet")
    try:
        text = arguments.factors.read_text(encoding="utf-8") if arguments.factors else factors.DEFAULT
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--factors {arguments.factors}: {error}") from error
    name = str(arguments.factors or "the default sheet")
    findings = find(
        footage, factors.parse(text, name=name), sheet_name=name, curated=arguments.curated, drawn_by=arguments.drawn_by,
        **{name: given for name in ("overlap", "machine_usd") if (given := getattr(arguments, name)) is not None},
    )  # fmt: skip
    durable.write(arguments.coverage, coverage_page.html(findings).encode())
    _say(context, findings)
    context.out.line(f"written: {arguments.coverage}")
    context.out.document({**_document(findings), "page": str(arguments.coverage)})
    return 0


def find(
    footage: Footage,
    sheet: Sheet,
    *,
    sheet_name: str,
    curated: str | None = None,
    drawn_by: str | None = None,
    overlap: int = 3,
    machine_usd: float = 0.40,
) -> Findings:
    """Return everything that the page shows; see the modules that it asks.

    Raises:
        UsageError: no kept frames; a sheet over columns that are not there; no such selection; a price that is none. The
            last two before anything is measured.
    """
    from curate import costs, coverage, datasets, tag_quality, usual
    from curate import curated as against
    from curate.coverage_page import Findings

    costs.check(overlap, machine_usd)
    chosen, drawn = (datasets.load(footage.catalog, name) if name else None for name in (curated, drawn_by))
    found = coverage.measure(footage, sheet)
    if not found.n_frames:
        raise UsageError("no kept frames to judge the coverage by: run camloop curate")
    rows = tag_quality.pairs(footage, sheet, drawn)
    quality = tag_quality.measure(rows, sheet)
    clips = footage.clips.lazy().select("n_frames", "footage_s").collect()
    clip_s = float(clips["footage_s"].sum() or 0.0) / max(clips.height, 1)
    tags, bills = _bills(sheet, found, quality, int(clips["n_frames"].sum() or 0), overlap)
    difference = None
    if chosen is not None:
        own = footage.frames.lazy().collect_schema()
        columns = [factor.name for factor in sheet.factors if factor.name in own]
        difference = against.diff(footage, chosen, columns)
    return Findings(
        store=footage.catalog.store.url, sheet_name=sheet_name, sheet=sheet, coverage=found, quality=quality,
        calibration=tag_quality.calibrate(rows, sheet), tags=tags, bills=bills, spent=costs.spent(footage.catalog, machine_usd),
        wishes=coverage.wishes(found, clip_s=clip_s), difference=difference, slices=slices_text(sheet),
        vault=str(footage.vault_state()), unusual=usual.unlike(footage),
    )  # fmt: skip


def _bills(sheet: Sheet, found: Coverage, quality: list[TagQuality], n_frames: int, overlap: int) -> Any:
    """Return the classifications and bills of all frames and of the kept ones."""
    from curate import costs

    trusted = {(each.factor, each.value) for each in quality if each.belief == "believed"}
    shares = [
        min(
            sum(cover.footage_s for cover in found.of(factor.name) if (factor.name, cover.value) in trusted) / found.footage_s,
            1,
        )
        for factor in sheet.factors
        if factor.origin != "camera"
    ]
    tags = tuple(costs.count(n, shares) for n in (n_frames, found.n_frames))
    return tags, tuple(costs.bills(each, overlap=overlap) for each in tags)


def slices_text(sheet: Sheet) -> str:
    """Return the sheet's tolerances as `[[slice]]` tables of a gate file; empty where nothing is said."""
    from curate.tag_quality import toml_text

    quote = "'"
    slices = [
        (f"{factor.name} {value}", f"{factor.name} = '{value.replace(quote, quote * 2)}'", error)
        for factor in sheet.factors
        for value, error in factor.tolerated.items()
    ]
    slices += [(each.name, each.where.text, each.tolerated) for each in sheet.combinations if each.tolerated is not None]
    return "\n".join(
        f'[[slice]]\nname = {toml_text(name)}\nwhere = {toml_text(where)}\nmetric = "accuracy"\nthreshold = {1 - error:g}\n'
        for name, where, error in slices
    )


def _say(context: Context, findings: Findings) -> None:
    from curate.coverage_page import percent

    out, coverage = context.out, findings.coverage
    out.line(f"{coverage.n_frames:,} frames stand for {duration(coverage.footage_s)} of footage   ({findings.vault})")
    rows = [
        (cover.factor, cover.value, percent(cover.expected), percent(cover.found.value),
         f"{cover.found.low:.0%} to {cover.found.high:.0%}" if cover.found.value is not None else None,
         duration(cover.missing_s) if cover.missing_s else None, cover.verdict)
        for cover in coverage.covers
    ]  # fmt: skip
    out.table("coverage", ["factor", "value", "expected", "found", "95 %", "to be filmed", ""], rows)
    for factor, unknown in coverage.unknown.items():
        if unknown > 0:
            out.line(f"{factor}: unknown for {unknown:.1%} of the footage")
    judged = [
        (each.factor, each.value, str(each.precision), str(each.recall), each.belief)
        for each in findings.quality
        if each.precision.n or each.recall.n
    ]
    if judged:
        out.table("tags against labels", ["factor", "value", "precision", "recall", ""], judged)
    else:
        out.line("no tag can be judged: nobody labelled a factor of this sheet (camloop label import FILE)")
    for wish in findings.wishes[:10]:
        out.line(
            f"{'missing' if wish.certain else 'perhaps missing'}: {wish.reason}"
            + (f": {wish.quota:,} clips" if wish.quota is not None else "")
            + (f" where {wish.where}" if wish.where else "")
        )
    for camera_id, day, what in findings.unusual[:10]:
        out.line(f"unlike itself: camera {camera_id} on {day}: {what}")
    for tags, bills in zip(findings.tags, findings.bills, strict=True):
        priced = [
            (f"{tags.n_pictures:,}", bill.way, f"{bill.saved_hours:,.1f}", f"{bill.saved_usd:,.2f}",
             f"{bill.needed_hours:,.1f}", f"{bill.needed_usd:,.2f}")
            for bill in bills
        ]  # fmt: skip
        out.table("", ["pictures", "way", "saved h", "saved USD", "needed h", "needed USD"], priced)
    spent = findings.spent
    out.line(f"models: {spent.hours:.2f} machine hours, {spent.usd:.2f} USD at {spent.usd_per_hour:.2f} an hour")
    if findings.difference is not None:
        for column, distance in findings.difference.distance.items():
            out.line(f"curated against raw: {column}: {distance:.0%} of the share moved")


def _document(findings: Findings) -> dict[str, Any]:
    coverage = findings.coverage
    return {
        "n_frames": coverage.n_frames, "footage_s": coverage.footage_s, "vault": findings.vault, "unknown": coverage.unknown,
        "coverage": [dataclasses.asdict(cover) for cover in coverage.covers],
        "tags": [dataclasses.asdict(each) for each in findings.quality],
        "floors": [dataclasses.asdict(each) for each in findings.calibration],
        "missing": [dataclasses.asdict(wish) for wish in findings.wishes],
        "costs": [
            {**dataclasses.asdict(tags), "ways": [dataclasses.asdict(bill) for bill in bills]}
            for tags, bills in zip(findings.tags, findings.bills, strict=True)
        ],
        "unusual": [dict(zip(("camera_id", "day", "what"), row, strict=True)) for row in findings.unusual],
        "machine": {**dataclasses.asdict(findings.spent), "usd": findings.spent.usd},
        "curated": None if findings.difference is None else {
            "distance": findings.difference.distance, "table": findings.difference.table.to_dicts(),
        },
    }  # fmt: skip
