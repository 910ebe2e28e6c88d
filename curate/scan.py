"""Step `scan`: one clip, decoded once: motion of every frame, quality of the kept ones, pictures for the models.

    packets -> GOPs --+
    pictures -> small luma -> motion of each frame --+-> a row per GOP
         \\-> due on the grid of `every_s` -> quality, squares for the models -> a row per kept frame

A plain generator: parts of at most `PART` kept frames, then one part with the rows of `gops`. It depends on nothing but the
clip's bytes and its arguments. `scan_clip` may run in a child process (`infra/decoder.py`): parts are dicts of arrays.

With motion score 2 a clip is looked at in stretches of some seconds, each scored by itself (`curate/motion.py`); then
`gate="packets"` may leave most of them undecoded (`curate/gate.py`).

**Which frames are kept**: the first at or after each multiple of `every_s` (`infra.video.Grid`). That is a rule and no
draw; p_keep = 1 / n, where n counts the frames from this one up to the next kept one (or the end). So the sum of 1 / p_keep
over a clip is its number of frames, whatever its rate or drops, and each kept frame stands for the time until the next.
Under the gate p_keep is multiplied by that of the stretch; the frames are those of the same grid that lie in decoded GOPs.
**gops**: every GOP has a row. Decoded, `motion` has one score per pts (null where unknown, as for the clip's first frame);
not decoded, `motion` is null. p_keep is 1 but under the gate.
`packet_score` is the mean size of the GOP's other packets divided by that of its keyframe: about 0 for a still scene, null
where there is none. In a sequential clip GOPs begin where the decoder says keyframe, and sizes are null.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from curate import gate as gating
from curate import motion, quality, scene
from infra import video
from infra.errors import MediaError
from infra.images import is_roll
from infra.records import Index
from infra.regions import Region, covered

VERSION: Final = 2  # 2: colourfulness that burnt-in overlays cannot move
PART: Final = 8  # frames that travel together: 10 MB at 640 px
MEASURES: Final = ("brightness", "contrast", "blur", "colourfulness", "motion_score", "p_keep")
READS: Final = ("path", "index")
ADDS: Final = ("pts", *MEASURES, "gops")

CHUNK_S: Final = 8.0  # a longer stretch is scored in pieces of this length,
CHUNK_FRAMES: Final = 256  # or of so many pictures: 4 MB of small luma

Part = dict[str, Any]
GateKind = Literal["none", "packets"]


def scan_clip(
    path: Path | str, *, index: Index, every_s: float, sizes_px: Mapping[str, int], score: int = 1, gate: GateKind = "none",
    clip_id: str = "", masks: Sequence[Region] = (),
) -> Iterator[Part]:  # fmt: skip
    """Decode a clip once and yield what later steps need.

    Args:
        path: the clip.
        index: what `video.probe` found.
        every_s: distance of the kept frames in seconds.
        sizes_px: pixel column -> side of its square; those that begin with "detect" are letterboxed, others squeezed.
        score: version of the motion score, 1 or 2.
        gate: "packets" decodes only what the packets and an audit ask for; it needs score 2.
        clip_id: makes the gate's draws.
        masks: regions that never count as motion; of score 2.

    Yields:
        {"pts": int64 (n,), each of `MEASURES`: float64 (n,) with NaN for unknown, each of `sizes_px`: uint8 (n, S, S, 3)}
        with n <= PART, in order (but under the gate); last {"gops": list of rows of that table without clip_id}, with score 2
        also "scene": the row of `scene.Look`.

    Raises:
        MediaError: not a clip, damaged, or its pictures are not those that its packets promise.
    """
    path = Path(path)
    if score == 2:
        by_stretches = _chosen if index == "packets" and not is_roll(path) else _streamed
        yield from by_stretches(path, index, every_s, sizes_px, gate, clip_id, masks)
        return
    gops = _packet_gops(path) if index == "packets" else []
    background, grid = motion.Background(), None
    seen: list[tuple[int, float | None]] = []
    held: list[Part] = []
    n_since = 0
    for picture in video.pictures(path, index=index):
        grid = grid or video.Grid(every_s, picture.time_base)
        moved = background.score(
            picture.gray(video.within(picture.size_px, motion.SIDE_PX)), float(picture.pts * picture.time_base)
        )
        seen.append((picture.pts, moved))
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
            held.append(_kept(picture, moved, sizes_px))
            n_since = 0
        n_since += 1
    if held:
        held[-1]["p_keep"] = 1 / n_since
        yield _part(held)
    yield {"gops": _gop_rows(path, gops, seen)}


class _Chunk:
    """Pictures that are scored together: small luma, times, and the kept ones among them."""

    def __init__(self, masks: Sequence[Region]) -> None:
        self._masks = tuple(masks)
        self._counts: NDArray[np.bool_] | None = None
        self._luma: list[NDArray[np.uint8]] = []
        self.pts: list[int] = []
        self.times_s: list[float] = []
        self.kept: list[Part] = []

    def add(self, picture: video.Picture) -> None:
        self._luma.append(picture.gray(video.within(picture.size_px, motion.SIDE_PX)).copy())
        self.pts.append(picture.pts)
        self.times_s.append(float(picture.pts * picture.time_base))

    @property
    def is_full(self) -> bool:
        """Say whether the next picture to be scored begins another chunk."""
        return len(self.pts) >= CHUNK_FRAMES or (bool(self.pts) and self.times_s[-1] - self.times_s[0] >= CHUNK_S)

    def flush(self) -> tuple[list[tuple[int, float | None]], list[Part]]:
        """Return (pts and score of each scored picture, the kept frames with theirs), and begin anew."""
        if not self.pts:
            return [], []
        if self._counts is None and self._masks:
            height, width = self._luma[0].shape
            self._counts = ~covered(self._masks, (width, height))
        scores = motion.largest_shares(np.stack(self._luma), self._counts)
        scored = list(zip(self.pts, scores, strict=True))
        for frame in self.kept:
            found = scores[bisect.bisect_right(self.pts, frame["pts"]) - 1]
            frame["motion_score"] = np.nan if found is None else found
        kept = self.kept
        self._luma, self.pts, self.times_s, self.kept = [], [], [], []
        return scored, kept


def _chosen(
    path: Path, index: Index, every_s: float, sizes_px: Mapping[str, int], gate: GateKind, clip_id: str, masks: Sequence[Region]
) -> Iterator[Part]:
    """Scan the stretches of a clip that the gate asks for; without one all of them, in order."""
    with video.open_gops(path) as gops:
        found = gating.stretches(gops.packets, float(gops.time_base))
        weights = _weights(gops, every_s)
        everything = gating.Gate(clip_id, [0.0] * len(found), gating.STRETCH_S, is_believed=False)
        plan, look = gating.open_gate(clip_id, found, index) if gate == "packets" else everything, scene.Look()
        scores: dict[int, float | None] = {}
        waiting: list[tuple[int, Part]] = []
        held: list[Part] = []
        while (number := plan.next()) is not None:
            mine: list[tuple[int, float | None]] = []
            for scored, kept in _looked(gops, found[number], weights, sizes_px, masks, look):
                mine += scored
                waiting += [(number, frame) for frame in kept]
                if plan.is_certain(number):  # then so is all that waits
                    held += _weighed(waiting, plan)
                    yield from _parts(held, PART)
            scores.update(_filled(_times(gops, found[number]), mine))
            plan.tell(number, gating.seen([score for _, score in mine], [pts * float(gops.time_base) for pts, _ in mine]))
            if plan.is_certain(number):
                held += _weighed(waiting, plan)
                yield from _parts(held, PART)
        yield from _parts(held, 1)
        yield {"gops": _chosen_rows(gops, found, plan, scores), "scene": look.row()}


def _weighed(waiting: list[tuple[int, Part]], plan: gating.Gate) -> list[Part]:
    """Empty the list of (stretch, kept frame) and return the frames, p_keep multiplied by that of their stretch."""
    made = [{**frame, "p_keep": frame["p_keep"] * plan.p_keep(number)} for number, frame in waiting]
    waiting.clear()
    return made


def _parts(held: list[Part], least: int) -> Iterator[Part]:
    """Take parts off the front of `held` while there are at least so many frames."""
    while len(held) >= least:
        yield _part(held[:PART])
        del held[:PART]


def _looked(
    gops: video.Gops,
    stretch: gating.Stretch,
    weights: Mapping[int, int],
    sizes_px: Mapping[str, int],
    masks: Sequence[Region],
    look: scene.Look,
) -> Iterator[tuple[list[tuple[int, float | None]], list[Part]]]:
    """Decode one stretch; yield pts and scores, and the kept frames with p_keep by the grid alone."""
    chunk, pace = _Chunk(masks), motion.Pace()
    all_pts = _times(gops, stretch)
    tick_s = float(gops.time_base)
    due = {pts for pts in all_pts if pace.is_due(pts * tick_s)}
    needed = due.union(pts for pts in all_pts if pts in weights) | look.needed(all_pts, weights)
    for picture in gops.pictures(stretch.first, stretch.end, needed):
        look.see(picture, picture.pts in weights)
        if picture.pts in due:
            if chunk.is_full:
                yield chunk.flush()
            chunk.add(picture)
        if picture.pts in weights:
            chunk.kept.append({**_kept(picture, None, sizes_px), "p_keep": 1 / weights[picture.pts]})
    yield chunk.flush()


def _times(gops: video.Gops, stretch: gating.Stretch) -> list[int]:
    """Return the pts of a stretch, in order."""
    return sorted(packet.pts for gop in gops.packets[stretch.first : stretch.end] for packet in gop if packet.pts is not None)


def _filled(all_pts: Sequence[int], scored: Sequence[tuple[int, float | None]]) -> dict[int, float | None]:
    """Return pts -> score; a picture that was not scored has that of the last one before it that was."""
    known, score, made = dict(scored), None, dict[int, float | None]()
    for pts in all_pts:
        made[pts] = score = known.get(pts, score)
    return made


def _streamed(
    path: Path, index: Index, every_s: float, sizes_px: Mapping[str, int], gate: GateKind, clip_id: str, masks: Sequence[Region]
) -> Iterator[Part]:
    """Scan a clip whose packets say nothing, from its start to its end; all of it is decoded."""
    gops = _packet_gops(path) if index == "packets" else []
    chunk, pace, grid, last, look = _Chunk(masks), motion.Pace(), None, Part(), scene.Look()
    seen: list[tuple[int, float | None]] = []
    all_pts: list[int] = []
    held: list[Part] = []
    for picture in video.pictures(path, index=index):
        grid = grid or video.Grid(every_s, picture.time_base)
        is_key = bool(picture.frame.key_frame)
        time_s = float(picture.pts * picture.time_base)
        begins = is_key and bool(chunk.pts) and time_s - chunk.times_s[0] >= gating.STRETCH_S
        pace = motion.Pace() if begins else pace
        if pace.is_due(time_s):
            if chunk.is_full or begins:
                scored, kept = chunk.flush()
                seen += scored
                held += kept
                yield from _parts(held, PART + 1)  # the last one still counts the frames after it
            chunk.add(picture)
        all_pts.append(picture.pts)
        if index == "sequential" and (not gops or is_key):
            gops.append({"pts": [], "n_bytes": None, "packet_score": None})
        if index == "sequential":
            gops[-1]["pts"].append(picture.pts)
        is_kept = grid.is_due(picture.pts)
        look.see(picture, is_kept)
        if is_kept:
            last = {**_kept(picture, None, sizes_px), "p_keep": 1.0}
            chunk.kept.append(last)
        else:
            last["p_keep"] = 1 / (round(1 / last["p_keep"]) + 1)
    scored, kept = chunk.flush()
    seen += scored
    held += kept
    yield from _parts(held, 1)
    yield {"gops": _gop_rows(path, gops, list(_filled(all_pts, seen).items())), "scene": look.row()}


def _weights(gops: video.Gops, every_s: float) -> dict[int, int]:
    """Return pts of each kept frame -> frames from it up to the next kept one (or the end)."""
    grid, weights, last = video.Grid(every_s, gops.time_base), dict[int, int](), 0
    for pts in sorted(packet.pts for gop in gops.packets for packet in gop if packet.pts is not None):
        if grid.is_due(pts):
            last, weights[pts] = pts, 0
        weights[last] += 1
    return weights


def _chosen_rows(
    gops: video.Gops, found: Sequence[gating.Stretch], plan: gating.Gate, scores: Mapping[int, float | None]
) -> list[Part]:
    """Return the rows of table `gops` without clip_id: facts of packets for all, motion where it was decoded."""
    all_pts = [sorted(packet.pts for packet in gop if packet.pts is not None) for gop in gops.packets]
    last = max(pts[-1] for pts in all_pts)
    before = max((one for pts in all_pts for one in pts if one < last), default=last - 1)
    ends = [*(pts[0] for pts in all_pts[1:]), last + max(1, last - before)]
    rows = []
    for number, stretch in enumerate(found):
        for gop in range(stretch.first, stretch.end):
            pts = all_pts[gop]
            motions = [scores[one] for one in pts] if pts[0] in scores else None
            packets = _sizes([packet.n_bytes for packet in gops.packets[gop]])
            rows.append(_gop_row(gop, pts, ends[gop], packets, motions, plan.p_keep(number)))
    return rows


def _sizes(n_bytes: Sequence[int]) -> Part:
    """Return what the sizes of a GOP's packets, the keyframe's first, say in its row."""
    key_bytes, *others = n_bytes
    score = sum(others) / len(others) / key_bytes if others else None
    return {"n_bytes": key_bytes + sum(others), "packet_score": score}


def _gop_row(
    number: int, pts: Sequence[int], end_pts: int, packets: Part, motions: Sequence[float | None] | None, p_keep: float
) -> Part:
    """Return a row of table `gops` without clip_id; `motions` is None where it was not decoded."""
    return {
        "gop_index": number, "start_pts": pts[0], "end_pts": end_pts, "pts": list(pts), "n_bytes": packets["n_bytes"],
        "packet_score": packets["packet_score"], "decoded": motions is not None,
        "motion": None if motions is None else list(motions), "p_keep": p_keep,
    }  # fmt: skip


def squares(picture: video.Picture, sizes_px: Mapping[str, int]) -> dict[str, video.Rgb]:
    """Return a picture at the sizes of the models: uint8 (S, S, 3) per column, letterboxed for the detector, else squeezed."""
    made = {}
    for column, size in sizes_px.items():
        if column.startswith("detect"):
            inner, _, pad_x, pad_y = video.fit(picture.size_px, (size, size))
            made[column] = video.place(picture.rgb(inner), (size, size), pad_x, pad_y)
        else:
            made[column] = picture.rgb((size, size)).copy()
    return made


def _kept(picture: video.Picture, score: float | None, sizes_px: Mapping[str, int]) -> Part:
    size = video.within(picture.size_px, quality.SIDE_PX)
    found = quality.measure(picture.rgb(size), picture.gray(size))
    return {
        "pts": picture.pts,
        "brightness": found.brightness,
        "contrast": found.contrast,
        "blur": found.blur,
        "colourfulness": found.colourfulness,
        "motion_score": np.nan if score is None else score,
        **squares(picture, sizes_px),
    }


def _part(held: Sequence[Part]) -> Part:
    """Stack kept frames into columns."""
    columns = {name: np.stack([frame[name] for frame in held]) for name in held[0]}
    return {name: column.astype(np.float64) if name in MEASURES else column for name, column in columns.items()}


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
    for gop, n_bytes in zip(gops, sizes, strict=True):
        gop |= _sizes(n_bytes)
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
    all_pts = [sorted(gop["pts"]) for gop in gops]
    last, before = seen[-1][0], seen[-2][0] if len(seen) > 1 else seen[-1][0] - 1
    ends = [*(pts[0] for pts in all_pts[1:]), last + max(1, last - before)]
    return [
        _gop_row(number, pts, end, gop, [scores[one] for one in pts], 1.0)
        for number, (gop, pts, end) in enumerate(zip(gops, all_pts, ends, strict=True))
    ]
