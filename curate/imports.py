"""What people know about files before camloop sees them: class folders, label tables, labels per frame.

`--labels folders`    DIR/CLASS/a.mp4 or DIR/CLASS/0001.png: the first folder below DIR is the class of the whole clip.
`--table labels.csv --columns path=path,label=label,group=scene_group --null unlisted`
                      one row per file, `path` relative to DIR. label = a class over the whole clip; group = what a split
                      keeps together (`clips.source_group`); any other name = a factor of the clip. The null text and
                      an empty cell mean "not known": no label, no factor, no group.
`--table labels.csv`  with columns video, frame, label (and split): labels per image of the folder VIDEO, joined to
                      intervals; `split` becomes a factor of the clip and may not differ within one video.

Everything becomes rows of table `labels`, said by an annotator; what has no partner on the other side is reported.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from curate import labels
from curate.arrivals import Arrival
from curate.labels import Extent
from infra.errors import UsageError
from infra.records import Label

FRAME_COLUMNS: Final = {"video": "video", "frame": "frame", "label": "label"}
_NUMBER = re.compile(r"(\d+)$")
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What was said about one file. `frames` maps a frame's number to its label; `says_group`: a group column exists."""

    label: str | None = None
    group: str | None = None
    says_group: bool = False
    factors: Mapping[str, str] = field(default_factory=dict)
    frames: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """What was said about all files, and what found no partner."""

    given: Mapping[str, Given]
    annotator: str
    rest: str | None = None
    rows_without_file: tuple[str, ...] = ()
    files_without_row: tuple[str, ...] = ()

    def about(self, arrival: Arrival) -> Given:
        """Return what was said about a file; nothing, if there is no row for it."""
        return self.given.get(arrival.source_name, Given())

    def remarks(self) -> list[str]:
        """Say what has no partner, a few by name and the rest by number."""
        return [
            f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
            for what, names in (
                ("rows name no file here", self.rows_without_file),
                ("files have no row", self.files_without_row),
            )
            if names
        ]


def frame_number(name: str) -> int | None:
    """Return the number at the end of a frame's name (`VIDEO_00001.jpg`, `17`), None when there is none."""
    match = _NUMBER.search(name.rsplit("/", 1)[-1].rsplit(".", 1)[0])
    return int(match.group(1)) if match else None


def from_folders(arrivals: Iterable[Arrival], *, rest: str | None = None) -> Import:
    """Take the first folder below the ingested one as the class of each clip.

    Raises:
        UsageError: no file lies in a class folder.
    """
    given, without = {}, []
    for arrival in arrivals:
        parts = arrival.source_name.split("/")
        if len(parts) > 1 or arrival.members:
            given[arrival.source_name] = Given(label=parts[0])
        else:
            without.append(arrival.source_name)
    if not given:
        raise UsageError("--labels folders: no file lies in a class folder; expected DIR/CLASS/clip.mp4 or DIR/CLASS/0001.png")
    return Import(given=given, annotator="folders", rest=rest, files_without_row=tuple(without))


def parse_columns(text: str | None) -> dict[str, str]:
    """Read `path=path,label=label,group=scene_group`: what it means = the table's column.

    Raises:
        UsageError: a part without `=`, or a meaning twice.
    """
    mapped: dict[str, str] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        meaning, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not meaning or not column or meaning in mapped:
            raise UsageError(
                f"--columns {text!r}: {part!r} is not a new meaning=column; example path=path,label=label,group=scene_group"
            )
        mapped[meaning] = column
    return mapped


def from_table(
    path: Path, columns: str | None, arrivals: Sequence[Arrival], *, null: str | None = None, rest: str | None = None
) -> Import:
    """Read a table of labels about the files found.

    Args:
        path: CSV with a header.
        columns: --columns; without it `path,label` or `video,frame,label` are looked for in the header.
        arrivals: what was found, with source_name below the ingested folder.
        null: text that means "not known", beside an empty cell.
        rest: name for the time and the files that no row labels, or None.

    Raises:
        UsageError: unreadable, a column that is not there, two rows that disagree, or no row that names a file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            rows, header = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--table {path}: cannot be read as CSV: {error}") from error
    mapped = parse_columns(columns)
    if not mapped:
        usual = FRAME_COLUMNS if "video" in header and "frame" in header else {"path": "path", "label": "label"}
        mapped = {**usual, **({"split": "split"} if "split" in header and "frame" in header else {})}
    for meaning, column in mapped.items():
        if column not in header:
            near = difflib.get_close_matches(column, header, n=3) or header
            raise UsageError(
                f"--table {path}: no column {column!r} for {meaning}; it has {', '.join(near)}; say --columns {meaning}=COLUMN"
            )
    cells = [
        {meaning: text for meaning, column in mapped.items() if (text := (row[column] or "").strip()) and text != null}
        for row in rows
    ]
    if "frame" in mapped:
        given, lost = _frames(cells, "video" if "video" in mapped else "path", arrivals)
    elif "path" in mapped:
        given, lost = _files(cells, mapped.keys(), arrivals)
    else:
        raise UsageError(f"--columns {columns!r} has no path; say path=COLUMN (files), or video=COLUMN,frame=COLUMN (images)")
    names = [arrival.source_name for arrival in arrivals]
    if not given:
        said, there = ", ".join(lost[:2]) or "nothing", ", ".join(names[:2])
        raise UsageError(f"--table {path}: none of its {len(rows)} rows names a file here; rows say {said}; files are {there}")
    unnamed = tuple(name for name in names if name not in given)
    if rest is not None and "frame" not in mapped:
        given = {**given, **{name: Given(label=rest) for name in unnamed}}
    return Import(
        given=given, annotator=f"table {path.name}", rest=rest, rows_without_file=tuple(lost), files_without_row=unnamed
    )


def _files(
    cells: Sequence[Mapping[str, str]], meanings: Iterable[str], arrivals: Sequence[Arrival]
) -> tuple[dict[str, Given], list[str]]:
    known = {arrival.source_name for arrival in arrivals}
    says_group = "group" in set(meanings)
    given: dict[str, Given] = {}
    lost = []
    for line, row in enumerate(cells, 2):
        name = row.get("path", "").replace("\\", "/").removeprefix("./")
        if name not in known:
            lost.append(name or f"(row {line})")
            continue
        factors = {meaning: text for meaning, text in row.items() if meaning not in ("path", "label", "group")}
        made = Given(label=row.get("label"), group=row.get("group"), says_group=says_group, factors=factors)
        if given.setdefault(name, made) != made:
            raise UsageError(f"row {line}: {name} was described before, differently; one row per file")
    return given, lost


def _frames(cells: Sequence[Mapping[str, str]], video: str, arrivals: Sequence[Arrival]) -> tuple[dict[str, Given], list[str]]:
    folders: dict[str, str] = {}
    for arrival in arrivals:
        if arrival.members:
            folders[arrival.source_name] = arrival.source_name
            folders.setdefault(arrival.source_name.rsplit("/", 1)[-1], arrival.source_name)
    said: dict[str, dict[int, str]] = {}
    splits: dict[str, str] = {}
    lost = []
    images = {a.source_name: {frame_number(member.name) for member in a.members} for a in arrivals}
    for line, row in enumerate(cells, 2):
        name, number = folders.get(row.get(video, "")), frame_number(row.get("frame", ""))
        if name is None or number is None or number not in images[name]:
            lost.append(f"{row.get(video, '?')} {row.get('frame', '?')}")
            continue
        if "label" in row and said.setdefault(name, {}).setdefault(number, row["label"]) != row["label"]:
            raise UsageError(f"row {line}: frame {number} of {name} was {said[name][number]} before and is {row['label']} here")
        if "split" in row and splits.setdefault(name, row["split"]) != row["split"]:
            raise UsageError(
                f"row {line}: {name} is in split {splits[name]} and in {row['split']}; a video belongs to one split"
            )
    given = {
        name: Given(frames=said.get(name, {}), factors={"split": splits[name]} if name in splits else {})
        for name in said.keys() | splits.keys()
    }
    return given, lost


def frames_without_row(given: Given, arrival: Arrival) -> list[str]:
    """Return the images of a folder that no row of the table labels."""
    return [member.name for member in arrival.members if given.frames and frame_number(member.name) not in given.frames]


def to_labels(
    imported: Import, given: Given, extent: Extent, created_ns: int, frames: Sequence[tuple[int | None, int]] = ()
) -> list[Label]:
    """Return the label rows of one clip.

    Args:
        imported: the import, for annotator and rest.
        given: what was said about this clip's file.
        extent: the registered clip.
        created_ns: UTC nanoseconds of this import.
        frames: (frame number, pts) of each image in order of pts, for labels per frame.
    """
    whole = (extent.first_pts, extent.end_pts)
    spans = [(whole, given.label)] if given.label is not None else []
    if given.frames:
        names = [None if number is None else given.frames.get(number) for number, _ in frames]
        spans += labels.runs(names, [pts for _, pts in frames], extent.end_pts)
        if imported.rest is not None:
            spans += [(span, imported.rest) for span in labels.complement([span for span, _ in spans], *whole)]
    made = [labels.make(extent, span, name, annotator=imported.annotator, created_ns=created_ns) for span, name in spans]
    factors = (
        labels.make(extent, whole, text, annotator=imported.annotator, created_ns=created_ns, factor=factor)
        for factor, text in sorted(given.factors.items())
    )
    return [*made, *factors]
