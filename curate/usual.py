"""Cameras unlike themselves: a day's picture held against the same camera's other days at the same hour.

A lens gets dirty, a focus slips, a spider sits down, a sheet is hung over the camera, a lamp begins to flicker. What was
measured of every kept frame shows it, when it is compared with what is usual for this camera at this hour, and not with other
cameras:

    light      brightness: median of the day's frames / median of the other days', hour by hour, the median of the hours
    contrast   the same: near 0 where the view is covered, or lost in fog
    sharpness  variance of the Laplacian: low for dirt, drops, a lost focus; high for noise
    colour     colourfulness: low where colours are gone (infrared at noon), high for a cast
    flicker    how much brightness changes from one kept frame of a clip to the next, as a share of brightness

Each is a ratio, 1 is as usual. A ratio is a column, a threshold is a query: `notes` names what is beyond `LIMITS`, which are
judgement, not measurement. What these measures cannot tell: a camera that was turned shows nothing here as long as the new
view is as bright and as sharp. A day needs `LEAST_DAYS` other days with footage at one of its hours, else its ratios are null.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import polars as pl

if TYPE_CHECKING:
    from curate.query import Footage

LEAST_DAYS: Final = 3
LEAST_FRAMES: Final = 5  # of one camera, day and hour, for a median
MEASURES: Final[Mapping[str, str]] = MappingProxyType(
    {"light": "brightness", "contrast": "contrast", "sharpness": "blur", "colour": "colourfulness", "flicker": "_flicker"}
)
"""Name of the ratio -> column of the frames."""
LIMITS: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {"light": (0.4, 2.5), "contrast": (0.4, 2.5), "sharpness": (0.5, 2.0), "colour": (0.3, 3.0), "flicker": (0.0, 4.0)}
)
"""Ratios outside are worth a look."""
_FLOOR: Final[Mapping[str, float]] = MappingProxyType(
    {"light": 2.0, "contrast": 1.0, "sharpness": 2.0, "colour": 2.0, "flicker": 0.005}
)
"""Added to both sides of a ratio, so that two pictures near black, grey or still do not differ by a factor."""


def by_day(footage: Footage) -> pl.DataFrame:
    """Return one row per camera and day (UTC) of footage whose time is known.

    Returns:
        camera_id, day (text), n_frames, n_hours (that could be compared), and light, contrast, sharpness, colour, flicker
        (ratios to the camera's usual, null where it is not known), sorted by camera and day.
    """
    utc = pl.from_epoch("capture_ns", time_unit="ns")
    frames = footage.frames.lazy().filter(pl.col("capture_ns").is_not_null()).select(
        "camera_id", "clip_id", "pts", "brightness", "contrast", "blur", "colourfulness",
        day=utc.dt.date().cast(pl.String), hour=utc.dt.hour(),
    ).sort("clip_id", "pts")  # fmt: skip
    change = (pl.col("brightness") - pl.col("brightness").shift(1)).abs().over("clip_id")
    frames = frames.with_columns(_flicker=change / pl.col("brightness").clip(lower_bound=1.0))
    hours = frames.group_by("camera_id", "day", "hour").agg(
        pl.len().alias("n_frames"), *(pl.col(column).median().alias(name) for name, column in MEASURES.items())
    ).filter(pl.col("n_frames") >= LEAST_FRAMES).collect()  # fmt: skip
    return _ratios(hours).sort("camera_id", "day")


def _ratios(hours: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of `by_day` from medians per camera, day and hour."""
    own = ["camera_id", "hour"]
    others = hours.join(hours.select(*own, *MEASURES, other="day"), on=own, suffix="_usual").filter(
        pl.col("day") != pl.col("other")
    )
    usual = others.group_by("camera_id", "day", "hour").agg(
        pl.len().alias("n_others"), *(pl.col(f"{name}_usual").median() for name in MEASURES)
    )
    known = usual.filter(pl.col("n_others") >= LEAST_DAYS)
    compared = hours.join(known, on=["camera_id", "day", "hour"], how="left").with_columns(
        ((pl.col(name) + _FLOOR[name]) / (pl.col(f"{name}_usual") + _FLOOR[name])).alias(name) for name in MEASURES
    )
    return compared.group_by("camera_id", "day").agg(
        pl.col("n_frames").sum(),
        n_hours=pl.col("n_others").is_not_null().sum(),
        **{name: pl.col(name).median() for name in MEASURES},
    )


def notes(days: pl.DataFrame) -> list[tuple[str, str, str]]:
    """Return (camera, day, what) of the days beyond `LIMITS`.

    Args:
        days: what `by_day` returned.
    """
    words = {
        "light": ("darker", "brighter"), "contrast": ("flat, as if covered or in fog", "more contrast"),
        "sharpness": ("blurred: fog, drops, dirt or focus", "sharper or noisier"), "colour": ("colours gone", "more coloured"),
        "flicker": ("", "light that flickers"),
    }  # fmt: skip
    found = []
    for row in days.iter_rows(named=True):
        said = []
        for name, (low, high) in LIMITS.items():
            if row[name] is not None and not low <= row[name] <= high:
                said.append(f"{words[name][row[name] > high]} ({row[name]:.2g} x its usual {name})")
        if said:
            found.append((str(row["camera_id"]), str(row["day"]), "; ".join(said)))
    return found
