"""Cameras unlike themselves: a covered, a blurred and a flickering day, and what must not be called unusual."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from curate import usual
from curate.query import open_catalog as open_footage
from infra.catalog import Catalog, Done

NOON_NS = 1_750_503_600_000_000_000  # 2025-06-21 11:00 UTC
DAY_NS = 86_400_000_000_000


def add(catalog: Catalog, days: dict[int, dict[str, float]], *, camera_id: str = "yard", hour: int = 0) -> None:
    """Add a clip of ten frames a day, at noon + hour: brightness 100, contrast 40, blur 200, colour 20, but what is said."""
    clips, frames = [], []
    for day, other in days.items():
        clip_id = f"{camera_id}{day:02}{hour:02}".encode().hex()[:32].rjust(32, "0")
        clips.append({
            "clip_id": clip_id, "key": f"clips/{clip_id}", "camera_id": camera_id, "camera_number": 1, "state": "live",
            "recording_id": clip_id, "start_ns": NOON_NS + day * DAY_NS + hour * 3_600_000_000_000, "time_base_num": 1,
            "time_base_den": 1, "first_pts": 0, "end_pts": 10, "n_frames": 10,
        })  # fmt: skip
        usual_frame: dict[str, Any] = {
            "brightness": 100.0,
            "contrast": 40.0,
            "blur": 200.0,
            "colourfulness": 20.0,
            "p_keep": 1.0,
        }
        swing = other.pop("swing", 1.0)
        for pts in range(10):
            row = {**usual_frame, "clip_id": clip_id, "pts": pts, **other}
            frames.append(row | {"brightness": row["brightness"] + swing * (pts % 2)})
    done = [Done("clip", row["clip_id"], "register", "f", 1, 1) for row in clips]
    catalog.commit({"clips": clips}, done)
    catalog.commit({"frames": frames}, [Done("clip", row["clip_id"], "scan", "f", 1, 1) for row in clips])


def test_days_that_differ_are_named(catalog: Catalog) -> None:
    """Covered, blurred and flickering days stand out; their presence does not make the usual days unusual."""
    odd = {5: {"contrast": 3.0, "blur": 200.0}, 6: {"blur": 30.0}, 7: {"swing": 40.0}}
    add(catalog, {day: odd.get(day, {}) for day in range(9)})
    days = usual.by_day(open_footage(catalog.store))
    assert days.height == 9 and days["n_hours"].to_list() == [1] * 9
    found = usual.notes(days)
    assert [(camera, day) for camera, day, _ in found] == [("yard", f"2025-06-{day}") for day in (26, 27, 28)]
    assert "flat, as if covered or in fog" in found[0][2] and "blurred" in found[1][2] and "flickers" in found[2][2]


def test_an_hour_is_held_against_the_same_hour(catalog: Catalog) -> None:
    """Nights are dark every night: nothing to see; one camera's darkness says nothing about another's."""
    add(catalog, {day: {} for day in range(5)})
    add(catalog, {day: {"brightness": 4.0, "contrast": 4.0, "colourfulness": 1.0} for day in range(5)}, hour=12)
    add(catalog, {day: {"brightness": 20.0} for day in range(5)}, camera_id="cellar")
    days = usual.by_day(open_footage(catalog.store))
    assert usual.notes(days) == [] and days["light"].drop_nulls().to_list() == pytest.approx(
        [1.0] * days["light"].drop_nulls().len()
    )


def test_too_little_to_compare_with_is_unknown(catalog: Catalog) -> None:
    """Three days in all: two others are not enough, and nothing is said."""
    add(catalog, {0: {}, 1: {}, 2: {"blur": 1.0}})
    days = usual.by_day(open_footage(catalog.store))
    assert days["sharpness"].null_count() == 3 and days["n_hours"].to_list() == [0, 0, 0] and usual.notes(days) == []


def test_near_black_pictures_do_not_differ_by_factors(catalog: Catalog) -> None:
    """Contrast 0.1 against 0.4 is four times as much, and nothing that anybody could see."""
    add(catalog, {day: {"brightness": 1.0, "contrast": 0.4 if day == 2 else 0.1, "swing": 0.0} for day in range(6)})
    assert usual.notes(usual.by_day(open_footage(catalog.store))) == []


def test_footage_without_a_time_is_left_out(catalog: Catalog) -> None:
    """No day, no comparison; an empty table has the same columns."""
    empty = usual.by_day(open_footage(catalog.store))
    assert empty.is_empty() and {"camera_id", "day", *usual.MEASURES} <= set(empty.columns)
    assert empty.schema["sharpness"] in (pl.Float32, pl.Float64)
