"""The table of steps that need pixels, and the plain loop over it. Ray runs the same table: `curate/jobs.py`.

    works --> decode (fans out: one clip, many frames) --> detect --> embed --> rows
    works --> decode --> the stages of a cascade (`curate/cascade.py`), each for the frames that are worth it --> rows

A batch is a dict of numpy columns, one entry per frame. Pixels travel as uint8 columns, one per model and size, and are
dropped by the last step that uses them. Each clip ends with one row whose `end` column holds what is known of the
clip as a whole, or why it failed; so a batch may mix clips, and arrive in any order. Compressed clips never travel.

A model gets full batches, across clips; in the loop it also gets what there is when rows come after `WAIT_S`, so that the end
of one clip does not wait until a batch of the next is full.

A clip is decoded once: where several steps are missing they share its frames; where only later steps are, just the kept
frames are decoded again.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from curate import cascade, crops, openclip
from curate import gate as gating
from curate.cascade import Look
from curate.decode import Decode
from curate.detect import Batch, open_detector
from curate.plan import Options, Step, Work
from curate.resources import Resources
from curate.scan import PART
from infra import video
from infra.clock import Clock, SystemClock
from infra.decoder import MEMORY_BYTES
from infra.errors import UsageError
from infra.settings import Settings

HELD_SHARE: Final = 0.8  # of a decoder's memory that pictures may take which wait
WAIT_S: Final = 5.0  # a model that could work waits no longer for its batch to be full; asked whenever rows come


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One row of the table: how a step runs. `make` builds it where it runs, once per worker.

    Attributes:
        step: its name.
        make: returns a callable; the first stage takes one clip and yields batches, the others map batch to batch.
        batch_size: frames per call, or clips for the first.
        num_cpus: what one worker counts for.
        num_gpus: the same.
        workers: least and most workers of a cluster; the local loop has one.
    """

    step: str
    make: Callable[[], Callable[[Any], Any]]
    batch_size: int
    num_cpus: float
    num_gpus: float = 0.0
    workers: tuple[int, int]


def looks(options: Options, steps: Sequence[Step]) -> tuple[Look, ...]:
    """Return the models that look at the frames of a pass over `steps`, in order, without opening them for work.

    With a cascade these are all stages that decide the rows of `steps`: a later stage cannot be run without those before it.
    """
    if options.cascade is not None:
        return options.cascade.upto("embed" if "embed" in steps else "detect") if {"detect", "embed"} & set(steps) else ()
    made = []
    if "detect" in steps and options.detector is not None:
        made.append(cascade.detector(options.detector))
    if "embed" in steps and options.embedder_path is not None:
        made.append(cascade.embedder(options.embedder_path, options.embedder_model))
    return tuple(made)


def table(options: Options, seen: Sequence[Look], settings: Settings, store_url: str, *, scans: bool, cpus: int) -> list[Stage]:
    """Return the stages of one pass.

    Args:
        options: the grid of the scan; devices, and the pools that somebody sized.
        seen: which models look, in order.
        settings: how a worker reaches the store.
        store_url: the store.
        scans: whether clips are scanned; if not, just their kept frames are decoded.
        cpus: cores that all workers have together.

    Raises:
        UsageError: more pictures would wait for the gate's audit than a decoder may hold.
    """
    sizes = {look.pixels: look.pixels_px for look in seen}
    every_s, most = options.every_s if scans else None, max(1, cpus // 2 if seen else cpus)
    resources = options.resources
    _check_held(options, sum(3 * side * side for side in sizes.values()) if scans else 0)
    n_least = sum(resources.workers.get(look.name, (1, 1))[0] for look in seen)
    gpu = math.floor(100 / n_least) / 100 if seen and resources.needs_gpu else 0.0  # the least workers of all fit on one
    decode = partial(
        Decode, settings, store_url, sizes, every_s, score=options.score, gate=options.gate, once_s=cascade.lengths(seen),
        grid_s=options.every_s,
    )  # fmt: skip
    stages = [
        Stage(
            step="decode",
            make=decode,
            batch_size=1,
            num_cpus=0.5,
            workers=resources.workers.get("decode", (1, most)),
        )
    ]
    for number, look in enumerate(seen):
        stages.append(
            Stage(
                step=look.name,
                make=partial(OnFrames.open, look, seen[:number], seen[number + 1 :], resources),
                batch_size=PART if look.step == "detect" or look.crops else 2 * PART,
                num_cpus=1.0 if look.step == "detect" else 0.5,
                num_gpus=gpu,
                workers=resources.workers.get(look.name, (1, most)),
            )
        )
    # the least workers of all stages must fit, however many there are
    share = min(1.0, cpus / sum(stage.num_cpus * stage.workers[0] for stage in stages))
    return [dataclasses.replace(stage, num_cpus=max(0.01, math.floor(100 * stage.num_cpus * share) / 100)) for stage in stages]


def _check_held(options: Options, n_bytes: int) -> None:
    """Refuse what a decoder cannot hold: under the gate the pictures of the audit wait until all of it was seen."""
    held_bytes = n_bytes * gating.AUDIT_MOST_S / options.every_s
    if options.gate == "packets" and held_bytes > MEMORY_BYTES * HELD_SHARE:
        raise UsageError(
            f"--gate packets --every-s {options.every_s:g}: pictures of {n_bytes / 1e6:.1f} MB a frame wait for the audit, "
            f"up to {held_bytes / 1e9:.1f} GB of a long clip; take smaller models or crop_px, or --every-s "
            f"{n_bytes * gating.AUDIT_MOST_S / (MEMORY_BYTES * HELD_SHARE):.2g} or more"
        )


class OnFrames:
    """Runs a model on the frames of a batch that it is to look at, and passes other frames and the clips' end rows by.

    Args:
        model: takes and returns a batch; replaces column `detect_rgb` by `detections`, or `embed_rgb` by `embedding`.
        look: what it is, and which frames it looks at.
        before: the stages that had the batch before.
        after: those that will.
    """

    def __init__(
        self, model: Callable[[Batch], Batch], look: Look, before: Sequence[Look] = (), after: Sequence[Look] = ()
    ) -> None:
        self._model, self._look = model, look
        self._before = before[-1] if before else None
        self._counted = cascade.counting(before)
        self._is_last = look.pixels not in {other.pixels for other in after}
        self._clock = SystemClock()

    @classmethod
    def open(
        cls, look: Look, before: Sequence[Look], after: Sequence[Look], resources: Resources = Resources()  # noqa: B008
    ) -> OnFrames:  # fmt: skip
        """Open the model of a look: done where it runs.

        Raises:
            JobError: its file is not the one that the job began with.
            UsageError: what it is to work on is not there.
        """
        model: Callable[[Batch], Batch]
        if look.step == "detect":
            model = open_detector(look.weights, resources=resources)
        else:
            model = openclip.OpenClipEmbedder(look.path, model_name=look.model, device=resources.device)
        look.weights.check()  # after it was read: what was swapped until now is found
        return cls(model, look, before, after)

    def __call__(self, batch: Batch) -> Batch:
        start_ns, look = self._clock.mono_ns(), self._look
        looked = np.array([not end for end in batch["end"]], dtype=bool)
        added: Batch = {}
        if look.number is not None:
            looked, added = self._chosen(batch, looked)
        made = np.empty(len(looked), dtype=object)
        made[:] = b""
        if looked.any():
            made[looked] = self._made(batch, looked)
        kept = {name: column for name, column in batch.items() if name != look.pixels or not self._is_last}
        seconds = (self._clock.mono_ns() - start_ns) / 1e9 / max(1, len(looked))
        return {**kept, look.made: made, **added, look.seconds: np.full(len(looked), seconds)}

    def _made(self, batch: Batch, looked: Any) -> Any:
        """Return what the model makes of the rows to look at, one entry each: packed boxes, a vector, or those of boxes."""
        look, counted = self._look, self._counted
        if look.crops is None or counted is None:
            return self._model(self._given(batch, looked))["detections" if look.step == "detect" else "embedding"]
        made = np.empty(int(looked.sum()), dtype=object)
        made[:] = crops.embed(
            self._model, batch, np.flatnonzero(looked).tolist(), pixels=look.pixels, boxes=counted.made, names=counted.classes,
            crops=look.crops, min_score=look.min_score, to_px=look.size_px,
        )  # fmt: skip
        return made

    def _chosen(self, batch: Batch, is_frame: Any) -> tuple[Any, Batch]:
        """Return which rows a stage of a cascade looks at, and its columns `p_look`, `passed` and, with cells, `met`."""
        look = self._look
        p_before = np.ones(len(is_frame)) if self._before is None else np.nan_to_num(batch[self._before.p_look])
        asked = is_frame & (p_before > 0)
        met = asked & cascade.holds(look, self._counted, batch)
        passed = met & cascade.leads(look, batch)
        looked = passed | cascade.draw(look, batch, asked, passed)
        p_look = np.where(asked, np.where(looked, p_before * np.where(passed, 1.0, look.audit), 0.0), np.nan)
        return looked, {look.met: met, look.p_look: p_look, look.passed: passed}

    def _given(self, batch: Batch, looked: Any) -> Batch:
        """Return the rows to look at as the model reads them; for detectors with the place of the picture in its square."""
        look = self._look
        given = {name: column[looked] for name, column in batch.items() if name != look.pixels and not name.endswith("_rgb")}
        given[f"{look.step}_rgb"] = batch[look.pixels][looked]
        if look.step == "detect":
            square = (look.size_px, look.size_px)
            sizes = zip(given["width_px"], given["height_px"], strict=True)
            places = [video.fit((int(width), int(height)), square)[1:] for width, height in sizes]
            given |= dict(zip(("scale", "pad_x", "pad_y"), map(np.array, zip(*places, strict=True)), strict=True))
        return given


class Chain:
    """The stages of a table in one process, built once; takes works and yields what comes out of the last stage.

    The decoder is a child process that works an item ahead.

    Args:
        stages: the table.
        wait_s: see `rebatched`; infinite where the same works must give the same batches again.
    """

    def __init__(self, stages: Sequence[Stage], wait_s: float = WAIT_S) -> None:
        self._made, self._wait_s = [(stage.make(), stage.batch_size) for stage in stages], wait_s

    def __call__(self, works: Iterable[Work]) -> Iterator[Batch]:
        """Work on clips, one after the other."""
        (first, _), *rest = self._made
        stream: Iterator[Batch] = itertools.chain.from_iterable(map(first, works))
        for call, batch_size in rest:
            stream = map(call, rebatched(stream, batch_size, wait_s=self._wait_s))
        return stream


def run_local(works: Iterable[Work], stages: Sequence[Stage]) -> Iterator[Batch]:
    """Run the table as a plain loop and yield what comes out of its last stage."""
    return Chain(stages)(works)


def rebatched(stream: Iterator[Batch], size: int, *, wait_s: float = WAIT_S, clock: Clock | None = None) -> Iterator[Batch]:
    """Yield the rows of `stream` in batches of `size`, across clips; smaller ones at its end, and after `wait_s`.

    Args:
        stream: batches of any size.
        size: rows.
        wait_s: whoever takes the batches is not left waiting longer than this while rows are held; looked at when rows come.
        clock: times the wait.
    """
    clock = clock or SystemClock()
    held: list[Batch] = []
    n, since_ns = 0, clock.mono_ns()
    for batch in stream:
        now_ns = clock.mono_ns()
        since_ns = since_ns if held else now_ns
        held.append(batch)
        n += len(batch["end"])
        while n >= size:
            merged = _merged(held)
            yield {name: column[:size] for name, column in merged.items()}
            held, n = [{name: column[size:] for name, column in merged.items()}] if n > size else [], n - size
            since_ns = clock.mono_ns()  # until now the taker was busy
        if n and now_ns - since_ns >= wait_s * 1e9:
            yield _merged(held)
            held, n = [], 0
    if n:
        yield _merged(held)


def _merged(batches: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]} if len(batches) > 1 else batches[0]
