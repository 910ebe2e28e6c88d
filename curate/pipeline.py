"""The table of steps that need pixels, and the plain loop over it. Ray runs the same table: `curate/jobs.py`.

    works --> decode (fans out: one clip, many frames) --> detect --> embed --> rows

A batch is a dict of numpy columns, one entry per frame. Pixels travel as uint8 columns, one per model, at the model's
size, and are dropped by the step that used them. Each clip ends with one row whose `end` column holds what is known of the
clip as a whole, or why it failed; so a batch may mix clips, and arrive in any order. Compressed clips never travel.

A clip is decoded once: where several steps are missing they share its frames; where only later steps are, just the kept
frames are decoded again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from curate import openclip
from curate.decode import Decode
from curate.detect import Batch, Weights, describe, open_detector
from curate.plan import Options, Step, Work
from curate.scan import PART
from infra.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """Which models look at the frames of a pass: their `name@version`, and pixel column -> side of its square."""

    detector: str = ""
    classes: tuple[str, ...] = ()
    embedder: str = ""
    sizes_px: Mapping[str, int]


def looks(options: Options, steps: Sequence[Step]) -> Looks:
    """Return what the models of `steps` want, without opening them for work."""
    sizes: dict[str, int] = {}
    detector, classes, embedder = "", tuple[str, ...](), ""
    if "detect" in steps and options.detector is not None:
        described = describe(options.detector)
        detector, classes, sizes["detect_rgb"] = described.name, described.classes, described.size_px
    if "embed" in steps and options.embedder_path is not None:
        embedder, sizes["embed_rgb"] = openclip.describe(options.embedder_path, options.embedder_model)
    return Looks(detector=detector, classes=classes, embedder=embedder, sizes_px=sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One row of the table: how a step runs. `make` builds it where it runs, once per worker.

    Attributes:
        step: its name.
        make: returns a callable; the first stage takes one clip and yields batches, the others map batch to batch.
        batch_size: frames per call, or clips for the first.
        num_cpus: what one worker counts for.
        workers: least and most workers of a cluster; the local loop has one.
    """

    step: str
    make: Callable[[], Callable[[Any], Any]]
    batch_size: int
    num_cpus: float
    workers: tuple[int, int]


def table(options: Options, seen: Looks, settings: Settings, store_url: str, *, scans: bool, cpus: int) -> list[Stage]:
    """Return the stages of one pass.

    Args:
        options: weights and thresholds.
        seen: which models look.
        settings: how a worker reaches the store.
        store_url: the store.
        scans: whether clips are scanned; if not, just their kept frames are decoded.
        cpus: cores that all workers have together.
    """
    sizes, every_s, most = dict(seen.sizes_px), options.every_s if scans else None, max(1, cpus // 2)
    stages = [
        Stage(
            step="decode",
            make=partial(Decode, settings, store_url, sizes, every_s),
            batch_size=1,
            num_cpus=0.5,
            workers=(1, most),
        )
    ]
    if seen.detector and options.detector is not None:
        make = partial(_open_detect, options.detector)
        stages.append(Stage(step="detect", make=make, batch_size=PART, num_cpus=1.0, workers=(1, most)))
    if seen.embedder and options.embedder_path is not None:
        make = partial(_open_embed, options.embedder_path, options.embedder_model)
        stages.append(Stage(step="embed", make=make, batch_size=2 * PART, num_cpus=0.5, workers=(1, most)))
    return stages


def _open_detect(weights: Weights) -> OnFrames:
    return OnFrames(open_detector(weights), "detect_rgb", "detections")


def _open_embed(path: Path, model_name: str | None) -> OnFrames:
    return OnFrames(openclip.OpenClipEmbedder(path, model_name=model_name), "embed_rgb", "embedding")


class OnFrames:
    """Runs a model on the frames of a batch and passes the clips' end rows by.

    Args:
        model: takes and returns a batch; replaces column `pixels` by column `adds`.
        pixels: the column that it uses up.
        adds: the column that it makes.
    """

    def __init__(self, model: Callable[[Batch], Batch], pixels: str, adds: str) -> None:
        self._model, self._pixels, self._adds = model, pixels, adds

    def __call__(self, batch: Batch) -> Batch:
        is_frame = np.array([not end for end in batch["end"]], dtype=bool)
        made = np.empty(len(is_frame), dtype=object)
        made[:] = b""
        if is_frame.any():
            frames = {name: column[is_frame] for name, column in batch.items()}
            made[is_frame] = self._model(frames)[self._adds]
        return {**{name: column for name, column in batch.items() if name != self._pixels}, self._adds: made}


def run_local(works: Iterable[Work], stages: Sequence[Stage]) -> Iterator[Batch]:
    """Run the table as a plain loop and yield what comes out of its last stage."""
    first, *rest = stages
    stream: Iterator[Batch] = itertools.chain.from_iterable(map(first.make(), works))
    for stage in rest:
        stream = map(stage.make(), rebatched(stream, stage.batch_size))
    return stream


def rebatched(stream: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Yield the rows of `stream` in batches of `size`, across clips; the last one may be smaller."""
    held: list[Batch] = []
    n = 0
    for batch in stream:
        held.append(batch)
        n += len(batch["end"])
        while n >= size:
            merged = _merged(held)
            yield {name: column[:size] for name, column in merged.items()}
            held, n = [{name: column[size:] for name, column in merged.items()}], n - size
    if n:
        yield _merged(held)


def _merged(batches: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]} if len(batches) > 1 else batches[0]
