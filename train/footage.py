"""Labelled footage for training: clips by id, and the frames of every row, decoded once into a cache of uint8 pictures.

    clips table -> read_clips() -> Clip records
    rows, clips -> load() -> Cache: frames uint8 (M, H, W, 3) RGB and, per row, which of them are its own

Frames are kept as decoded, at model size, un-augmented: epochs after the first cost no decoding. A cache above its
byte budget becomes a memory-mapped file in a temporary folder. A clip that is gone or broken is named, never silently lost.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infra import video
from infra.artefacts import SelectionRow
from infra.catalog import Catalog
from infra.errors import ArtefactError, JobError, MediaError, ObjectMissing
from infra.objects import Store
from infra.records import Clip
from train.recipes import Recipe
from train.windows import RowFrames, most_frames

MAX_FAILED_SHARE = 0.1  # of the clips: above it a run stops, as a scan does


def read_clips(catalog: Catalog, where: pl.Expr) -> dict[str, Clip]:
    """Return the live clips that a polars expression over table `clips` keeps, by id."""
    columns = [f.name for f in dataclasses.fields(Clip)]
    rows = catalog.scan("clips", columns).filter(where).collect().to_dicts()
    return {row["clip_id"]: Clip(**row) for row in rows}


def clips_of(catalog: Catalog, rows: Iterable[SelectionRow]) -> dict[str, Clip]:
    """Return the clips of some rows, by id.

    Raises:
        ArtefactError: the store's tables do not know one of them.
    """
    wanted = sorted({row.clip_id for row in rows})
    clips = read_clips(catalog, pl.col("clip_id").is_in(wanted))
    missing = [clip_id for clip_id in wanted if clip_id not in clips]
    if missing:
        raise ArtefactError(f"{len(missing)} clips of the data set are not in this store, as {missing[0]}: is --store right?")
    return clips


def in_order(clips: Iterable[Clip]) -> list[Clip]:
    """Return clips recording by recording, each in the order of filming."""
    return sorted(
        clips, key=lambda c: (c.recording_id, c.boot_id or "", -1 if c.seq is None else c.seq, c.start_ns or 0, c.clip_id)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """The decoded frames of some rows.

    Attributes:
        frames: uint8 (M, H, W, 3) RGB; rows that overlap hold their own copies.
        spans: per row (first, stop) into `frames`; empty for a row whose clip failed.
        pts: per row the ticks of its frames.
        failed: clip id -> why it gave nothing.
    """

    frames: NDArray[np.uint8]
    spans: tuple[tuple[int, int], ...]
    pts: tuple[tuple[int, ...], ...]
    failed: Mapping[str, str]
    folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)


def load(
    store: Store, clips: Mapping[str, Clip], rows: Sequence[SelectionRow], recipe: Recipe, *, advance: Callable[[int], None]
) -> Cache:
    """Decode the frames of all rows, clip by clip, each clip once.

    Args:
        store: where the clips lie.
        clips: by id, at least those of `rows`.
        rows: what is wanted.
        recipe: picture size, period and byte budget.
        advance: called with 1 after each clip.

    Raises:
        JobError: more than a tenth of the clips are gone or broken.
    """
    shape = (recipe.model.height_px, recipe.model.width_px, 3)
    room = [most_frames(r.start_pts, r.end_pts, clips[r.clip_id].time_base, recipe.window) for r in rows]
    frames, folder = _allocate((sum(room), *shape), recipe.cache_bytes)
    starts = [0, *np.cumsum(room).tolist()]
    spans = [(start, start) for start in starts[: len(rows)]]
    pts: list[tuple[int, ...]] = [()] * len(rows)
    by_clip: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_clip.setdefault(row.clip_id, []).append(number)
    failed: dict[str, str] = {}
    for clip_id, numbers in by_clip.items():
        try:
            with store.local(clips[clip_id].key) as path:
                found = _decode(path, clips[clip_id], [rows[i] for i in numbers], recipe, frames, [starts[i] for i in numbers])
        except (MediaError, ObjectMissing) as error:
            failed[clip_id] = str(error)
        else:
            for i, ticks in zip(numbers, found, strict=True):
                spans[i], pts[i] = (starts[i], starts[i] + len(ticks)), ticks
        advance(1)
    if len(failed) > MAX_FAILED_SHARE * len(by_clip):
        name, why = next(iter(failed.items()))
        raise JobError(f"{len(failed)} of {len(by_clip)} clips cannot be read, at most a tenth may fail; {name}: {why}")
    return Cache(frames=frames, spans=tuple(spans), pts=tuple(pts), failed=failed, folder=folder)


def _allocate(
    shape: tuple[int, ...], budget_bytes: int
) -> tuple[NDArray[np.uint8], tempfile.TemporaryDirectory[str] | None]:
    """Return an empty array in memory or, above the budget, in a file that goes away with the folder."""
    if int(np.prod(shape)) <= budget_bytes:
        return np.empty(shape, np.uint8), None
    folder = tempfile.TemporaryDirectory(prefix="camloop-frames-")
    path = Path(folder.name) / "frames.npy"
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape), folder


def _decode(
    path: Path, clip: Clip, rows: Sequence[SelectionRow], recipe: Recipe, into: NDArray[np.uint8], starts: Sequence[int]
) -> list[tuple[int, ...]]:
    """Decode one clip and write each row's frames at its start; return each row's pts."""
    wanted = [RowFrames(row.start_pts, row.end_pts, clip.time_base, recipe.window) for row in rows]
    found: list[list[int]] = [[] for _ in rows]
    size_px = (recipe.model.width_px, recipe.model.height_px)
    first, last = max(min(w.start_pts for w in wanted), clip.first_pts), max(w.end_pts for w in wanted)
    for batch in video.decode(path, start_pts=first, end_pts=last, size_px=size_px, index=clip.index):
        for rgb, pts in zip(batch.rgb, batch.pts.tolist(), strict=True):
            for row, ticks, start in zip(wanted, found, starts, strict=True):
                if row.takes(pts):
                    into[start + len(ticks)] = rgb
                    ticks.append(pts)
    return [tuple(ticks) for ticks in found]
