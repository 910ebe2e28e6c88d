"""Self-contained HTML pages: one style sheet and a few charts as inline SVG, no script, no network.

Functions from data to markup. Text from outside (names of clips, labels, messages) goes through `text`; everything
that a function returns is ready to be put into a page. Colours follow the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources


def text(value: object) -> str:
    """Escape anything for HTML."""
    return html.escape(str(value), quote=True)


def page(title: str, body: Sequence[str], *, lead: str = "") -> str:
    """Return a whole document."""
    style = resources.files("infra").joinpath("page.css").read_text(encoding="utf-8")
    intro = f'<p class="lead">{text(lead)}</p>' if lead else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{style}</style></head><body><main><h1>{text(title)}</h1>{intro}"
        + "\n".join(body)
        + "</main></body></html>\n"
    )


def facts(pairs: Mapping[str, object]) -> str:
    """Return a line of large figures, each with what it counts."""
    cells = "".join(f"<div><b>{text(value)}</b><span>{text(name)}</span></div>" for name, value in pairs.items())
    return f'<div class="facts">{cells}</div>'


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; numbers to the right, None as a dash. A cell that is `Markup` is put in as it is."""
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(_row(row) for row in rows)}</tbody></table>"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def _row(row: Sequence[object]) -> str:
    cells = []
    for value in row:
        if isinstance(value, Markup):
            cells.append(f"<td>{value}</td>")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
            cells.append(f'<td class="n">{shown}</td>')
        else:
            cells.append(f"<td>{'-' if value is None else text(value)}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def verdict(name: str) -> Markup:
    """Return a verdict as a coloured pill."""
    return Markup(f'<span class="verdict {text(name.replace(" ", "-"))}">{text(name)}</span>')


def interval(
    value: float | None, low: float | None, high: float | None, threshold: float | None, name: str, *, width: int = 260
) -> Markup:
    """Return [low, high] with its value on a scale from 0 to 1, `width` pixels wide, the threshold as an upright line."""
    height = 26
    if value is None:
        return Markup('<span class="soft">no figure</span>')

    def x(share: float) -> float:
        return 6 + max(0.0, min(1.0, share)) * (width - 12)

    colour = {"passed": "var(--good)", "failed": "var(--bad)"}.get(name, "var(--open)")
    parts = [f'<line x1="6" x2="{width - 6}" y1="13" y2="13" stroke="var(--line)" stroke-width="2"/>']
    if low is not None and high is not None:
        parts.append(
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="13" y2="13" stroke="{colour}" stroke-width="6" '
            'stroke-linecap="round" opacity=".55"/>'
        )
    if threshold is not None:
        at = f"{x(threshold):.1f}"
        parts.append(f'<line x1="{at}" x2="{at}" y1="2" y2="24" stroke="var(--ink)" stroke-width="2"/>')
    parts.append(f'<circle cx="{x(value):.1f}" cy="13" r="5" fill="{colour}"/>')
    return Markup(f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>')


def bars(
    title: str, before: Mapping[str, float], after: Mapping[str, float] | None = None, *, names: tuple[str, str] = ("", "")
) -> str:
    """Return shares per value as horizontal bars, one or two per value (before and after)."""
    keys = list(dict.fromkeys([*before, *(after or {})]))
    step = 40 if after is not None else 24
    height, width, left = len(keys) * step + 8, 460, 120
    largest = max([*before.values(), *(after or {}).values(), 1e-9])
    parts = []
    for number, key in enumerate(keys):
        y = number * step + 6
        parts.append(f'<text x="{left - 8}" y="{y + step / 2 - 1}" text-anchor="end">{text(key)}</text>')
        series = [(before.get(key, 0.0), "var(--accent)")]
        if after is not None:
            series.append((after.get(key, 0.0), "var(--accent-2)"))
        for line, (share, colour) in enumerate(series):
            length = share / largest * (width - left - 60)
            top = y + line * 15
            parts.append(f'<rect x="{left}" y="{top}" width="{max(length, 1):.1f}" height="12" rx="3" fill="{colour}"/>')
            parts.append(f'<text class="soft" x="{left + length + 6:.1f}" y="{top + 10}">{share:.1%}</text>')
    legend = ""
    if after is not None:
        swatch = '<span style="display:inline-block;width:.8em;height:.8em;border-radius:2px;background:{}"></span> {}'
        both = (swatch.format("var(--accent)", text(names[0])), swatch.format("var(--accent-2)", text(names[1])))
        legend = f'<p class="soft">{" &nbsp; ".join(both)}</p>'
    svg = f'<svg viewBox="0 0 {width} {height}" width="100%" role="img">{"".join(parts)}</svg>'
    return f'<div class="card"><h3>{text(title)}</h3>{legend}{svg}</div>'


def curves(title: str, series: Mapping[str, Sequence[float]], *, x_name: str = "epoch") -> str:
    """Return lines over 1, 2, 3, ...; one colour per series; the y axis starts at 0."""
    width, height, left, bottom = 460, 220, 40, 28
    values = [value for line in series.values() for value in line if value == value]
    if not values:
        return f'<div class="card"><h3>{text(title)}</h3><p class="soft">no figures</p></div>'
    top = max(values) * 1.05 or 1.0
    longest = max(len(line) for line in series.values())
    colours = ("var(--accent)", "var(--accent-2)", "var(--good)", "var(--bad)")
    parts = []
    for tick in range(5):
        y = 8 + (height - bottom - 8) * (1 - tick / 4)
        parts.append(f'<line x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text class="soft" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{top * tick / 4:.2f}</text>')
    for number, (name, line) in enumerate(series.items()):
        points = " ".join(
            f"{left + (width - left - 12) * i / max(longest - 1, 1):.1f},{8 + (height - bottom - 8) * (1 - value / top):.1f}"
            for i, value in enumerate(line)
        )
        colour = colours[number % len(colours)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="{left + 8 + number * 130}" y="{height - 6}" style="fill:{colour}">{text(name)}</text>')
    parts.append(f'<text class="soft" x="{width - 8}" y="{height - 6}" text-anchor="end">{text(x_name)} 1 to {longest}</text>')
    svg = f'<svg viewBox="0 0 {width} {height}" width="100%" role="img">{"".join(parts)}</svg>'
    return f'<div class="card"><h3>{text(title)}</h3>{svg}</div>'


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A named box on a picture, in the picture's pixels."""

    x1: float
    y1: float
    x2: float
    y2: float
    name: str


def picture(jpeg: bytes, width_px: int, height_px: int, caption: str, boxes: Sequence[Box] = ()) -> str:
    """Return a picture with its boxes drawn over it and a caption."""
    drawn = []
    for box in boxes:
        drawn.append(
            f'<rect x="{box.x1:.1f}" y="{box.y1:.1f}" width="{box.x2 - box.x1:.1f}" height="{box.y2 - box.y1:.1f}" '
            f'fill="none" stroke="#ffb74d" stroke-width="{width_px / 160:.1f}"/>'
            f'<text x="{box.x1 + 2:.1f}" y="{max(box.y1 - 3, 10):.1f}" style="fill:#ffb74d;font-size:{width_px / 22:.0f}px;'
            f'font-weight:600;paint-order:stroke;stroke:#0008;stroke-width:3px">{text(box.name)}</text>'
        )
    data = base64.b64encode(jpeg).decode()
    return (
        f'<figure class="tile"><svg viewBox="0 0 {width_px} {height_px}" role="img">'
        f'<image href="data:image/jpeg;base64,{data}" width="{width_px}" height="{height_px}"/>{"".join(drawn)}</svg>'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def tiles(pictures: Sequence[str]) -> str:
    """Return pictures in a grid."""
    return f'<div class="tiles">{"".join(pictures)}</div>'
