"""Day, twilight or night by capture time and place: what the sun says, without looking at a picture.

    day        the sun's upper edge is above the horizon: its centre above -.833 degrees
    twilight   down to -6 degrees, the end of civil twilight: outdoors one still sees without lamps
    night      below

The place is the camera's attributes `latitude` and `longitude` (degrees, north and east positive) in the registry's row that
was valid at the clip's start. No place or no capture time: no tag. So a clip whose clock was repaired, and a camera that
was given a place, are tagged anew: both stand in the fingerprint.

What it does not tell: whether it is light. A lit room at midnight is night here, and day for `from = "lighting"`.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from curate.factors import DAYLIGHTS
from infra.catalog import Catalog
from infra.errors import UsageError
from infra.keys import json_sha256
from infra.sun import CIVIL_TWILIGHT_DEG, SUNSET_DEG, solar_elevation_deg
from infra.views import clips_view

VERSION: Final = 1
PLACE: Final = ("latitude", "longitude")
_TIMES: Final = ("start_ns", "first_pts", "time_base_num", "time_base_den")


def name_of(elevation_deg: float) -> str:
    """Return day, twilight or night for a height of the sun's centre above the horizon."""
    day, twilight, night = DAYLIGHTS
    return day if elevation_deg >= SUNSET_DEG else twilight if elevation_deg >= CIVIL_TWILIGHT_DEG else night


def places(catalog: Catalog) -> pl.DataFrame:
    """Return one row per clip: clip_id, camera_id, the times of its frames, latitude and longitude (float, may be null).

    Raises:
        UsageError: a camera's latitude or longitude is no number, or no place on earth.
    """
    clips = clips_view(catalog)
    own = clips.collect_schema().names()
    texts = [pl.col(name) if name in own else pl.lit(None, pl.String).alias(name) for name in PLACE]
    found = clips.select("clip_id", "camera_id", *_TIMES, *texts).collect()
    numbers = found.with_columns(pl.col(name).cast(pl.Float64, strict=False) for name in PLACE)
    for name, least in zip(PLACE, (-90, -180), strict=True):
        wrong = found.filter(found[name].is_not_null() & ~numbers[name].is_between(least, -least).fill_null(False))
        for camera_id, value in wrong.select("camera_id", name).head(1).iter_rows():
            raise UsageError(
                f"camera {camera_id}: {name} = {value!r}; legal: degrees from {least} to {-least}, in cameras.toml"
            )
    return numbers


def check(catalog: Catalog, at: str) -> None:
    """Refuse a sheet that asks the sun where no camera has a place.

    Raises:
        UsageError: it begins with `at`, where the sheet asks.
    """
    if places(catalog).filter(pl.col("latitude").is_not_null() & pl.col("longitude").is_not_null()).is_empty():
        raise UsageError(
            f"{at}: no camera has latitude and longitude; give them in cameras.toml, in degrees, and ingest it again"
        )


def fingerprints(catalog: Catalog) -> dict[str, str]:
    """Return clip_id -> hash of all that its daylight depends on."""
    rows = places(catalog).select("clip_id", "start_ns", *PLACE)
    return {clip_id: json_sha256([VERSION, SUNSET_DEG, CIVIL_TWILIGHT_DEG, *facts]) for clip_id, *facts in rows.iter_rows()}


def name_frames(frames: pl.DataFrame, where: pl.DataFrame) -> pl.DataFrame:
    """Return clip_id, pts and name (day, twilight, night or null) of frames, in their order.

    Args:
        frames: clip_id and pts.
        where: what `places` returned.
    """
    tick_ns = pl.col("time_base_num") / pl.col("time_base_den") * 1_000_000_000
    joined = frames.select("clip_id", "pts").join(where, on="clip_id", how="left", maintain_order="left")
    timed = joined.select(
        "clip_id",
        "pts",
        *PLACE,
        at_ns=pl.col("start_ns") + ((pl.col("pts") - pl.col("first_pts")) * tick_ns).round().cast(pl.Int64),
    )
    names = [
        None if None in facts else name_of(solar_elevation_deg(*facts))
        for facts in timed.select("at_ns", *PLACE).iter_rows()
    ]  # fmt: skip
    return timed.select("clip_id", "pts", name=pl.Series(names, dtype=pl.String))
