"""Small pictures of frames for pages: decoded in a child with limits, as every untrusted clip, and encoded as JPEG here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra import video
from infra.decoder import DecoderPool
from infra.errors import MediaError, ObjectMissing
from infra.records import Index
from infra.store import Store

SIDE_PX: Final = 320
QUALITY: Final = 80


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A JPEG with its size, and how many of its pixels are one of the stored picture's."""

    jpeg: bytes
    width_px: int
    height_px: int
    scale: float


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
