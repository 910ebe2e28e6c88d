"""People's words about footage: rows of a label file become labels, and what contradicts itself is said aloud.

Intervals are half-open, [start, end); a file whose ends are inclusive says `--ends closed`, and the frame shown at the
end time is then inside. A label_id is derived from what is said, so importing a file twice adds nothing. Nothing is ever
changed: a withdrawn label is a row that `retracts` it. Time without a label is unlabelled, unless `rest` names it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Literal

from curate.label_files import BOX, Said, parse_seconds
from infra import keys
from infra.errors import UsageError
from infra.records import Label

if TYPE_CHECKING:
    from infra.catalog import Catalog

Ends = Literal["open", "closed"]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What a label needs to know of a clip: its names and [first_pts, end_pts) in ticks of `time_base` seconds."""

    clip_id: str
    source_name: str
    first_pts: int
    end_pts: int
    time_base: Fraction

    def pts_at(self, seconds: Fraction) -> int:
        """Return the tick nearest to `seconds` after the clip's first frame."""
        return self.first_pts + round(seconds / self.time_base)


class Names:
    """Finds clips by what people call them: clip_id, source_name, or a file name that is unique (ending optional)."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._exact: dict[str, Extent] = {}
        self._short: dict[str, list[Extent]] = {}
        for extent in extents:
            self._exact[extent.clip_id] = self._exact[extent.source_name] = extent
            base = extent.source_name.rsplit("/", 1)[-1]
            for name in {base, base.rsplit(".", 1)[0], extent.source_name.rsplit(".", 1)[0]}:
                self._short.setdefault(name, []).append(extent)

    def find(self, name: str) -> Extent:
        """Return the clip of that name.

        Raises:
            UsageError: no clip, or several, have it; near names are offered.
        """
        if name in self._exact:
            return self._exact[name]
        found = self._short.get(name, [])
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(sorted(extent.source_name for extent in found)[:4])
            raise UsageError(f"clip {name!r} could be {len(found)} clips ({names}); give the path or the clip_id")
        near = difflib.get_close_matches(name, [*self._exact, *self._short], n=3)
        raise UsageError(f"no clip {name!r}" + (f"; near: {', '.join(near)}" if near else "; camloop ingest registers clips"))


def to_span(said: Said, extent: Extent, ends: Ends) -> Span:
    """Return [start_pts, end_pts) of a row in its clip.

    Raises:
        UsageError: unreadable, empty, or outside the clip; an end is forgiven one second, to which people round.
    """
    try:
        if said.unit == "pts":
            start = int(said.start) if said.start else extent.first_pts
            end = int(said.end) if said.end else extent.end_pts
        else:
            start = extent.pts_at(parse_seconds(said.start)) if said.start else extent.first_pts
            end = extent.pts_at(parse_seconds(said.end)) if said.end else extent.end_pts
    except ValueError as error:
        raise UsageError(f"{said.start!r} to {said.end!r} are not integer ticks") from error
    if ends == "closed" and said.end:
        end += 1
    slack = round(1 / extent.time_base)
    if start >= extent.end_pts or end > extent.end_pts + slack or start < extent.first_pts:
        length = float((extent.end_pts - extent.first_pts) * extent.time_base)
        raise UsageError(
            f"{said.start or 'start'} to {said.end or 'end'} leaves clip {extent.source_name}, which is {length:.2f} s long"
        )
    end = min(end, extent.end_pts)
    if end <= start:
        raise UsageError(f"{said.start} to {said.end} is empty; with inclusive ends say --ends closed")
    return start, end


def make(extent: Extent, span: Span, name: str, *, annotator: str, created_ns: int, factor: str | None = None,
         box: tuple[float, float, float, float] | None = None) -> Label:  # fmt: skip
    """Return a label whose id is a pure function of what is said, so that saying it again changes nothing."""
    corners = None if box is None else json.dumps(box)
    label_id = keys.derived_id("label", extent.clip_id, span[0], span[1], factor, name, annotator, corners)
    return Label(label_id=label_id, clip_id=extent.clip_id, start_pts=span[0], end_pts=span[1], factor=factor, name=name,
                 box=box, annotator=annotator, created_ns=created_ns)  # fmt: skip


def complement(spans: Iterable[Span], first_pts: int, end_pts: int) -> list[Span]:
    """Return the parts of [first_pts, end_pts) that no span covers, in order."""
    rest, position = [], first_pts
    for start, end in sorted(spans):
        if start > position:
            rest.append((position, min(start, end_pts)))
        position = max(position, end)
    if position < end_pts:
        rest.append((position, end_pts))
    return [(start, end) for start, end in rest if start < end]


def runs(names: Sequence[str | None], pts: Sequence[int], end_pts: int) -> list[tuple[Span, str]]:
    """Join equal labels of neighbouring frames to intervals; a frame without a label (None) ends one.

    Args:
        names: one label per frame, in order of pts.
        pts: the frames' pts, as many.
        end_pts: end of the clip.
    """
    made: list[tuple[Span, str]] = []
    for position, name in enumerate(names):
        if name is None:
            continue
        end = pts[position + 1] if position + 1 < len(pts) else end_pts
        if made and made[-1][1] == name and made[-1][0][1] == pts[position]:
            made[-1] = ((made[-1][0][0], end), name)
        else:
            made.append(((pts[position], end), name))
    return made


def contradictions(labels: Sequence[Label], extents: Mapping[str, Extent]) -> list[str]:
    """Say where two different class labels, or two values of one factor, cover the same time of a clip (boxes apart)."""
    found = []
    groups: dict[tuple[str, str | None], list[Label]] = {}
    for label in labels:
        if label.box is None:
            groups.setdefault((label.clip_id, label.factor), []).append(label)
    for (clip_id, _), members in groups.items():
        ordered = sorted(members, key=lambda label: (label.start_pts, label.end_pts, label.name))
        for position, one in enumerate(ordered):
            for other in ordered[position + 1 :]:
                if other.start_pts >= one.end_pts:
                    break
                if other.name != one.name:
                    span = (other.start_pts, min(one.end_pts, other.end_pts))
                    found.append(
                        f"{extents[clip_id].source_name}: {one.name} and {other.name} both say {_when(span, extents[clip_id])}"
                    )
    return found


def uncovered(labels: Sequence[Label], extents: Mapping[str, Extent]) -> list[str]:
    """Say which time of the labelled clips no class label covers."""
    spans: dict[str, list[Span]] = {}
    for label in labels:
        if label.factor is None:
            spans.setdefault(label.clip_id, []).append((label.start_pts, label.end_pts))
    return [
        f"{extents[clip_id].source_name}: no label {_when(span, extents[clip_id])}"
        for clip_id, said in spans.items()
        for span in complement(said, extents[clip_id].first_pts, extents[clip_id].end_pts)
    ]


def _when(span: Span, extent: Extent) -> str:
    start, end = (float((pts - extent.first_pts) * extent.time_base) for pts in span)
    return f"from {start:.2f} s to {end:.2f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A label file against the catalog: labels to write, rows that could not be understood, what to look at."""

    labels: tuple[Label, ...]
    problems: tuple[str, ...]
    contradictions: tuple[str, ...]
    gaps: tuple[str, ...]


def resolve(
    said: Sequence[Said],
    extents: Sequence[Extent],
    *,
    annotator: str,
    created_ns: int,
    ends: Ends = "open",
    rest: str | None = None,
) -> Resolved:
    """Turn rows into labels; nothing is written here.

    Args:
        said: rows of a file.
        extents: all clips of the catalog.
        annotator: for rows that name none.
        created_ns: UTC nanoseconds of this import.
        ends: whether the file's ends are inside ("closed") or not.
        rest: name of the complement class in the clips that the file names, or None.
    """
    names, labels, problems, held = Names(extents), dict[str, Label](), list[str](), dict[str, Extent]()
    for row in said:
        try:
            extent = names.find(row.clip)
            span = to_span(row, extent, ends)
        except UsageError as error:
            problems.append(f"row {row.line}: {error}")
            continue
        held[extent.clip_id] = extent
        label = make(
            extent, span, row.label, annotator=row.annotator or annotator, created_ns=created_ns, factor=row.factor, box=row.box
        )
        labels[label.label_id] = label
    gaps = uncovered(list(labels.values()), held)
    if rest is not None:
        for extent in held.values():
            spans = [(x.start_pts, x.end_pts) for x in labels.values() if x.clip_id == extent.clip_id and x.factor is None]
            for span in complement(spans, extent.first_pts, extent.end_pts):
                label = make(extent, span, rest, annotator=annotator, created_ns=created_ns)
                labels[label.label_id] = label
    found = tuple(labels.values())
    return Resolved(
        labels=found,
        problems=tuple(problems),
        contradictions=tuple(contradictions(found, held)),
        gaps=() if rest else tuple(gaps),
    )


def extents(catalog: Catalog) -> list[Extent]:
    """Return the extent of every live clip."""
    columns = ["clip_id", "source_name", "key", "first_pts", "end_pts", "time_base_num", "time_base_den"]
    return [
        Extent(clip_id=row["clip_id"], source_name=row["source_name"] or row["key"], first_pts=row["first_pts"],
               end_pts=row["end_pts"], time_base=Fraction(row["time_base_num"], row["time_base_den"]))
        for row in catalog.scan("clips", columns).collect().iter_rows(named=True)
    ]  # fmt: skip


def read_all(catalog: Catalog) -> list[Label]:
    """Return every label row ever written, retractions and retracted ones too, oldest first."""
    rows = catalog.scan("labels", [*_FIELDS, *BOX]).collect().iter_rows(named=True)
    made = [
        Label(
            box=None if row["x1"] is None else (row["x1"], row["y1"], row["x2"], row["y2"]),
            **{name: row[name] for name in _FIELDS},
        )
        for row in rows
    ]
    return sorted({label.label_id: label for label in made}.values(), key=lambda label: (label.created_ns, label.label_id))


_FIELDS: Final = tuple(field.name for field in dataclasses.fields(Label) if field.name != "box")


def live(labels: Sequence[Label]) -> list[Label]:
    """Return the labels in force: no retractions, and none that is retracted."""
    gone = {label.retracts for label in labels if label.retracts}
    return [label for label in labels if label.retracts is None and label.label_id not in gone]


def write(catalog: Catalog, labels: Iterable[Label]) -> int:
    """Append those labels whose id the table does not hold (also a retracted one is held); return how many."""
    wanted = {label.label_id: label for label in labels}
    if not wanted:
        return 0
    held = set(catalog.scan("labels", ["label_id"]).collect()["label_id"].to_list())
    fresh = [_table_row(label) for label_id, label in wanted.items() if label_id not in held]
    if fresh:
        catalog.append("labels", fresh)
    return len(fresh)


def _table_row(label: Label) -> dict[str, Any]:
    corners = label.box or (None, None, None, None)
    return {**{name: getattr(label, name) for name in _FIELDS}, **dict(zip(BOX, corners, strict=True))}


def retract(catalog: Catalog, label_id: str, *, annotator: str, created_ns: int) -> Label:
    """Withdraw a label: append a row that retracts it. An id may be shortened to eight digits or more.

    Raises:
        UsageError: no live label has the id, or several have the beginning.
    """
    found = [label for label in live(read_all(catalog)) if label.label_id.startswith(label_id)] if len(label_id) >= 8 else []
    if len(found) != 1:
        raise UsageError(f"label {label_id!r}: {len(found)} labels in force have this id; camloop label list shows them")
    gone = found[0]
    withdrawn = keys.derived_id("retract", gone.label_id)
    write(
        catalog,
        [dataclasses.replace(gone, label_id=withdrawn, retracts=gone.label_id, annotator=annotator, created_ns=created_ns)],
    )
    return gone


def export_rows(labels: Sequence[Label], extents: Mapping[str, Extent]) -> list[dict[str, Any]]:
    """Return labels as rows that `read_file` reads back to the same labels: ticks are exact, seconds are for people."""
    rows = []
    for label in sorted(
        labels, key=lambda x: (extents[x.clip_id].source_name if x.clip_id in extents else "", x.start_pts, x.name)
    ):
        extent = extents.get(label.clip_id)
        corners = label.box or ("", "", "", "")
        seconds = {name: "" if extent is None else round(float((pts - extent.first_pts) * extent.time_base), 3)
                   for name, pts in (("start_s", label.start_pts), ("end_s", label.end_pts))}  # fmt: skip
        where = {"clip_id": label.clip_id, "source_name": extent.source_name if extent else "", **seconds}
        exact = {"start_pts": label.start_pts, "end_pts": label.end_pts}
        said = {"factor": label.factor or "", "label": label.name, "annotator": label.annotator}
        rows.append({**where, **exact, **said, **dict(zip(BOX, corners, strict=True)), "label_id": label.label_id})
    return rows
