"""Labels: times, intervals, what contradicts itself, and what a table of people's words becomes."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate import imports, label_files, labels
from curate.arrivals import Arrival
from curate.labels import Extent
from infra.catalog import Catalog, open_catalog
from infra.errors import UsageError
from infra.store import DirStore

FARM = Extent(clip_id="a" * 32, source_name="farm/0412.mp4", first_pts=100, end_pts=10_100, time_base=Fraction(1, 1000))
GATE = Extent(clip_id="b" * 32, source_name="gate/0412.mp4", first_pts=0, end_pts=9_000_000, time_base=Fraction(1, 1000))


def read(tmp_path: Path, text: str, name: str = "l.csv") -> list[label_files.Said]:
    """Write a label file and read it."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    return label_files.read_file(tmp_path / name)


def resolve(said: list[label_files.Said], **options: object) -> labels.Resolved:
    """Resolve against the two clips."""
    return labels.resolve(said, [FARM, GATE], annotator="ann", created_ns=5, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("75.5", Fraction(151, 2)),
        ("1:15.5", Fraction(151, 2)),
        ("01:20:34", Fraction(4834)),
        ("90:00", Fraction(5400)),
        ("0", Fraction(0)),
    ],
)
def test_times_keep_hours(text: str, seconds: Fraction) -> None:
    """Seconds, mm:ss and hh:mm:ss are exact, hours kept."""
    assert label_files.parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "abc", "1:75", "1:75:00", "-3", "1:2:3:4"])
def test_times_that_are_none(text: str) -> None:
    """What is no time is refused with the value."""
    with pytest.raises(UsageError, match="time"):
        label_files.parse_seconds(text)


def test_seconds_ticks_intervals_and_open_ends(tmp_path: Path) -> None:
    """Seconds count from the first frame, ticks are exact, an `interval` keeps its hours, empty means the border."""
    said = read(
        tmp_path,
        "clip,start_s,end_s,start_pts,end_pts,interval,label\n"
        "farm/0412.mp4,1.5,3,,,,a\nfarm/0412.mp4,,,200,300,,b\n"
        "gate/0412.mp4,,,,,01:20:05 - 01:20:34,c\nfarm/0412.mp4,9,,,,,d\n",
    )
    found = {label.name: (label.start_pts, label.end_pts) for label in resolve(said).labels}
    assert found == {"a": (1600, 3100), "b": (200, 300), "c": (4_805_000, 4_834_000), "d": (9100, 10_100)}


def test_closed_ends_hold_one_tick_more(tmp_path: Path) -> None:
    """With `--ends closed` the frame shown at the end is inside; a single-frame interval is then not empty."""
    said = read(tmp_path, "clip,start_pts,end_pts,label\nfarm/0412.mp4,200,300,x\nfarm/0412.mp4,400,400,y\n")
    spans = [(label.start_pts, label.end_pts) for label in resolve(said, ends="closed").labels]
    assert spans == [(200, 301), (400, 401)]
    assert "--ends closed" in resolve(said).problems[0]


def test_unknown_and_ambiguous_clips(tmp_path: Path) -> None:
    """An unknown clip gets near names, an ambiguous file name its candidates; the other rows are understood."""
    said = read(tmp_path, "clip,label\nfarm/0421.mp4,x\n0412,x\n" + "a" * 32 + ",x\n")
    found = resolve(said)
    assert len(found.labels) == 1
    assert "farm/0412.mp4" in found.problems[0]
    assert found.problems[0].startswith("row 2")
    assert "could be 2 clips" in found.problems[1]


def test_times_outside_the_clip(tmp_path: Path) -> None:
    """An interval beyond the clip is a problem that names its length; an end within a second of it is cut to it."""
    said = read(tmp_path, "clip,start_s,end_s,label\nfarm/0412.mp4,2,60,x\nfarm/0412.mp4,2,10.5,y\nfarm/0412.mp4,11,12,z\n")
    found = resolve(said)
    assert [(label.name, label.end_pts) for label in found.labels] == [("y", 10_100)]
    assert all("10.00 s long" in problem for problem in found.problems)


def test_contradictions_gaps_and_rest(tmp_path: Path) -> None:
    """Overlapping classes are reported, gaps too, unless a complement class was asked for by name."""
    said = read(tmp_path, "clip,start_pts,end_pts,label\nfarm/0412.mp4,100,600,x\nfarm/0412.mp4,500,900,y\n")
    found = resolve(said)
    assert found.contradictions == ("farm/0412.mp4: x and y both say from 0.40 s to 0.50 s",)
    assert found.gaps == ("farm/0412.mp4: no label from 0.80 s to 10.00 s",)
    rest = resolve(said, rest="none")
    assert [(x.start_pts, x.end_pts) for x in rest.labels if x.name == "none"] == [(900, 10_100)]
    assert rest.gaps == ()


def test_json_and_boxes(tmp_path: Path) -> None:
    """JSON rows mean the same as CSV rows; a factor, an annotator and a box are kept."""
    row = {"clip_id": "a" * 32, "label": "dark", "factor": "lighting", "annotator": "me", "x1": 1, "y1": 2, "x2": 3, "y2": 4}
    label = resolve(read(tmp_path, json.dumps({"labels": [row]}), "l.json")).labels[0]
    assert (label.factor, label.annotator, label.box) == ("lighting", "me", (1.0, 2.0, 3.0, 4.0))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a,b\n1,2\n", "no clip"),
        ("clip,x\nq,2\n", "no label"),
        ("clip,label,x1\nq,a,3\n", "a box needs"),
        ("clip,label,interval\nq,a,5\n", "interval"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str, match: str) -> None:
    """A file without the needed columns is refused and says which are."""
    with pytest.raises(UsageError, match=match):
        read(tmp_path, text)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).filter(lambda s: s[0] < s[1]), max_size=8))
def test_complement_and_spans_cover_everything_once(spans: list[tuple[int, int]]) -> None:
    """Each tick lies in a span or in the complement, never in both."""
    rest = labels.complement(spans, 0, 50)
    inside = {tick for start, end in spans for tick in range(start, end)}
    outside = [tick for start, end in rest for tick in range(start, end)]
    assert sorted(outside) == sorted(set(range(50)) - inside)


def test_runs_of_frames() -> None:
    """Equal neighbours join, a frame without a label ends an interval, the last frame lasts to the clip's end."""
    assert labels.runs(["a", "a", None, "a", "b"], [0, 10, 20, 30, 40], 50) == [
        ((0, 20), "a"),
        ((30, 40), "a"),
        ((40, 50), "b"),
    ]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Return an empty catalog."""
    return open_catalog(DirStore(tmp_path / "store"))


def test_import_twice_export_and_retract(catalog: Catalog, tmp_path: Path) -> None:
    """A second import adds nothing, an export reads back to the same ids, a retracted label stays away on re-import."""
    said = read(tmp_path, "clip,start_s,end_s,label\nfarm/0412.mp4,1,2,x\ngate/0412.mp4,1,2,y\n")
    found = resolve(said).labels
    assert (labels.write(catalog, found), labels.write(catalog, found)) == (2, 0)
    rows = labels.export_rows(labels.live(labels.read_all(catalog)), {x.clip_id: x for x in (FARM, GATE)})
    again = resolve(read(tmp_path, json.dumps(rows), "out.json")).labels
    assert {label.label_id for label in again} == {label.label_id for label in found}
    gone = labels.retract(catalog, found[0].label_id[:8], annotator="me", created_ns=9)
    assert gone == found[0]
    assert labels.write(catalog, found) == 0
    assert [label.name for label in labels.live(labels.read_all(catalog))] == ["y"]
    with pytest.raises(UsageError, match="0 labels in force"):
        labels.retract(catalog, found[0].label_id, annotator="me", created_ns=9)


def files(*names: str) -> list[Arrival]:
    """Return arrivals of those names."""
    return [Arrival(source_name=name, uri=name, container="mp4", n_bytes=1, path=Path(name)) for name in names]


def roll(name: str, *numbers: int) -> Arrival:
    """Return an image folder with frames of those numbers."""
    members = tuple(Path(f"{name}/{name}_{number:05d}.jpg") for number in numbers)
    return Arrival(source_name=name, uri=name, container="tar", n_bytes=1, members=members)


def test_table_of_files(tmp_path: Path) -> None:
    """Labels, groups and factors come from named columns; the null text means unknown; both sides' orphans are reported."""
    (tmp_path / "t.csv").write_text("path,label,video,wx\na/1.mp4,fight,v1,rain\na/2.mp4,calm,unlisted,\na/9.mp4,calm,v1,\n")
    columns = "path=path,label=label,group=video,weather=wx"
    found = imports.from_table(tmp_path / "t.csv", columns, files("a/1.mp4", "a/2.mp4", "a/3.mp4"), null="unlisted")
    assert found.given["a/1.mp4"] == imports.Given(label="fight", group="v1", says_group=True, factors={"weather": "rain"})
    assert (found.given["a/2.mp4"].group, found.given["a/2.mp4"].says_group) == (None, True)
    assert (found.rows_without_file, found.files_without_row) == (("a/9.mp4",), ("a/3.mp4",))
    assert len(found.remarks()) == 2
    said = imports.to_labels(found, found.given["a/1.mp4"], FARM, 5)
    assert [(x.name, x.factor, x.start_pts, x.end_pts) for x in said] == [
        ("fight", None, 100, 10_100),
        ("rain", "weather", 100, 10_100),
    ]


@pytest.mark.parametrize(
    ("text", "columns", "match"),
    [
        ("path,labels\na/1.mp4,x\n", "path=path,label=label", "it has labels"),
        ("path,label\nq.mp4,x\n", None, "none of its 1 rows names a file"),
        ("path,label\na/1.mp4,x\na/1.mp4,y\n", None, "row 3"),
        ("path,label\na/1.mp4,x\n", "label=label", "has no path"),
        ("path,label\na/1.mp4,x\n", "path", "meaning=column"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, columns: str | None, match: str) -> None:
    """A wrong column, no partner at all, and rows that disagree are usage errors that say what to do."""
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError, match=match):
        imports.from_table(tmp_path / "t.csv", columns, files("a/1.mp4"))


def test_frame_labels_become_intervals_and_are_checked_one_to_one(tmp_path: Path) -> None:
    """video,frame,label,split: neighbours join, frames without a partner are named exactly, a split is of a whole video."""
    (tmp_path / "t.csv").write_text(
        "video,frame,label,split\nV1,V1_00001.jpg,ad,train\nV1,2,ad,train\nV1,3,show,train\nV1,9,show,train\nV2,1,ad,test\n"
    )
    videos = [roll("V1", 1, 2, 3, 4), roll("V2", 1)]
    found = imports.from_table(tmp_path / "t.csv", None, videos)
    assert found.rows_without_file == ("V1 9",)
    assert imports.frames_without_row(found.given["V1"], videos[0]) == ["V1_00004.jpg"]
    extent = Extent(clip_id="c" * 32, source_name="V1", first_pts=0, end_pts=4, time_base=Fraction(1, 2))
    said = imports.to_labels(found, found.given["V1"], extent, 5, [(1, 0), (2, 1), (3, 2), (4, 3)])
    assert [(x.name, x.factor, x.start_pts, x.end_pts) for x in said] == [
        ("ad", None, 0, 2), ("show", None, 2, 3), ("train", "split", 0, 4)
    ]  # fmt: skip
    (tmp_path / "t.csv").write_text("video,frame,label,split\nV1,1,ad,train\nV1,2,ad,test\n")
    with pytest.raises(UsageError, match="a video belongs to one split"):
        imports.from_table(tmp_path / "t.csv", None, videos)


def test_class_folders() -> None:
    """The first folder is the class, of videos and of image folders; a file outside is reported."""
    found = imports.from_folders([*files("run/1.mp4", "x.mp4"), roll("walk", 1)])
    assert {name: given.label for name, given in found.given.items()} == {"run/1.mp4": "run", "walk": "walk"}
    assert found.files_without_row == ("x.mp4",)
    with pytest.raises(UsageError, match="DIR/CLASS"):
        imports.from_folders(files("x.mp4"))
