"""Windows ready for training: uint8 (N, T, H, W, 3) batches in an order that seed and epoch alone decide.

    1. rows of a split, decoded      -> footage.Cache
    2. positions of their windows    -> window_set()  (windows.py says which)
    3. weights                       -> row.weight, times what makes classes even if the recipe asks for it
    4. an epoch's order              -> epoch_order() (drawn by weight; a plain permutation when all weigh the same)
    5. a batch                       -> WindowSet.batch()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.artefacts import Selection, SelectionRow, Split
from infra.errors import UsageError
from train.footage import Cache
from train.windows import WindowSpec, windows

UNLABELLED = -1  # torch's ignore_index: the frame gives no loss


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSet:
    """The windows of one split.

    Attributes:
        frames: uint8 (M, H, W, 3) RGB, the cache.
        positions: int64 (K, T) into `frames`.
        labels: int64 (K, T), the class of each frame; UNLABELLED where no row of the split covers it.
        rows: int64 (K,), the row each window comes from.
        weights: float64 (K,), how likely each is drawn; they sum to 1.
    """

    frames: NDArray[np.uint8]
    positions: NDArray[np.int64]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return uint8 (N, T, H, W, 3) windows and int64 (N, T) labels."""
        return torch.from_numpy(self.frames[self.positions[chosen]]), torch.from_numpy(self.labels[chosen])


def labels_of(selection: Selection) -> tuple[str, ...]:
    """Return the class labels of a data set's training rows, sorted; validation and test must know no others.

    Raises:
        UsageError: nothing to train on, one class only, or a label that training never shows.
    """
    labels = tuple(sorted({row.label for row in selection.split("train") if row.label is not None}))
    if len(labels) < 2:
        raise UsageError(
            f"data set {selection.name!r}: its training part has the classes {list(labels)}; at least two are needed "
            "(sample with --unit interval and --split, and labels imported before)"
        )
    strange = sorted({row.label for row in selection.rows if row.split and row.label is not None} - set(labels))
    if strange:
        raise UsageError(f"data set {selection.name!r}: {strange} only in validation or test; sample again, or more of it")
    return labels


def usable(selection: Selection, split: Split) -> tuple[SelectionRow, ...]:
    """Return the rows of a split that have a class label, in order."""
    return tuple(row for row in selection.split(split) if row.label is not None)


def window_set(
    cache: Cache, rows: Sequence[SelectionRow], split: Split, labels: Sequence[str], spec: WindowSpec, *, balance: bool
) -> WindowSet:
    """Return the windows of one split of the rows that `cache` holds, in the order of the rows.

    Args:
        cache: made by `footage.load` from the same `rows`.
        rows: rows with labels.
        split: which of them.
        labels: class names; a window's label is the index in them.
        spec: how windows are taken.
        balance: give every class the same share of the weight.
    """
    of_frame = _frame_labels(cache, rows, split, labels)
    found = [
        ([cache.spans[i][0] + p for p in window], labels.index(row.label), i, row.weight)
        for i, row in enumerate(rows)
        if row.split == split and row.label is not None
        for window in windows(cache.spans[i][1] - cache.spans[i][0], spec)
    ]
    classes = np.array([label for _, label, _, _ in found], np.int64)
    weights = np.array([weight for *_, weight in found], np.float64)
    if balance and len(found):
        weights /= np.bincount(classes, weights, minlength=len(labels))[classes]
    positions = np.array([positions for positions, *_ in found], np.int64).reshape(-1, spec.n_frames)
    return WindowSet(
        frames=cache.frames,
        positions=positions,
        labels=of_frame[positions],
        rows=np.array([i for _, _, i, _ in found], np.int64),
        weights=weights / weights.sum() if len(found) else weights,
    )


def _frame_labels(cache: Cache, rows: Sequence[SelectionRow], split: Split, labels: Sequence[str]) -> NDArray[np.int64]:
    """Return the class of every frame of the cache, (M,): that of the row of this split that covers it."""
    of_frame = np.full(len(cache.frames), UNLABELLED, np.int64)
    by_clip: dict[str, list[SelectionRow]] = {}
    for row in rows:
        if row.split == split and row.label is not None:
            by_clip.setdefault(row.clip_id, []).append(row)
    for row, (first, stop), pts in zip(rows, cache.spans, cache.pts, strict=True):
        ticks, within = np.array(pts, np.int64), of_frame[first:stop]
        for other in (*by_clip.get(row.clip_id, ()), row):  # the row itself last: its own frames are its own
            if other.split == split and other.label is not None:
                within[(ticks >= other.start_pts) & (ticks < other.end_pts)] = labels.index(other.label)
    return of_frame


def epoch_order(windows: WindowSet, n_most: int | None, generator: torch.Generator) -> list[int]:
    """Return which windows an epoch shows, in order: as many as there are, or `n_most` of them.

    Windows that weigh the same are shown once each; else each is drawn, with replacement, by its weight.
    """
    n = len(windows) if n_most is None else min(n_most, len(windows))
    weights = windows.weights
    if np.allclose(weights, weights[0], rtol=1e-9):
        return torch.randperm(len(weights), generator=generator)[:n].tolist()
    return torch.multinomial(torch.from_numpy(weights), n, replacement=True, generator=generator).tolist()
