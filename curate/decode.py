"""The first stage: one clip in, its frames out at the sizes that the models of this pass want.

A clip that lacks its scan is scanned (`curate/scan.py` chooses, measures and converts in one decoding pass); a clip that
was scanned before has just its kept frames decoded again. Either way the pictures come from a child process with limits
(`infra/decoder.py`), one clip at a time. What the clip itself is to blame for ends as its end row's error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from curate import once, scan
from curate.detect import Batch
from curate.scan import Part
from infra import video
from infra.clock import SystemClock
from infra.decoder import DecoderPool
from infra.errors import MediaError, ObjectMissing
from infra.images import is_roll
from infra.records import Index
from infra.settings import Settings
from infra.store import open_store

if TYPE_CHECKING:
    from curate.plan import Work

LIMIT_S: Final = 900.0  # of one clip, CPU and wall: ten minutes of 1080p decode in a third of it on a slow core


def kept_frames(path: Path, *, index: Index, pts: Sequence[int], sizes_px: Mapping[str, int]) -> Iterator[Part]:
    """Yield parts of at most `scan.PART` frames at exactly `pts` (sorted): columns pts and those of `sizes_px`.

    Raises:
        MediaError: one of them is not there.
    """
    wanted, held = set(pts), []
    for picture in video.pictures(path, start_pts=min(pts), index=index) if pts else ():
        if picture.pts in wanted:
            wanted.discard(picture.pts)
            held.append((picture.pts, scan.squares(picture, sizes_px)))
        if len(held) == scan.PART or (held and not wanted):
            yield {
                "pts": np.array([pts for pts, _ in held], np.int64),
                **{column: np.stack([made[column] for _, made in held]) for column in sizes_px},
            }
            held = []
        if not wanted:
            return
    if wanted:
        raise MediaError(f"{path.name}: no frames at pts {sorted(wanted)[:3]}: it was scanned with another reader")


class Decode:
    """Takes a `Work`, yields batches: its frames, then its end row.

    Args:
        settings: how to reach the store.
        store_url: the store.
        sizes_px: pixel column -> side of its square; those of detectors begin with "detect".
        every_s: a frame at least this often; None where clips were scanned before.
        score: version of the motion score.
        gate: what is decoded at all (see `scan_clip`).
        once_s: lengths of the cells whose first frames are marked, seconds (see `curate.once`).
        grid_s: distance of the kept frames, also of clips that were scanned before; needed with `once_s`.
    """

    def __init__(
        self, settings: Settings, store_url: str, sizes_px: Mapping[str, int], every_s: float | None, *, score: int = 1,
        gate: scan.GateKind = "none", once_s: Sequence[float] = (), grid_s: float | None = None,
    ) -> None:  # fmt: skip
        self._score, self._gate = score, gate
        self._once_s, self._grid_s = tuple(once_s), grid_s
        self._clock = SystemClock()
        self._store = open_store(store_url, settings)
        self._sizes_px, self._every_s = dict(sizes_px), every_s
        self._pool = DecoderPool(cpu_s=LIMIT_S, wall_s=LIMIT_S)

    def __call__(self, work: Work) -> Iterator[Batch]:
        """Decode one clip.

        Raises:
            StoreError: the store cannot be reached; that is nobody's clip's fault, and ends the job.
        """
        n_frames, end, busy_ns = 0, {}, 0
        start_ns = self._clock.mono_ns()
        try:
            with self._store.local(work.clip["key"]) as path:
                firsts = self._firsts(path, work)
                for part in self._parts(path, work):
                    if "gops" in part:
                        end = {**part}
                        continue
                    n_frames += len(part["pts"])
                    batch = {**self._batch(work, part), **firsts.columns(part["pts"])}
                    busy_ns += self._clock.mono_ns() - start_ns
                    yield batch
                    start_ns = self._clock.mono_ns()  # what others did meanwhile is theirs
        except (MediaError, ObjectMissing) as error:
            end = {"error": str(error), "error_class": type(error).__name__}
        seconds = (busy_ns + self._clock.mono_ns() - start_ns) / 1e9
        yield self._end(work, {**end, "n_frames": n_frames, "seconds": seconds})

    def _parts(self, path: Path, work: Work) -> Iterator[Part]:
        index, sizes_px = work.clip["index"], self._sizes_px
        if self._every_s is None:
            return self._pool.stream("curate.decode:kept_frames", path, index=index, pts=work.kept, sizes_px=sizes_px)
        return self._pool.stream(
            "curate.scan:scan_clip", path, index=index, every_s=self._every_s, sizes_px=sizes_px, score=self._score,
            gate=self._gate, clip_id=work.clip_id, masks=work.masks,
        )  # fmt: skip

    def _firsts(self, path: Path, work: Work) -> once.Firsts:
        """Return what marks the first frames of cells: by the packets where a gate leaves frames out and mixes their order."""
        time_base = Fraction(work.clip["time_base_num"], work.clip["time_base_den"])
        is_gated = self._gate == "packets" and work.clip["index"] == "packets" and not is_roll(path)
        if not self._once_s or not is_gated or self._grid_s is None:
            return once.Firsts(self._once_s, time_base)
        recorded = self._pool.run("infra.video:recorded_pts", path)
        return once.Firsts(self._once_s, time_base, once.kept_grid(recorded, self._grid_s, time_base))

    def _batch(self, work: Work, part: Part) -> Batch:
        n = len(part["pts"])
        known = part if self._every_s is not None else work.measured(part["pts"])
        measures: Batch = {name: np.asarray(known[name], np.float64) for name in scan.MEASURES}
        pixels = {name: part[name] for name in self._sizes_px}
        return {**self._columns(work, n, b""), **measures, "pts": part["pts"], **pixels}

    def _end(self, work: Work, end: Mapping[str, Any]) -> Batch:
        measures = {name: np.full(1, np.nan) for name in scan.MEASURES}
        black = {name: np.zeros((1, size, size, 3), np.uint8) for name, size in self._sizes_px.items()}
        firsts = {once.column(length): np.zeros(1, dtype=bool) for length in self._once_s}
        return {**self._columns(work, 1, json.dumps(end).encode()), **measures, "pts": np.zeros(1, np.int64), **black, **firsts}

    def _columns(self, work: Work, n: int, end: bytes) -> Batch:
        width, height = int(work.clip["width_px"]), int(work.clip["height_px"])
        ends = np.empty(n, dtype=object)
        ends[:] = end
        return {
            "clip_id": np.full(n, work.clip_id), "end": ends, "width_px": np.full(n, width), "height_px": np.full(n, height),
        }  # fmt: skip
