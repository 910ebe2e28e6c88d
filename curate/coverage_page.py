"""The coverage page: expected against found, by camera and hour, what is missing, which tags to believe, what it costs.

A function from what `coverage`, `tag_quality`, `costs` and `curated` found to one self-contained HTML document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curate.costs import Bill, Spent, Tags
from curate.coverage import COMBINATION, Cover, Coverage, Wish
from curate.curated import Difference
from curate.factors import Factor, Sheet
from curate.share_interval import Share
from curate.tag_quality import GOOD, USABLE, Calibration, TagQuality, floors_text
from infra import page
from infra.page import Markup, text
from infra.words import duration

_LOOKS = {
    "believed": "passed", "as expected": "passed", "not to be used": "failed", "missing": "failed", "more": "unknown",
    "unknown": "unknown", "no expectation": "not-gated",
    "not in the sheet": "failed",
}  # fmt: skip
_DARK = 0.7  # from this share on a cell is dark, and its figure is written in white


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything that the page shows; `bills` belong to all frames of the footage and to the kept frames."""

    store: str
    sheet_name: str
    sheet: Sheet
    coverage: Coverage
    quality: Sequence[TagQuality]
    calibration: Sequence[Calibration]
    tags: tuple[Tags, Tags]
    bills: tuple[Sequence[Bill], Sequence[Bill]]
    spent: Spent
    wishes: Sequence[Wish]
    slices: str
    unusual: Sequence[tuple[str, str, str]] = ()
    difference: Difference | None = None
    vault: str = ""


def html(findings: Findings) -> str:
    """Return the page."""
    body = [_head(findings), *_missing(findings), "<h2>Factors</h2>"]
    body += [_factor(findings, factor) for factor in findings.sheet.factors]
    body += [*_combinations(findings), *_belief(findings), *_calibration(findings), *_money(findings)]
    body += [*_unusual(findings), *_curated(findings), *_slices(findings)]
    return page.page(
        "Coverage", body, lead=f"{findings.store}, by {findings.sheet_name}: what was expected, and what is there."
    )


def pill(name: str) -> Markup:
    """Return a verdict as a coloured pill."""
    return Markup(f'<span class="verdict {_LOOKS[name]}">{text(name)}</span>')


def scale(found: Share, threshold: float | None, verdict: str) -> Markup:
    """Return a share with its interval on a scale from 0 to 1, and in figures; `threshold` is the upright line."""
    if found.value is None:
        return Markup('<span class="soft">no figure</span>')
    drawn = page.interval(found.value, found.low, found.high, threshold, _LOOKS[verdict], width=180)
    return Markup(f'{drawn}<br><span class="soft">{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]</span>')


def _line(value: object) -> Markup:
    """Return a cell that is not broken into lines."""
    return Markup(f'<span style="white-space:nowrap">{text(value)}</span>')


def percent(value: float | None) -> str | None:
    """Return a share in per cent with one place; None stays None."""
    return None if value is None else f"{value:.1%}"


def _head(findings: Findings) -> str:
    coverage = findings.coverage
    believed = sum(each.belief == "believed" for each in findings.quality)
    shown: dict[str, object] = {
        "kept frames": f"{coverage.n_frames:,}",
        "of footage": duration(coverage.footage_s),
        "values missing": sum(cover.verdict == "missing" for cover in coverage.covers),
        "tags believed": f"{believed} of {len(findings.quality)}",
    }
    if coverage.days:
        first, last, n_days, _ = coverage.days
        shown |= {"days with footage": n_days, "from, UTC": first, "to": last}
    note = f'<p class="soft">{text(findings.vault)}. Shares are of footage time: a kept frame counts 1 / p_keep.</p>'
    seasons = ""
    if coverage.days and coverage.days[3] < 12:
        seasons = (
            f"<p>Footage of {coverage.days[3]} of the 12 months of a year: weather, light and clothes of the others are not in "
            "these shares, and a model will meet them.</p>"
        )
    return page.facts(shown) + note + seasons


def _missing(findings: Findings) -> list[str]:
    if not findings.wishes:
        return ["<h2>What is missing</h2><p>Nothing falls short of what the sheet expects.</p>"]
    rows = [
        (
            wish.reason,
            pill("missing" if wish.certain else "unknown"),
            wish.quota,
            Markup(f"<code>{text(wish.where)}</code>") if wish.where else "no proposal",
        )
        for wish in findings.wishes
    ]
    why = (
        "<p>Proposals, largest shortage first: which camera to ask at which hours (UTC), and how many clips of the usual "
        "length it would take. <i>Unknown</i>: too few recordings stand behind the figure.</p>"
    )
    return ["<h2>What is missing</h2>", why, page.table(["what", "", "clips", "where"], rows)]


def _cover_table(covers: Sequence[Cover]) -> str:
    wanted = any(cover.verdict != "no expectation" for cover in covers)
    columns = ["value", "found", "footage", "recordings"]
    rows: list[list[object]] = [
        [cover.value, scale(cover.found, cover.expected, cover.verdict), _line(duration(cover.footage_s)), cover.found.n_groups]
        for cover in covers
    ]
    if wanted:
        columns += ["expected", "to be filmed", ""]
        for row, cover in zip(rows, covers, strict=True):
            row += [percent(cover.expected), _line(duration(cover.missing_s or None)), pill(cover.verdict)]
    return page.table(columns, rows)


def _factor(findings: Findings, factor: Factor) -> str:
    covers = findings.coverage.of(factor.name)
    unknown = findings.coverage.unknown[factor.name]
    origin = {
        "lighting": "measured in the picture", "prompts": "the openclip model's word", "rule": "by rules over what was seen",
        "camera": "fixed for the camera", "sun": "capture time and place",
    }[factor.origin]  # fmt: skip
    head = f"<h3>{text(factor.name)}</h3><p class='soft'>{text(origin)}; unknown for {unknown:.1%} of the footage</p>"
    if unknown >= 1:
        return f'<div class="card">{head}<p>No frame has a value: tag with this sheet, or say it in cameras.toml.</p></div>'
    maps = _by_camera(findings.coverage, factor, covers) + _by_hour(findings.coverage, factor, covers)
    return f'<div class="card">{head}{_cover_table(covers)}{maps}</div>'


def _by_camera(coverage: Coverage, factor: Factor, covers: Sequence[Cover]) -> str:
    """Return shares per camera: a line per camera, a column per value."""
    cells = coverage.cells(factor.name, ["camera_id"])
    cameras = sorted({str(name) for name in cells["camera_id"].drop_nulls()})
    shares = {(row["camera_id"], row["value"]): row["share"] for row in cells.iter_rows(named=True)}
    rows = [[_line(name), *(_shaded(shares.get((name, cover.value), 0.0)) for cover in covers)] for name in cameras]
    return page.table(["camera", *(cover.value for cover in covers)], rows) if len(cameras) > 1 else ""


def _by_hour(coverage: Coverage, factor: Factor, covers: Sequence[Cover]) -> str:
    """Return shares per local hour: a line per value, 24 columns; an hour without footage stays empty."""
    cells = coverage.cells(factor.name, ["hour"])
    shares = {(row["hour"], row["value"]): row["share"] for row in cells.iter_rows(named=True)}
    filmed = {hour for hour, _ in shares if hour is not None}
    if not filmed:
        return ""
    left, width, height, parts = 120, 34, 22, []
    for line, cover in enumerate(covers):
        y = line * height
        parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{text(cover.value)}</text>')
        for hour in sorted(filmed):
            share, x = shares.get((hour, cover.value), 0.0), left + hour * width
            style = "fill:#fff" if share > _DARK else ""
            parts.append(
                f'<rect x="{x}" y="{y}" width="{width - 2}" height="{height - 2}" rx="3" fill="var(--accent)" '
                f'opacity="{0.06 + 0.94 * share:.2f}"/>'
                f'<text x="{x + width / 2 - 1:.0f}" y="{y + 15}" text-anchor="middle" style="{style}">{share * 100:.0f}</text>'
            )
    for hour in range(24):
        x = f"{left + hour * width + width / 2 - 1:.0f}"
        parts.append(f'<text class="soft" x="{x}" y="{len(covers) * height + 14}" text-anchor="middle">{hour}</text>')
    size = f'viewBox="0 0 {left + 24 * width} {len(covers) * height + 20}" width="100%"'
    return f'<p class="soft">% of the footage of each local hour</p><svg {size} role="img">{"".join(parts)}</svg>'


def _shaded(share: float) -> Markup:
    colour = "color:#fff" if share > _DARK else ""
    back = f"color-mix(in srgb, var(--accent) {share * 100:.0f}%, transparent)"
    return Markup(
        f'<span style="display:block;padding:1px 8px;border-radius:3px;background:{back};{colour}">{share:.0%}</span>'
    )


def _combinations(findings: Findings) -> list[str]:
    covers = findings.coverage.of(COMBINATION)
    if not covers:
        return []
    said = {each.name: each.where.text for each in findings.sheet.combinations}
    notes = "".join(f"<li>{text(name)}: <code>{text(where)}</code></li>" for name, where in said.items())
    return [f'<h2>Combinations</h2><div class="card">{_cover_table(covers)}<ul class="soft">{notes}</ul></div>']


def _belief(findings: Findings) -> list[str]:
    lead = (
        f"<p>What machines said, held against people's labels. A tag is believed when precision and recall are at least "
        f"{USABLE:.0%} to the lower end of their intervals, and not to be used when one stays under {GOOD:.0%} to the upper "
        "end. A tag without labels is unknown, which is no promise: label a random sample and import it "
        "(<code>camloop label import</code>).</p>"
    )
    rows = [
        (Markup(f'{_line(f"{each.factor} = {each.value}")}<br>{pill(each.belief)}'), scale(each.precision, USABLE, each.belief),
         scale(each.recall, USABLE, each.belief), Markup(f'<span class="soft">{text(each.why)}</span>'))
        for each in findings.quality
        if each.precision.n or each.recall.n
    ]  # fmt: skip
    silent = [f"{each.factor} = {each.value}" for each in findings.quality if not (each.precision.n or each.recall.n)]
    rest = f"<p>Unknown, because nobody labelled such footage: {text(', '.join(silent))}.</p>" if silent else ""
    table = f'<div class="card">{page.table(["tag", "precision", "recall", ""], rows)}</div>' if rows else ""
    return ["<h2>Which tags may be believed</h2>", lead, table, rest]


def _calibration(findings: Findings) -> list[str]:
    judged = [each for each in findings.calibration if each.precision.n or each.recall.n]
    if not judged:
        return []
    rows = [
        (f"{each.factor} = {each.value}", each.floor, scale(each.precision, GOOD, "no expectation"),
         scale(each.recall, None, "no expectation"), each.precision.n_groups, each.why)
        for each in judged
    ]  # fmt: skip
    lead = (
        f"<p>The lowest score from which tags were at least {GOOD:.0%} precise on one half of the labelled recordings, judged "
        "on the other half. To use them, put these lines into the sheet; tagging again decodes nothing.</p>"
    )
    table = page.table(["tag", "floor", "precision", "recall", "recordings", ""], rows)
    lines = text(floors_text(findings.calibration))
    proposed = f"<pre>{lines}</pre>" if lines else "<p>No floor is worth proposing.</p>"
    return ["<h2>Floors, by the labels</h2>", lead, f'<div class="card">{table}{proposed}</div>']


def _money(findings: Findings) -> list[str]:
    parts = [
        "<h2>Hours and money</h2>",
        "<p>Prices of seed 002: a labelling service at $0.05 a classification ($0.25 a picture with five), Mechanical Turk at "
        "$0.01 for each person asked; 5 seconds a picture. <i>Saved</i>: classifications whose tag is believed. <i>Still "
        "needed</i>: those whose tag is not, or not yet, believed, should each be wanted from a person.</p>",
    ]
    for name, tags, bills in zip(
        ("every frame of the footage", "kept frames only"), findings.tags, findings.bills, strict=True
    ):
        rows = [
            (bill.way, f"{bill.saved_hours:,.1f} h", f"${bill.saved_usd:,.2f}", f"{bill.needed_hours:,.1f} h",
             f"${bill.needed_usd:,.2f}")
            for bill in bills
        ]  # fmt: skip
        head = f"<h3>{name}: {tags.n_pictures:,} pictures</h3>"
        parts.append(f'<div class="card">{head}{page.table(["way", "saved", "", "still needed", ""], rows)}</div>')
    spent = findings.spent
    parts.append(
        f"<p>The models that made the tags: {spent.hours:,.2f} machine hours of <code>camloop curate</code> in this store, "
        f"${spent.usd:,.2f} at ${spent.usd_per_hour:.2f} an hour, whatever their tags are worth.</p>"
    )
    return parts


def _unusual(findings: Findings) -> list[str]:
    if not findings.unusual:
        return []
    lead = (
        "<p>Days on which a camera's picture differs from the same camera's other days at the same hours. Worth a look; "
        "the limits are judgement. Moved, covered, dirt, cast, noise and flicker from picture to picture are known of clips "
        "scanned with <code>--motion 2</code>.</p>"
    )
    return ["<h2>Cameras unlike themselves</h2>", lead, page.table(["camera", "day, UTC", "what"], findings.unusual)]


def _curated(findings: Findings) -> list[str]:
    found = findings.difference
    if found is None:
        return []
    parts = [f"<h2>Raw against curated</h2><p>{found.n_rows} curated rows; {found.n_unmatched} without a kept frame.</p>"]
    charts = []
    for column, distance in found.distance.items():
        rows = [row for row in found.table.iter_rows(named=True) if row["column"] == column]
        raw, curated = ({str(row["value"] or "unknown"): row[side] for row in rows} for side in ("raw", "curated"))
        charts.append(page.bars(f"{column}: {distance:.0%} of it moved", raw, curated, names=("raw footage", "curated rows")))
    charts += ["<div></div>"] * (len(charts) % 2)  # the last of an odd number is as wide as the others
    return [*parts, f'<div class="row">{"".join(charts)}</div>']


def _slices(findings: Findings) -> list[str]:
    if not findings.slices:
        return []
    return [
        "<h2>The same scenarios, for a gate</h2><p>What the sheet tolerates, as slices of a gate file "
        f"(<code>camloop evaluate --gate</code>).</p><pre>{text(findings.slices)}</pre>"
    ]
