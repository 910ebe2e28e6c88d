"""Small pictures of frames for pages, and what was detected on them: decoded in a child with limits, as every untrusted clip,
and encoded as JPEG here. A page asks for `pictures` and `boxes` of its frames, and puts both together with `Thumbnail.drawn`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from infra import page, video, views
from infra.catalog import Catalog
from infra.decoder import DecoderPool
from infra.errors import MediaError, ObjectMissing
from infra.page import Box
from infra.records import Index
from infra.store import Store

SIDE_PX: Final = 320
QUALITY: Final = 80
_CLIP: Final = ("clip_id", "key", "index", "width_px", "height_px")
_BOX: Final = ("clip_id", "pts", "class_name", "score", "x1", "y1", "x2", "y2")

Frame = tuple[str, int]
"""(clip_id, pts)."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A JPEG with its size, and how many of its pixels are one of the stored picture's."""

    jpeg: bytes
    width_px: int
    height_px: int
    scale: float

    def drawn(self, title: str, boxes: Iterable[Box] = ()) -> str:
        """Return it for a page, with boxes that are given in pixels of the stored picture."""
        by = self.scale
        scaled = [Box(x1=b.x1 * by, y1=b.y1 * by, x2=b.x2 * by, y2=b.y2 * by, name=b.name) for b in boxes]
        return page.picture(self.jpeg, self.width_px, self.height_px, title, scaled)


def pictures(catalog: Catalog, frames: Iterable[Frame]) -> dict[Frame, Thumbnail]:
    """Return the pictures of frames, without those whose clip is gone or cannot be decoded; each clip is decoded once."""
    by_clip: dict[str, list[int]] = {}
    for clip_id, pts in frames:
        by_clip.setdefault(clip_id, []).append(pts)
    clips = catalog.scan("clips", _CLIP).filter(pl.col("clip_id").is_in(list(by_clip))).collect()
    made: dict[Frame, Thumbnail] = {}
    with DecoderPool() as pool:
        for clip in clips.sort("clip_id").iter_rows(named=True):
            found = thumbnails(catalog.store, pool, clip, by_clip[clip["clip_id"]])
            made |= {(clip["clip_id"], pts): picture for pts, picture in found.items()}
    return made


def boxes(
    catalog: Catalog, frames: Collection[Frame], which: pl.Expr, name: Callable[[Mapping[str, Any]], str]
) -> dict[Frame, list[Box]]:
    """Return the detections on frames that count (`views.detections`), in pixels of the stored picture.

    Args:
        catalog: where they are.
        frames: of interest.
        which: a condition over columns of `detections`.
        name: what a row of it is called on the page.
    """
    wanted, made = set(frames), dict[Frame, list[Box]]()
    clip_ids = sorted({clip_id for clip_id, _ in wanted})
    found = views.detections(catalog).filter(pl.col("clip_id").is_in(clip_ids), which).select(_BOX).collect()
    for row in found.iter_rows(named=True):
        if (frame := (row["clip_id"], row["pts"])) in wanted:
            box = Box(x1=row["x1"], y1=row["y1"], x2=row["x2"], y2=row["y2"], name=name(row))
            made.setdefault(frame, []).append(box)
    return made


def small(path: Path, *, index: Index, pts: Sequence[int], size_px: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Yield {"pts": int64 (n,), "rgb": uint8 (n, H, W, 3) RGB} of these frames; runs in the child.

    Raises:
        MediaError: one of them is not there.
    """
    for frames in video.decode(path, pts=pts, size_px=size_px, index=index, batch=8):
        yield {"pts": frames.pts.copy(), "rgb": frames.rgb.copy()}


def thumbnails(store: Store, pool: DecoderPool, clip: Mapping[str, Any], pts: Sequence[int]) -> dict[int, Thumbnail]:
    """Return pts -> picture of frames of a clip; empty when it is gone or cannot be decoded.

    Args:
        store: where clips lie.
        pool: decodes.
        clip: a row of `clips`: key, index, width_px, height_px.
        pts: wanted frames.
    """
    import cv2

    full = int(clip["width_px"]), int(clip["height_px"])
    size = full if max(full) <= SIDE_PX else video.fit(full, (SIDE_PX, SIDE_PX))[0]
    made: dict[int, Thumbnail] = {}
    try:
        with store.local(clip["key"]) as path:
            for part in pool.stream("curate.thumbnails:small", path, index=clip["index"], pts=sorted(set(pts)), size_px=size):
                for at, rgb in zip(part["pts"].tolist(), part["rgb"], strict=True):
                    _, jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
                    made[at] = Thumbnail(jpeg.tobytes(), *size, size[0] / full[0])
    except (MediaError, ObjectMissing):
        return made
    return made
