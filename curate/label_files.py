"""Label files: rows of text in, rows of text out; `labels` gives them their meaning.

CSV (with a header) or JSON (a list of objects, or {"labels": [...]}), one row per interval:

    clip,start_s,end_s,label            clip: clip_id, path below the ingested folder, or a file name that is unique
    farm/0412.mp4,12.5,20,person        also clip_id, source_name, path, video
    farm/0412.mp4,01:20:05,01:20:34,ad  seconds or [hh:]mm:ss[.mmm] from the clip's first frame, hours kept
    farm/0412.mp4,,,empty               no start = the clip's start, no end = its end
    ...,start_pts,end_pts,...           or exact ticks; or one column `interval`: 01:20:05 - 01:20:34

and optionally factor (a condition such as lighting, instead of a class), annotator, x1 y1 x2 y2 (stored-picture pixels).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal

from infra.errors import UsageError

CLIP_COLUMNS: Final = ("clip", "clip_id", "source_name", "path", "video")
TIME_COLUMNS: Final = ("start_s", "end_s", "start_pts", "end_pts", "interval")
BOX: Final = ("x1", "y1", "x2", "y2")
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d{1,3}):)?(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One row of a label file, as text; `line` is where it stands, for messages."""

    line: int
    clip: str
    label: str
    start: str = ""
    end: str = ""
    unit: Literal["s", "pts"] = "s"
    factor: str | None = None
    annotator: str | None = None
    box: tuple[float, float, float, float] | None = None


def parse_seconds(text: str) -> Fraction:
    """Return seconds of `75.5`, `1:15.5` or `01:20:34`, exactly.

    Raises:
        UsageError: it is none of these.
    """
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"time {text!r} is not seconds (75.5) or [hh:]mm:ss[.mmm] (01:15.5)")
    hours, minutes, seconds = match.groups()
    if hours is not None and int(minutes) > 59:
        raise UsageError(f"time {text!r}: {minutes} minutes beside hours; legal: 0 to 59")
    if minutes is not None and Fraction(seconds) >= 60:
        raise UsageError(f"time {text!r}: {seconds} seconds beside minutes; legal: below 60")
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + Fraction(seconds)


def read_file(path: Path) -> list[Said]:
    """Read a label file by its ending.

    Raises:
        UsageError: missing, not CSV or JSON, or without a column for clip or label.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text: {error}") from error
    if path.suffix.lower() == ".json":
        try:
            document = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{path}: not JSON: {error}") from error
        rows = document.get("labels") if isinstance(document, dict) else document
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UsageError(
                f'{path}: expected a list of objects, or {{"labels": [...]}}; camloop label import --help has an example'
            )
        found = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
        return [_said(row, number, str(path)) for number, row in enumerate(found, 1)]
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    return [_said({k: v or "" for k, v in row.items() if k}, number, str(path)) for number, row in enumerate(reader, 2)]


def _said(row: Mapping[str, str], line: int, origin: str) -> Said:
    where = f"{origin}, row {line}"
    clip = next((row[name] for name in CLIP_COLUMNS if row.get(name)), None)
    label = row.get("label") or row.get("name")
    if not clip or not label:
        raise UsageError(
            f"{where}: no {'clip' if not clip else 'label'}; columns are {', '.join(row)}; "
            f"needed: one of {' '.join(CLIP_COLUMNS)}, and label; times: {' '.join(TIME_COLUMNS)}"
        )
    start, end = row.get("start_s", row.get("start", "")), row.get("end_s", row.get("end", ""))
    unit: Literal["s", "pts"] = "s"
    if row.get("start_pts") or row.get("end_pts"):
        unit, start, end = "pts", row.get("start_pts", ""), row.get("end_pts", "")
    elif row.get("interval"):
        start, dash, end = row["interval"].partition(" - ") if " - " in row["interval"] else row["interval"].partition("-")
        if not dash:
            raise UsageError(f"{where}: interval {row['interval']!r}; expected 01:20:05 - 01:20:34")
    box = [row[name] for name in BOX if row.get(name)]
    try:
        corners = tuple(float(text) for text in box)
    except ValueError as error:
        raise UsageError(f"{where}: box {' '.join(box)} is not four numbers of pixels") from error
    if len(corners) not in (0, 4):
        raise UsageError(f"{where}: a box needs x1, y1, x2 and y2, got {len(corners)} of them")
    return Said(
        line=line, clip=clip.strip(), label=label.strip(), start=start.strip(), end=end.strip(), unit=unit,
        factor=row.get("factor") or None, annotator=row.get("annotator") or None,
        box=(corners[0], corners[1], corners[2], corners[3]) if corners else None,
    )  # fmt: skip
