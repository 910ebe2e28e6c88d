"""The joined views: which camera row, which count, which factor and which label a frame gets."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from infra.catalog import Catalog, Done, open_catalog
from infra.clock import FakeClock
from infra.errors import QueryError
from infra.records import Clip
from infra.store import DirStore
from infra.views import class_column, clips_view, covered, frames_view, segments
from infra.where import parse

A, B, C = (f"{number:032x}" for number in (1, 2, 3))
START_NS = 1_700_000_000_000_000_000  # 2023-11-14 22:13:20 UTC
SECOND = 90_000
DAY_NS = 86_400_000_000_000


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Three clips of two cameras with frames at seconds 0 to 4; C's start is unknown; only A and B were detected."""
    catalog = open_catalog(DirStore(tmp_path / "store"))
    camera(catalog, "yard", angle="high", time_zone="Europe/Berlin", attributes={"weather": "clear", "lens": "wide"})
    catalog.commit(
        {"clips": [clip(A), clip(B, camera_id="gate"), clip(C, start_ns=None, site="own")]}, done("register", A, B, C)
    )
    made = [{"clip_id": c, "pts": s * SECOND, "p_keep": 1.0, "brightness": 0.5} for c in (A, B, C) for s in range(5)]
    catalog.commit({"frames": made}, done("scan", A, B, C))
    return catalog


def camera(catalog: Catalog, camera_id: str, *, created_ns: int = 1, **row: Any) -> None:
    row["attributes"] = json.dumps(row.get("attributes", {}))
    made = {"camera_id": camera_id, "camera_number": 1, "valid_from_ns": 0, "created_ns": created_ns, "site": "farm"} | row
    catalog.append("cameras", [made])


def clip(clip_id: str, **row: Any) -> dict[str, Any]:
    return {
        "clip_id": clip_id, "key": f"clips/c/{clip_id}.mp4", "camera_id": "yard", "camera_number": 1, "recording_id": "r",
        "start_ns": START_NS, "time_base_num": 1, "time_base_den": SECOND, "first_pts": 0,
        "end_pts": 5 * SECOND, "state": "live",
    } | row  # fmt: skip


def done(step: str, *clip_ids: str, fingerprint: str = "f") -> list[Done]:
    return [Done("clip", clip_id, step, fingerprint, 1, 1) for clip_id in clip_ids]


def detect(catalog: Catalog, *found: tuple[str, int, str, float], clips: tuple[str, ...] = (A, B), source: str = "y@1") -> None:
    made = [
        {"clip_id": c, "pts": s * SECOND, "det_id": str(n), "source": source, "class_name": name, "score": score}
        for n, (c, s, name, score) in enumerate(found)
    ]
    catalog.commit({"detections": made}, done("detect", *clips, fingerprint=source))


def tag(catalog: Catalog, *tags: tuple[str, int | None, str, str], source: str = "lighting@1", **named: Any) -> None:
    made = [
        {"clip_id": c, "pts": None if s is None else s * SECOND, "factor": f, "name": n, "score": 0.5, "source": source}
        for c, s, f, n in tags
    ]
    catalog.commit({"tags": made}, done(named.pop("step", "tag"), *{c for c, *_ in tags}), **named)


def label(catalog: Catalog, label_id: str, clip_id: str = A, *, created_ns: int = 1, **row: Any) -> None:
    seconds = {key: row.pop(key) for key in ("start", "end") if key in row}
    pts = {f"{key}_pts": value * SECOND for key, value in seconds.items()}
    catalog.append(
        "labels", [{"label_id": label_id, "clip_id": clip_id, "created_ns": created_ns, "annotator": "me"} | pts | row]
    )


def column(catalog: Catalog, name: str, clip_id: str = A, **named: Any) -> list[Any]:
    return frames_view(catalog, **named).filter(pl.col("clip_id") == clip_id).select(name).collect()[name].to_list()


class TestCameras:
    def test_times(self, catalog: Catalog) -> None:
        """pts_s, capture_ns as the record computes it, and the hour at the camera; null where the start is unknown."""
        view = frames_view(catalog).collect()
        first = view.row(1, named=True)
        fields = {"source_name": "", "container": "mp4", "n_frames": 5, "width_px": 1, "height_px": 1, "codec": "h264"}
        record = Clip(**{k: v for k, v in clip(A).items() if k != "camera_number"}, **fields, n_bytes=1, sha256="")  # type: ignore[arg-type]
        assert (first["pts_s"], first["capture_ns"], first["hour"]) == (1.0, record.capture_ns(SECOND), 23)
        assert column(catalog, "hour", B) == [22] * 5  # a camera without a row: UTC
        assert column(catalog, "capture_ns", C) == column(catalog, "hour", C) == [None] * 5
        assert view.select("clip_id", "pts").rows() == sorted(view.select("clip_id", "pts").rows())

    def test_the_row_valid_at_the_start(self, catalog: Catalog) -> None:
        """A camera's columns are those valid at the clip's start; a correction replaces all rows of that camera."""
        assert (column(catalog, "site")[0], column(catalog, "site", C)[0]) == ("farm", "own")
        camera(catalog, "gate", valid_from_ns=START_NS + 1, angle="later")
        assert column(catalog, "angle", B) == [None] * 5
        catalog.append(
            "cameras",
            [
                {"camera_id": "gate", "camera_number": 1, "valid_from_ns": v, "angle": a, "created_ns": 2}
                for v, a in ((0, "first"), (START_NS, "at"), (START_NS + DAY_NS, "next"))
            ],
        )
        assert column(catalog, "angle", B) == ["at"] * 5
        assert column(catalog, "angle", A) == ["high"] * 5

    def test_unknown_start_takes_the_newest(self, catalog: Catalog) -> None:
        """A clip whose start is unknown has the newest row of its camera."""
        camera(catalog, "yard", valid_from_ns=START_NS + DAY_NS, angle="newest", created_ns=1)
        assert (column(catalog, "angle", C)[0], column(catalog, "angle", A)[0]) == ("newest", "high")

    def test_attributes_are_columns(self, catalog: Catalog) -> None:
        """An attribute is a factor with source static, unless its name belongs to the floor."""
        camera(catalog, "gate", attributes={"lens": "tele", "brightness": "9", "clip_id": "x", "label": "x"})
        view = frames_view(catalog).collect()
        assert column(catalog, "lens") == ["wide"] * 5 and column(catalog, "lens", B) == ["tele"] * 5
        assert column(catalog, "lens_source", B) == ["static"] * 5 and column(catalog, "weather_source", B) == [None] * 5
        assert view["brightness"].to_list() == [0.5] * 15 and "brightness_source" not in view.columns


class TestCounts:
    def test_zero_is_not_null(self, catalog: Catalog) -> None:
        """n_<class> is 0 where the detector looked and found none, null where it did not look; min_score is an argument."""
        assert column(catalog, "n_person") == [None] * 5
        detect(catalog, (A, 1, "person", 0.9), (A, 1, "person", 0.3), (A, 2, "person", 0.2), (B, 0, "traffic light", 0.9))
        assert column(catalog, "n_person") == [0, 2, 0, 0, 0]
        assert column(catalog, "n_person", min_score=0.1) == [0, 2, 1, 0, 0]
        assert column(catalog, "n_person", C) == column(catalog, "n_traffic_light", C) == [None] * 5
        assert column(catalog, "n_traffic_light", B) == [1, 0, 0, 0, 0]
        with pytest.raises(QueryError, match="min_score 2"):
            frames_view(catalog, min_score=2)

    def test_scanned_anew(self, catalog: Catalog) -> None:
        """Frames of a later scan that the detector has not seen yet are null, not 0; once it has, they count."""
        detect(catalog, (A, 1, "person", 0.9))
        halves = [{"clip_id": A, "pts": s * SECOND // 2, "p_keep": 1.0} for s in range(10)]
        catalog.commit({"frames": halves}, done("scan", A, fingerprint="every half second"))
        assert column(catalog, "n_person") == [None, None, 1, *[None] * 7] and column(catalog, "n_person", B) == [0] * 5
        detect(catalog, (A, 1, "person", 0.9), clips=(A,), source="y@2")
        assert column(catalog, "n_person") == [0, 0, 1, *[0] * 7]

    def test_a_named_source(self, catalog: Catalog) -> None:
        """With a source named, a clip that another source looked at last counts as not looked at."""
        detect(catalog, (A, 1, "person", 0.9), (B, 1, "person", 0.9))
        detect(catalog, (A, 1, "cat", 0.9), clips=(A,), source="z@2")
        assert column(catalog, "n_person") == [0] * 5 and column(catalog, "n_cat")[1] == 1
        assert column(catalog, "n_person", sources={"detections": "y@1"}) == [None] * 5
        assert column(catalog, "n_person", B, sources={"detections": "y@1"}) == [0, 1, 0, 0, 0]

    def test_class_columns(self) -> None:
        """A class name becomes a name that a where-expression can hold."""
        assert [class_column(name) for name in ("person", "Traffic Light", "t-shirt", "№")] == [
            "n_person", "n_traffic_light", "n_t_shirt", "n_unnamed",
        ]  # fmt: skip


class TestFactors:
    def test_human_model_static(self, catalog: Catalog) -> None:
        """A person's word beats a model's tag beats what is fixed; a frame's tag beats its clip's."""
        tag(catalog, (A, 1, "weather", "fog"), (A, None, "weather", "rain"), (B, 0, "lighting", "day"))
        label(catalog, "l1", factor="weather", name="snow", start=3, end=4)
        assert column(catalog, "weather") == ["rain", "fog", "rain", "snow", "rain"]
        assert column(catalog, "weather_source") == ["model", "model", "model", "human", "model"]
        assert column(catalog, "weather", C) == ["clear"] * 5 and column(catalog, "weather_source", C) == ["static"] * 5
        assert column(catalog, "lighting", B) == ["day", None, None, None, None]

    def test_without_peoples_words(self, catalog: Catalog) -> None:
        """What machines and the registry alone would say, to judge them by; a factor that only people named is no column."""
        tag(catalog, (A, 1, "weather", "fog"))
        label(catalog, "l1", factor="weather", name="snow", start=0, end=5)
        label(catalog, "l2", factor="mood", name="calm", start=0, end=5)
        label(catalog, "l3", name="person", start=0, end=5)
        assert column(catalog, "weather") == ["snow"] * 5
        assert column(catalog, "weather", human=False) == ["clear", "fog", "clear", "clear", "clear"]
        assert column(catalog, "label", human=False) == [None] * 5
        assert "mood" not in frames_view(catalog, human=False).collect_schema().names()

    def test_newest_within_a_kind(self, catalog: Catalog) -> None:
        """Of two models' tags the later done counts, unless a source is named; of two words the later created."""
        clock = FakeClock()
        tag(catalog, (A, 0, "lighting", "day"), source="old@1", clock=clock, step="tag")
        clock.advance_s(1)
        tag(catalog, (A, 0, "lighting", "dusk"), source="aaa@1", clock=clock, step="other")
        assert column(catalog, "lighting")[0] == "dusk"
        assert column(catalog, "lighting", sources={"lighting": "old@1"})[0] == "day"
        for created_ns, name in ((5, "five"), (9, "nine"), (7, "seven")):
            label(catalog, name, factor="lighting", name=name, created_ns=created_ns, start=0, end=5)
        assert column(catalog, "lighting") == ["nine"] * 5

    def test_best_score_within_a_source(self, catalog: Catalog) -> None:
        """When a source writes a score for each value of a factor, the highest names the frame."""
        made = [
            {"clip_id": A, "pts": 0, "factor": "sky", "name": n, "score": s, "source": "p@1"}
            for n, s in (("grey", 0.7), ("blue", 0.9), ("red", None))
        ]
        catalog.commit({"tags": made}, done("tag", A))
        assert column(catalog, "sky")[0] == "blue"

    def test_where_over_the_view(self, catalog: Catalog) -> None:
        """A where-expression runs over the view's schema."""
        detect(catalog, (A, 1, "person", 0.9))
        tag(catalog, *((A, s, "lighting", "night" if s < 3 else "day") for s in range(5)))
        view = frames_view(catalog)
        where = parse("n_person >= 1 and lighting = 'night' and lighting_source = 'model' and hour = 23 and label is null")
        assert view.filter(where.to_polars(view.collect_schema())).select("clip_id", "pts").collect().rows() == [(A, SECOND)]


class TestLabels:
    def test_newest_that_covers(self, catalog: Catalog) -> None:
        """`label` is the newest class label that covers pts, half-open; no start or end means the clip's."""
        label(catalog, "a", name="walk", start=0, end=3, created_ns=1)
        label(catalog, "b", name="run", start=2, end=4, created_ns=2)
        label(catalog, "c", clip_id=B, name="whole")
        label(catalog, "d", name="weather", factor="weather", start=0, end=5, created_ns=9)
        label(catalog, "e", name="box", start=0, end=5, created_ns=9, x1=0.0, y1=0.0, x2=1.0, y2=1.0)
        assert column(catalog, "label") == ["walk", "walk", "run", "run", None]
        assert column(catalog, "label", B) == ["whole"] * 5
        assert column(catalog, "label", C) == [None] * 5

    def test_retracted(self, catalog: Catalog) -> None:
        """A retracted label is as if it had never been said; the retraction is no label itself."""
        label(catalog, "a", name="walk", start=0, end=5)
        label(catalog, "b", name="run", start=0, end=5, created_ns=2)
        label(catalog, "c", name="run", start=0, end=5, created_ns=3, retracts="b")
        assert column(catalog, "label") == ["walk"] * 5

    def test_against_a_plain_search(self) -> None:
        """For random overlapping intervals, stretches and join give what a search through all intervals gives."""
        rng = random.Random(5)
        for _ in range(30):
            said = [
                {
                    "clip_id": rng.choice("xy"),
                    "start_pts": (s := rng.randint(0, 20)),
                    "end_pts": s + rng.randint(1, 9),
                    "name": str(n),
                }
                for n in range(rng.randint(0, 12))
            ]
            schema = {"clip_id": pl.String, "start_pts": pl.Int64, "end_pts": pl.Int64, "name": pl.String}
            points = pl.DataFrame([(c, p) for c in "xyz" for p in range(-2, 32)], ["clip_id", "pts"], orient="row")
            found = covered(points.lazy(), segments(pl.DataFrame(said, schema)), "label").collect()
            for clip_id, pts, name in found.rows():
                names = [r["name"] for r in said if r["clip_id"] == clip_id and r["start_pts"] <= pts < r["end_pts"]]
                assert name == (names[-1] if names else None)


class TestClips:
    def test_clip_view(self, catalog: Catalog) -> None:
        """One row per live clip: camera columns, factors that hold for the whole clip, and the number of failures."""
        tag(catalog, (A, None, "lighting", "night"), (A, 0, "lighting", "day"))
        label(catalog, "a", clip_id=B, factor="lighting", name="dusk", start=0, end=5)
        label(catalog, "b", clip_id=C, factor="lighting", name="part", start=0, end=4)
        label(catalog, "c", clip_id=C, factor="weather", name="fog")
        catalog.append("failures", [{"failure_id": str(n), "clip_id": A, "step": "scan"} for n in range(2)])
        catalog.append("failures", [{"failure_id": "x", "clip_id": None}])
        view = clips_view(catalog).collect()
        names = ["clip_id", "lighting", "lighting_source", "weather", "weather_source", "angle_source", "n_failures", "site"]
        assert view.select(names).rows() == [
            (A, "night", "model", "clear", "static", "static", 2, "farm"),
            (B, "dusk", "human", None, None, None, 0, None),
            (C, None, None, "fog", "human", "static", 0, "own"),
        ]

    def test_empty_store(self, tmp_path: Path) -> None:
        """An empty store gives empty views that a query can still be asked of."""
        empty = open_catalog(DirStore(tmp_path / "empty"))
        assert clips_view(empty).collect().is_empty()
        view = frames_view(empty)
        assert view.filter(parse("n_person > 0 and camera_id = 'x'").to_polars(view.collect_schema())).collect().is_empty()
