"""Day, twilight and night by capture time and place, as tags; and what is refused before anything is decoded."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curate import daylight, factors, plan
from curate.detect import read_weights
from curate.plan import Options
from curate.query import open_catalog as open_footage
from curate.run import curate
from infra.catalog import Catalog
from infra.errors import UsageError
from infra.settings import Settings

SHEET = '[factor.daylight]\nfrom = "sun"\n'
BERLIN = {"latitude": "52.52", "longitude": "13.40"}


def start_ns(text: str) -> int:
    return round(datetime.datetime.fromisoformat(text).timestamp()) * 1_000_000_000


def camera(catalog: Catalog, camera_id: str, attributes: dict[str, str], *, created_ns: int = 1) -> None:
    row = {"camera_id": camera_id, "camera_number": 1, "valid_from_ns": 0, "created_ns": created_ns}
    catalog.append("cameras", [row | {"attributes": json.dumps(attributes)}])


def tagged(catalog: Catalog, **more: Any) -> dict[str, set[str | None]]:
    """Scan and tag; return what daylight each clip's frames have."""
    curate(catalog, Options(steps=("scan", "tag"), sheet=factors.parse(SHEET), **more), Settings())
    rows = open_footage(catalog.store).frames.to_polars()
    return {name: set(part["daylight"]) for (name,), part in rows.group_by("source_name")}


@pytest.mark.parametrize(("deg", "name"), [(40, "day"), (-0.833, "day"), (-0.9, "twilight"), (-6, "twilight"), (-6.1, "night")])
def test_names_of_heights(deg: float, name: str) -> None:
    """Sunset and the end of civil twilight are the borders."""
    assert daylight.name_of(deg) == name


def test_clips_are_tagged_by_time_and_place(catalog: Catalog, add_clip: Callable[..., str]) -> None:
    """Midsummer noon and midnight in Berlin; unknown where the camera has no place or the clip no time."""
    camera(catalog, "yard", BERLIN)
    camera(catalog, "attic", {"lens": "wide"})
    add_clip(catalog, "noon", [90] * 20, camera_id="yard", start_ns=start_ns("2025-06-21T11:00:00+00:00"))
    add_clip(catalog, "night", [91] * 20, camera_id="yard", start_ns=start_ns("2025-06-21T23:00:00+00:00"))
    add_clip(catalog, "untimed", [92] * 20, camera_id="yard")
    add_clip(catalog, "unplaced", [93] * 20, camera_id="attic", start_ns=start_ns("2025-06-21T11:00:00+00:00"))
    assert tagged(catalog) == {"noon.mp4": {"day"}, "night.mp4": {"night"}, "untimed.mp4": {None}, "unplaced.mp4": {None}}
    assert set(catalog.scan("tags").collect()["source"]) == {"sun@1"}


def test_sunset_falls_within_a_clip(catalog: Catalog, add_clip: Callable[..., str]) -> None:
    """The frame counts, not its clip: one frame before the sun is gone, three after."""
    camera(catalog, "yard", BERLIN)
    at_ns = start_ns("2025-06-21T19:00:00+00:00")
    while daylight.solar_elevation_deg(at_ns + 1_000_000_000, 52.52, 13.40) >= daylight.SUNSET_DEG:
        at_ns += 1_000_000_000
    add_clip(catalog, "sunset", [90] * 40, camera_id="yard", start_ns=at_ns)
    tagged(catalog)
    rows = open_footage(catalog.store).frames.to_polars().sort("pts")
    assert rows["daylight"].to_list() == ["day", "twilight", "twilight", "twilight"]


def test_a_moved_camera_is_tagged_anew_and_only_it(catalog: Catalog, add_clip: Callable[..., str]) -> None:
    """The place stands in the fingerprint; a sheet that does not ask the sun has the fingerprint that it always had."""
    camera(catalog, "yard", BERLIN)
    camera(catalog, "gate", BERLIN)
    noon = start_ns("2025-06-21T11:00:00+00:00")
    moved = add_clip(catalog, "a", [90] * 20, camera_id="yard", start_ns=noon)
    add_clip(catalog, "b", [91] * 20, camera_id="gate", start_ns=noon)
    tagged(catalog)
    wanted = Options(steps=("scan", "tag"), sheet=factors.parse(SHEET))
    assert plan.make(catalog, wanted).works == ()
    camera(catalog, "yard", {"latitude": "-36.85", "longitude": "174.76"}, created_ns=2)  # Auckland: 11:00 UTC is night
    assert [work.clip_id for work in plan.make(catalog, wanted).works] == [moved]
    assert tagged(catalog) == {"a.mp4": {"night"}, "b.mp4": {"day"}}
    plain = Options(steps=("tag",), sheet=factors.parse(factors.DEFAULT))
    (first, second) = (work.missing["tag"] for work in plan.make(catalog, plain).works)
    assert first == second


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"lens": "wide"}, "line 1: factor daylight: no camera has latitude and longitude"),
        ({"latitude": "52,5", "longitude": "13"}, "camera yard: latitude = '52,5'; legal: degrees from -90 to 90"),
        ({"latitude": "52", "longitude": "181"}, "camera yard: longitude = '181'; legal: degrees from -180 to 180"),
    ],
)
def test_places_that_are_none(catalog: Catalog, add_clip: Callable[..., str], attributes: dict[str, str], says: str) -> None:
    """Refused with the camera or the line, before a clip is opened."""
    camera(catalog, "yard", attributes)
    add_clip(catalog, "a", [90] * 20, camera_id="yard")
    with pytest.raises(UsageError, match=says):
        tagged(catalog)
    assert not catalog.done("scan")


def test_a_column_that_nobody_has_is_refused_first(catalog: Catalog, add_clip: Callable[..., str]) -> None:
    """A rule over a misspelt measure: the line and the near name, and nothing was scanned."""
    add_clip(catalog, "a", [90] * 20)
    text = "[factor.x]\nfrom = 'rule'\nrules = [{ value = 'u', where = 'brightnes > 3' }]"
    wanted = Options(steps=("scan", "tag"), sheet=factors.parse(text))
    with pytest.raises(UsageError, match="line 1: factor x: there is no column or factor 'brightnes'; did you mean brightness"):
        curate(catalog, wanted, Settings())
    assert not catalog.done("scan")


def test_a_class_that_the_detector_does_not_know_is_refused_first(
    catalog: Catalog, add_clip: Callable[..., str], tiny_detector: Path
) -> None:
    """n_cat would count 0 for ever: the line and the file are named, and nothing was scanned; n_car is known."""
    add_clip(catalog, "a", [90] * 20)
    text = "[factor.x]\nfrom = 'rule'\nrules = [{ value = 'u', where = 'n_CLASS > 3' }]"
    wanted = Options(
        steps=("scan", "detect", "tag"), detector=read_weights(tiny_detector), sheet=factors.parse(text.replace("CLASS", "cat"))
    )
    with pytest.raises(UsageError, match=r"line 1: factor x: tiny.onnx knows no class behind 'n_cat'; did you mean n_car"):
        curate(catalog, wanted, Settings())
    assert not catalog.done("scan")
    assert plan.make(catalog, dataclasses.replace(wanted, sheet=factors.parse(text.replace("CLASS", "car")))).works
