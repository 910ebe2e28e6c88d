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
judgement, not measurement. A day needs `LEAST_DAYS` other days with footage at one of its hours, else its ratios are null.

Clips that were scanned with motion score 2 have a row in `scenes` (`curate/scene.py`); `by_hour` holds the first clip of each
hour against the first ones of the same hour of the camera's other days, each left out of its own usual:

    moved    outlines agree best when laid some way apart, or nowhere although the others do: another view
    covered  the outline has lost its edges; black: or the light is out
    dirt     cells that lost their sharpness while the others kept theirs
    cast, noise, flicker   against the median of the others

`scene_notes` names what is beyond `SCENE_LIMITS` in two hours of a day, or in the only one. What it cannot tell: a covered
lens from a dense fog; a camera that moved for good from one that was moved before: the shorter time is called unusual.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate import scene

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


SCENE_LIMITS: Final[Mapping[str, float]] = MappingProxyType({
    "shift": 0.02,  # of the picture: the least displacement that is one
    "agree": 0.2,  # with the usual, laid where it agrees best, for a displacement to be believed
    "gain": 1.3,  # times the agreement where the camera usually looks
    "lost_view": 0.25,  # of the agreement that the other days have: less is another view,
    "steady": 0.3,  # if theirs is at least this
    "lost_edges": 0.2,  # of the usual structure: less is a covered lens,
    "edges": 0.05,  # if the usual structure is at least this
    "black": 12.0,  # mean luma up to which a lens is covered or the light is out
    "dirt": 0.08,  # of the cells that are usually sharp: a van with plain sides on an eighth of the picture takes .04;
    "bright": 0.4,  # of the usual light: of a darker picture neither dirt nor cast is said
    "same": 0.75,  # agreement that the other days have: where they differ more, as things come and go, nothing is said of dirt
    "cast": 0.12,  # length of (red, blue) away from the usual
    "noise": 2.0,  # times the usual; both plus a grey level
    "flicker": 0.01,  # of the light, more than usual
})  # fmt: skip
"""Where a note begins: judgement, tried on drawn pictures and on clips of tests/curate/test_scene.py."""
LEAST_SHARP: Final = 0.15  # usual sharpness of a cell that can be seen to lose it
LOST_SHARP: Final = 0.4  # of what the sharper cells kept: less is dirt
SHARPER: Final = 75  # percentile of the cells: dirt may cover three quarters
LEAST_CELLS: Final = 15  # usually sharp ones, for dirt to be known
_BESIDE: Final = ("noise", "flicker", "cast_red", "cast_blue", "structure", "agreement", "light")


def unlike(footage: Footage) -> list[tuple[str, str, str]]:
    """Return (camera, day, what) of all days that `notes` or `scene_notes` names, by camera and day."""
    said: dict[tuple[str, str], list[str]] = {}
    for camera_id, day, what in [*scene_notes(by_hour(footage)), *notes(by_day(footage))]:
        said.setdefault((camera_id, day), []).append(what)
    return [(*key, "; ".join(said[key])) for key in sorted(said)]


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


def by_hour(footage: Footage) -> pl.DataFrame:
    """Return one row per camera, day and hour (UTC) with a clip of known time that has an outline in `scenes`: its first.

    Returns:
        camera_id, day (text), hour, clip_id, n_others (days that it was held against); noise, flicker, cast_red, cast_blue,
        light (mean of the outline), structure, agreement (see `scene`), each with `<name>_usual`, the median of the others;
        right, down (displacement, shares of the picture), agreement_there, dirt (share of the usually sharp cells),
        dirt_right, dirt_down (where, shares of the picture). Null where it is not known, as with under `LEAST_DAYS` others.
    """
    clips = footage.clips.lazy().filter(pl.col("start_ns").is_not_null()).select("clip_id", "camera_id", "start_ns")
    utc = pl.from_epoch("start_ns", time_unit="ns")
    own = ["camera_id", "day", "hour"]
    shown = footage.catalog.scan("scenes").filter(pl.col("outline").is_not_null())
    chosen = shown.select("clip_id").join(clips, on="clip_id").with_columns(
        day=utc.dt.date().cast(pl.String), hour=utc.dt.hour().cast(pl.Int64)
    ).sort("start_ns", "clip_id").unique(own, keep="first", maintain_order=True)  # fmt: skip
    rows = shown.join(chosen, on="clip_id").sort("start_ns", "clip_id").collect()
    made: list[dict[str, Any]] = []
    alike = ["camera_id", "hour", "outline_width_px", "outline_height_px"]
    for group in rows.partition_by(alike, maintain_order=True):
        made += _held_against(group.to_dicts())
    compared = [name for each in _BESIDE for name in (each, f"{each}_usual")]
    found = [*compared, "right", "down", "agreement_there", "dirt", "dirt_right", "dirt_down"]
    schema = {"camera_id": pl.String, "day": pl.String, "hour": pl.Int64, "clip_id": pl.String, "n_others": pl.Int64}
    return pl.DataFrame(made, schema=schema | dict.fromkeys(found, pl.Float64)).fill_nan(None).sort(own)


def _held_against(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of `by_hour` of one camera, hour and size of outlines."""
    n = len(rows)
    outlines = [scene.outline_of(row) for row in rows]
    fields = np.stack([scene.field(outline) for outline in outlines])
    whole = fields.sum(axis=0)
    others = [(whole - field) / max(1, n - 1) for field in fields]
    beside = {name: np.array([row[name] for row in rows], float) for name in _BESIDE[:4]}
    beside["structure"] = np.array([scene.structure(field) for field in fields])
    beside["agreement"] = np.array([scene.agreement(*pair) for pair in zip(fields, others, strict=True)])
    beside["light"] = np.array([outline.mean() for outline in outlines])
    sharp = np.array([row["sharpness"] or [np.nan] * int(np.prod(scene.CELLS)) for row in rows])
    made = []
    for i, row in enumerate(rows):
        found = {name: row[name] for name in ("camera_id", "day", "hour", "clip_id")} | {"n_others": n - 1}
        found |= {name: values[i] for name, values in beside.items()}
        if n > LEAST_DAYS:
            found |= {f"{name}_usual": _median(np.delete(values, i)) for name, values in beside.items()}
            right, down, there = scene.displacement(fields[i], others[i])
            found |= {"right": right, "down": down, "agreement_there": there}
            found |= _dirt(sharp[i].reshape(scene.CELLS), np.delete(sharp, i, axis=0).reshape(-1, *scene.CELLS))
        made.append(found)
    return made


def _median(values: NDArray[np.float64]) -> float | None:
    """Return the median of what is known; None where that is of fewer than `LEAST_DAYS`."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) >= LEAST_DAYS else None


def _dirt(cells: NDArray[np.float64], others: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the share of cells that lost their sharpness, and where their middle lies.

    Args:
        cells: float (9, 16), sharpness of the clip's cells; NaN where unknown.
        others: float (n, 9, 16), of the others; a cell counts that is sharp on three quarters of them.
    """
    nothing: dict[str, float | None] = {"dirt": None, "dirt_right": None, "dirt_down": None}
    usual = np.median(others, axis=0)
    judged = np.percentile(others, 25, axis=0) >= LEAST_SHARP
    if judged.sum() < LEAST_CELLS or np.isnan(cells).any():
        return nothing
    kept = np.minimum(cells / np.maximum(usual, LEAST_SHARP), 1)  # noise makes some sharper, and others no duller
    lost = judged & (kept < LOST_SHARP * np.percentile(kept[judged], SHARPER))
    share = nothing | {"dirt": float(lost.sum() / judged.sum())}
    if not lost.any():
        return share
    down, right = (float((place + 0.5).mean()) / n for place, n in zip(np.nonzero(lost), scene.CELLS, strict=True))
    return share | {"dirt_right": right, "dirt_down": down}


def scene_notes(hours: pl.DataFrame) -> list[tuple[str, str, str]]:
    """Return (camera, day, what) of the days beyond `SCENE_LIMITS` in two of the hours that were compared, or in the only one.

    Args:
        hours: what `by_hour` returned.
    """
    compared = hours.with_columns(rule.fill_null(False).alias(f"is {name}") for name, rule in _signs().items())
    found = []
    for day in compared.filter(pl.col("n_others") >= LEAST_DAYS).partition_by("camera_id", "day", maintain_order=True):
        said = []
        for name in _signs():
            mine = day.filter(f"is {name}")
            if mine.height >= min(2, day.height):
                middle, first = mine.row(mine.height // 2, named=True), mine["hour"].to_list()[0]
                said.append(f"{_words(name, middle)}, {mine.height} of {day.height} hours compared, from {first}:00 on")
        if said:
            found.append((str(day["camera_id"][0]), str(day["day"][0]), "; ".join(said)))
    return found


def _signs() -> dict[str, pl.Expr]:
    """Return what a row of `by_hour` may show -> whether it does; null where it cannot be said."""
    limit, col = SCENE_LIMITS, pl.col
    covered = (col("structure_usual") >= limit["edges"]) & (col("structure") < limit["lost_edges"] * col("structure_usual"))
    lost = (col("agreement_usual") >= limit["steady"]) & (
        col("agreement_there") < limit["lost_view"] * col("agreement_usual")
    )  # fmt: skip
    moved = (
        (pl.max_horizontal(col("right").abs(), col("down").abs()) >= limit["shift"])
        & (col("agreement_there") >= limit["agree"])
        & (col("agreement_there") >= limit["gain"] * col("agreement"))
    )
    is_lit = col("light") >= limit["bright"] * col("light_usual")
    same_view = ~covered & ~moved & ~lost
    cast = ((col("cast_red") - col("cast_red_usual")) ** 2 + (col("cast_blue") - col("cast_blue_usual")) ** 2).sqrt()
    return {
        "covered": covered,
        "moved": moved & ~covered,
        "another view": lost & ~moved & ~covered,
        "dirt": same_view & is_lit & (col("agreement_usual") >= limit["same"]) & (col("dirt") >= limit["dirt"]),
        "cast": same_view & is_lit & (cast >= limit["cast"]),
        "noise": same_view & (col("noise") + 1 >= limit["noise"] * (col("noise_usual") + 1)),
        "flicker": same_view & (col("flicker") - col("flicker_usual") >= limit["flicker"]),
    }


def _words(name: str, row: Mapping[str, Any]) -> str:
    """Return what a row shows, in words with numbers."""
    if name == "covered":
        kept = f"{row['structure'] / row['structure_usual']:.0%} of its usual edges left"
        what = "black: covered, or without light" if row["light"] <= SCENE_LIMITS["black"] else "covered, or dense fog"
        return f"{what} ({kept}, mean luma {row['light']:.0f})"
    there, here, usually = row["agreement_there"], row["agreement"], row["agreement_usual"]
    if name == "moved":
        right, down = row["right"], row["down"]
        across = f"{abs(right):.1%} of its width to the {'right' if right > 0 else 'left'}"
        along = f"{abs(down):.1%} of its height {'down' if down > 0 else 'up'}"
        return f"moved: the view lies {across} and {along} (agreement {there:.2f} there, {here:.2f} where it was)"
    if name == "another view":
        return f"another view, or light that draws other edges (agreement {there:.2f}, usually {usually:.2f})"
    if name == "dirt":
        side = "left" if row["dirt_right"] < 0.5 else "right"
        edge = "upper" if row["dirt_down"] < 0.5 else "lower"
        return f"dirt, a drop or a web: {row['dirt']:.0%} of the usually sharp cells are blurred, around the {edge} {side}"
    if name == "cast":
        red, blue = (row[f"cast_{each}"] - row[f"cast_{each}_usual"] for each in ("red", "blue"))
        return f"colour cast: red {red:+.2f}, blue {blue:+.2f} against its usual"
    if name == "noise":
        return f"noise {row['noise']:.1f} grey levels (usually {row['noise_usual']:.1f})"
    return f"light flickers from picture to picture by {row['flicker']:.1%} (usually {row['flicker_usual']:.1%})"
