"""A Report as one self-contained page: verdicts first, then where they come from. Data in, HTML out.

    page(report, report_id) -> str        (style and charts: infra/page.py; no script, no network)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra import page as html
from infra.artefacts import Report, ReportCell
from infra.page import Markup

_CELL_PX = 46


def page(report: Report, report_id: str) -> str:
    """Return the whole document."""
    detail = report.detail
    body = [
        html.facts(_facts(report)),
        "<h2>Slices</h2>",
        f'<div class="card">{_slices(report)}</div>',
        '<p class="soft">Bar: 95 % interval over groups; dot: value; upright line: threshold. '
        "Frames of one group resemble each other, so groups are resampled, not frames.</p>",
        *_filters(detail.get("filters", {})),
        *_notes(report),
        '<div class="row">',
        _confusion(report.labels, detail["confusion"]),
        _curves(detail["history"]),
        "</div>",
        "<h2>Classes</h2>",
        f'<div class="card">{_classes(detail["per_label"])}</div>',
        "<h2>The same model, asked differently</h2>",
        f'<div class="card">{_ways(detail)}</div>',
        *_paired(detail["paired"]),
        "<h2>Where it comes from</h2>",
        f'<div class="card">{_lineage(report, report_id)}</div>',
    ]
    return html.page(f"{report.model_name} on {report.dataset}", body, lead=_lead(report))


def _lead(report: Report) -> str:
    failed = [c for c in report.cells if c.verdict == "failed"]
    unknown = [c for c in report.cells if c.verdict == "unknown"]
    if failed:
        return f"The gate refuses this model: {', '.join(_named(c) for c in failed)}."
    if unknown:
        return f"The gate cannot say: {', '.join(_named(c) for c in unknown)}."
    if report.verdict == "passed":
        return "The gate lets this model through: every slice reaches its threshold."
    return "No gate was given: figures without a verdict."


def _named(cell: ReportCell) -> str:
    value = "no figure" if cell.value is None else f"{cell.value:.2f}"
    return f"{cell.slice} ({cell.metric} {value}, threshold {cell.threshold})"


def _facts(report: Report) -> dict[str, object]:
    whole = report.cells[0]
    reuse = report.detail["reuse_count"]
    return {
        "verdict": report.verdict,
        f"{whole.metric} on {whole.slice}": "-" if whole.value is None else f"{whole.value:.1%}",
        "judged frames": f"{whole.n:,}",
        f"groups ({report.group_by or 'no group'})": len(report.detail["group_names"]),
        "earlier reports on these very rows": reuse,
    }


def _slices(report: Report) -> str:
    rows = [
        (
            Markup(f"<b>{html.text(c.slice)}</b><br><span class='soft'>{html.text(c.where or 'every judged frame')}</span>"),
            c.metric,
            html.interval(c.value, c.low, c.high, c.threshold, c.verdict),
            _bounds(c.value, c.low, c.high),
            c.n,
            c.n_groups,
            html.verdict(c.verdict),
        )
        for c in report.cells
    ]
    return html.table(("slice", "metric", "0 to 1", "value, interval", "frames", "groups", "verdict"), rows)


def _bounds(value: float | None, low: float | None, high: float | None, sign: str = "") -> Markup:
    if value is None:
        return Markup("no figure")
    bounds = "no interval" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"
    return Markup(f'<span style="white-space:nowrap"><b>{value:{sign}.3f}</b> <span class="soft">{bounds}</span></span>')


def _filters(filters: Mapping[str, Any]) -> list[str]:
    """Return what the filters before the footage lost, where there were any."""
    if not filters:
        return []
    rows = [
        (
            ", ".join(entry["slices"]) if number == 0 else "",
            row["filter"],
            html.interval(row["recall"], row["low"], row["high"], None, "not gated"),
            _bounds(row["recall"], row["low"], row["high"]),
            f"{row['n_kept']:,} of {row['n_in']:,} {row['unit']}s",
            f"{row['n_found']:,} of {row['n_looked']:,}",
        )
        for entry in filters["slices"]
        for number, row in enumerate(entry["filters"])
    ]
    columns = ("slice", "filter", "0 to 1", "recall, interval", "let through", "found in dropped ones looked at")
    says = "".join(f"<li>{html.text(entry['says'])}</li>" for entry in filters["slices"])
    note = (
        f"Footage of the judged cameras ({html.text(', '.join(filters['cameras']))}): {filters['n_clips']} clips, "
        f"in {filters['n_gated']} of them the packet gate dropped something, {filters['n_cascaded']} went through a cascade. "
        "Of moving GOPs: what does not move the gate's recall does not ask. What a filter dropped, "
        "this model was never judged on."
    )
    table = html.table(columns, rows) if rows else ""
    return ["<h2>What the filters left to be judged</h2>", f'<div class="card"><p>{note}</p>{table}<ul>{says}</ul></div>']


def _notes(report: Report) -> list[str]:
    """Return why each verdict is what it is."""
    items = [f"<li><b>{html.text(c.slice)}</b> ({html.text(c.metric)}): {html.text(c.why)}</li>" for c in report.cells if c.why]
    failed = report.detail["failed_clips"]
    if failed:
        names = html.text(", ".join(failed))
        items.append(f"<li>{len(failed)} of {report.detail['n_clips']} clips could not be read: {names}</li>")
    return [f'<details class="card"><summary>How the figures came about</summary><ul>{"".join(items)}</ul></details>']


def _confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Return the confusion matrix as a picture: a row per truth, shaded by its share of the row."""
    n, left, top = len(labels), 90, 40
    cell = max(_CELL_PX, 150 // n)
    parts = [f'<text class="soft" x="{left}" y="14">predicted</text>']
    for i, name in enumerate(labels):
        short = html.text(name if len(name) < 13 else name[:11] + "..")
        middle = i * cell + cell / 2
        parts.append(f'<text x="{left - 8}" y="{top + middle + 4}" text-anchor="end">{short}</text>')
        parts.append(f'<text x="{left + middle}" y="{top - 6}" text-anchor="middle">{short[:7]}</text>')
        total = max(sum(counts[i]), 1)
        for j, count in enumerate(counts[i]):
            share = count / total
            colour = "var(--good)" if i == j else "var(--bad)"
            place = f'x="{left + j * cell}" y="{top + i * cell}" width="{cell - 2}" height="{cell - 2}" rx="4"'
            parts.append(f'<rect {place} fill="var(--open-bg)"/><rect {place} fill="{colour}" opacity="{share * 0.85:.3f}"/>')
            x, y = left + j * cell + cell / 2 - 1, top + i * cell + cell / 2 + 4
            parts.append(f'<text x="{x}" y="{y}" text-anchor="middle">{share:.0%}</text>' if count else "")
    width, height = left + n * cell + 4, top + n * cell + 4
    svg = f'<svg viewBox="0 0 {width} {height}" width="{width}" style="max-width:100%" role="img">{"".join(parts)}</svg>'
    return f'<div class="card"><h3>Confusion, share of each truth</h3>{svg}</div>'


def _curves(history: Sequence[Mapping[str, float | None]]) -> str:
    names = {"training loss": "train_loss", "val loss": "val_loss", "val acc.": "val_accuracy"}
    series = {title: [float(value) for row in history if (value := row.get(name)) is not None] for title, name in names.items()}
    return html.curves("Training", {title: values for title, values in series.items() if values})


def _classes(per_label: Mapping[str, Any]) -> str:
    rows = []
    for label, figures in per_label.items():
        for name in ("recall", "precision"):
            figure = figures[name]
            three = figure["value"], figure["low"], figure["high"]
            first = label if name == "recall" else ""
            rows.append((first, name, html.interval(*three, None, "not gated"), _bounds(*three), figure["n"]))
    return html.table(("class", "figure", "0 to 1", "value, interval", "frames"), rows)


def _ways(detail: Mapping[str, Any]) -> str:
    windows, load = detail["windows"], detail["under_load"]
    ways = {
        "each frame, smoothed": (detail["outputs"]["smoothed"], "frames"),
        "each frame, raw": (detail["outputs"]["raw"], "frames"),
        f"under load: busy for {load['busy_periods']:g} periods a frame": (load["accuracy"], "frames"),
        "whole rows, majority of their frames": (windows["majority"], "rows"),
        "whole rows, mean probability": (windows["mean_prob"], "rows"),
    }
    rows = []
    for name, (figure, unit) in ways.items():
        three = figure["value"], figure["low"], figure["high"]
        rows.append((name, html.interval(*three, None, "not gated"), _bounds(*three), f"{figure['n']:,} {unit}"))
    lost = windows["n_without_prediction"]
    note = f'<p class="soft">{lost} of {windows["n_rows"]} rows got no prediction.</p>' if lost else ""
    return html.table(("accuracy of", "0 to 1", "value, interval", "of"), rows) + note


def _paired(paired: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the comparison with a baseline on the same frames."""
    if not paired:
        return []
    rows = [
        (
            ", ".join(p["labels"]) or "all classes",
            p["value_first"],
            p["value_second"],
            _difference(p["value"], p["low"], p["high"]),
            _bounds(p["value"], p["low"], p["high"], "+"),
            p["n"],
            p["n_groups"],
        )
        for p in paired
    ]
    columns = ("on", "this model", "baseline", "difference, -1 to 1", "value, interval", "frames", "groups")
    name = html.text(paired[0]["baseline_name"])
    return [f"<h2>Against {name}, on the same frames</h2>", f'<div class="card">{html.table(columns, rows)}</div>']


def _difference(value: float | None, low: float | None, high: float | None) -> Markup:
    """Return a difference on a scale from -1 to 1 with 0 marked: green above, red under, grey across."""
    sure = low is not None and high is not None
    name = "passed" if sure and low > 0 else "failed" if sure and high < 0 else "unknown"  # type: ignore[operator]
    scaled = [None if x is None else (x + 1) / 2 for x in (value, low, high)]
    return html.interval(scaled[0], scaled[1], scaled[2], 0.5, name)


def _lineage(report: Report, report_id: str) -> str:
    origin = report.detail["lineage"]
    facts = {
        "report": report_id,
        "bundle": report.bundle_id,
        "run": origin.get("run_id"),
        "recipe": f"{origin.get('recipe')}, seed {origin.get('seed')}",
        "epoch": f"{origin.get('best_epoch')} of {origin.get('n_epochs')}",
        "trained on": f"{origin.get('dataset')} ({origin.get('selection_id')})",
        "judged on": f"{report.dataset}, split {report.detail['split']} ({report.selection_id})",
        "judged output": report.judged,
    }
    return html.table(("what", "which"), [(name, Markup(f"<code>{html.text(value)}</code>")) for name, value in facts.items()])
