"""Step `scan`: one clip, decoded once: motion of every frame, quality of the kept ones, pictures for the models.

    packets -> GOPs --+
    pictures -> small luma -> motion of each frame --+-> a row per GOP
         \\-> due on the grid of `every_s` -> quality, squares for the models -> a row per kept frame

A plain generator: parts of at most `PART` kept frames, then one part with the rows of `gops`. It depends on nothing but the
clip's bytes and its arguments. `scan_clip` may run in a child process (`infra/decoder.py`): parts are dicts of arrays.

**Which frames are kept**: the first at or after each multiple of `every_s` (`infra.video.Grid`). That is a rule and no
draw; p_keep = 1 / n, where n counts the frames from this one up to the next kept one (or the end). So the sum of 1 / p_keep
over a clip is its number of frames, whatever its rate or drops, and each kept frame stands for the time until the next.
**gops**: every GOP has a row; all are decoded (p_keep = 1), `motion` has one score per pts (null for the clip's first frame).
`packet_score` is the mean size of the GOP's other packets divided by that of its keyframe: about 0 for a still scene, null
where there is none. In a sequential clip GOPs begin where the decoder says keyframe, and sizes are null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from curate import motion, quality
from infra import video
from infra.errors import MediaError
from infra.records import Index

VERSION: Final = 2  # 2: colourfulness that burnt-in overlays cannot move
PART: Final = 8  # frames that travel together: 10 MB at 640 px
MEASURES: Final = ("brightness", "contrast", "blur", "colourfulness", "motion_score", "p_keep")
READS: Final = ("path", "index")
ADDS: Final = ("pts", *MEASURES, "gops")

Part = dict[str, Any]


def scan_clip(path: Path | str, *, index: Index, every_s: float, sizes_px: Mapping[str, int]) -> Iterator[Part]:
    """Decode a clip once and yield what later steps need.

    Args:
        path: the clip.
        index: what `video.probe` found.
        every_s: distance of the kept frames in seconds.
        sizes_px: pixel column -> side of its square; "detect_rgb" is letterboxed, others are squeezed (see `squares`).

    Yields:
        {"pts": int64 (n,), each of `MEASURES`: float64 (n,) with NaN for unknown, each of `sizes_px`: uint8 (n, S, S, 3)}
        with n <= PART, in order; last {"gops": list of rows of that table without clip_id}.

    Raises:
        MediaError: not a clip, damaged, or its pictures are not those that its packets promise.
    """
    path = Path(path)
    gops = _packet_gops(path) if index == "packets" else []
    background, grid = motion.Background(), None
    seen: list[tuple[int, float | None]] = []
    held: list[Part] = []
    n_since = 0
    for picture in video.pictures(path, index=index):
        grid = grid or video.Grid(every_s, picture.time_base)
        score = background.score(picture.gray(_within(picture.size_px, motion.SIDE_PX)), float(picture.pts * picture.time_base))
        seen.append((picture.pts, score))
        if index == "sequential" and (not gops or picture.frame.key_frame):
            gops.append({"pts": [], "n_bytes": None, "packet_score": None})
        if index == "sequential":
            gops[-1]["pts"].append(picture.pts)
        if grid.is_due(picture.pts):
            if held:
                held[-1]["p_keep"] = 1 / n_since
            if len(held) == PART:
                yield _part(held)
                held = []
            held.append(_kept(picture, score, sizes_px))
            n_since = 0
        n_since += 1
    if held:
        held[-1]["p_keep"] = 1 / n_since
        yield _part(held)
    yield {"gops": _gop_rows(path, gops, seen)}


def squares(picture: video.Picture, sizes_px: Mapping[str, int]) -> dict[str, video.Rgb]:
    """Return a picture at the sizes of the models: uint8 (S, S, 3) per column, letterboxed for the detector, else squeezed."""
    made = {}
    for column, size in sizes_px.items():
        if column == "detect_rgb":
            inner, _, pad_x, pad_y = video.fit(picture.size_px, (size, size))
            made[column] = video.place(picture.rgb(inner), (size, size), pad_x, pad_y)
        else:
            made[column] = picture.rgb((size, size)).copy()
    return made


def _kept(picture: video.Picture, score: float | None, sizes_px: Mapping[str, int]) -> Part:
    size = _within(picture.size_px, quality.SIDE_PX)
    found = quality.measure(picture.rgb(size), picture.gray(size))
    return {
        "pts": picture.pts, "brightness": found.brightness, "contrast": found.contrast, "blur": found.blur,
        "colourfulness": found.colourfulness, "motion_score": np.nan if score is None else score,
        **squares(picture, sizes_px),
    }


def _part(held: Sequence[Part]) -> Part:
    """Stack kept frames into columns."""
    columns = {name: np.stack([frame[name] for frame in held]) for name in held[0]}
    return {name: column.astype(np.float64) if name in MEASURES else column for name, column in columns.items()}


def _within(size_px: tuple[int, int], side_px: int) -> tuple[int, int]:
    """Return `size_px` (width, height), shrunk so that the longer side is at most `side_px`; never enlarged."""
    return size_px if max(size_px) <= side_px else video.fit(size_px, (side_px, side_px))[0]


def _packet_gops(path: Path) -> list[Part]:
    """Return the clip's packets cut into GOPs, at keyframes."""
    gops: list[Part] = []
    sizes: list[list[int]] = []
    for packet in video.packets(path):
        if packet.is_keyframe or not gops:
            gops.append({"pts": []})
            sizes.append([])
        gops[-1]["pts"].append(packet.pts)
        sizes[-1].append(packet.n_bytes)
    for gop, (key_bytes, *others) in zip(gops, sizes, strict=True):
        gop["n_bytes"] = key_bytes + sum(others)
        gop["packet_score"] = sum(others) / len(others) / key_bytes if others else None
    return gops


def _gop_rows(path: Path, gops: Sequence[Part], seen: Sequence[tuple[int, float | None]]) -> list[Part]:
    """Return the rows of table `gops` without clip_id; checks that each packet gave its picture."""
    scores = dict(seen)
    promised = sorted(pts for gop in gops for pts in gop["pts"])
    if promised != [pts for pts, _ in seen]:
        missing = sorted(set(promised).symmetric_difference(scores))
        raise MediaError(
            f"{path.name}: {len(promised)} packets gave {len(seen)} pictures (first odd pts {missing[:1]}): "
            "the clip is damaged, or register it again so that it is read sequentially"
        )
    starts = [min(gop["pts"]) for gop in gops]
    last, before = seen[-1][0], seen[-2][0] if len(seen) > 1 else seen[-1][0] - 1
    ends = [*starts[1:], last + max(1, last - before)]
    return [
        {
            "gop_index": number, "start_pts": start, "end_pts": end, "pts": sorted(gop["pts"]), "n_bytes": gop["n_bytes"],
            "packet_score": gop["packet_score"], "decoded": True, "motion": [scores[pts] for pts in sorted(gop["pts"])],
            "p_keep": 1.0,
        }
        for number, (gop, start, end) in enumerate(zip(gops, starts, ends, strict=True))
    ]
