"""Which kept frames are the first of their cell: what a stage that says `once_s` looks at with certainty.

A cell is `once_s` seconds of the clip's own time, from a multiple of it up to the next (`infra.video.Grid`). First in a cell is
its first frame on the grid of kept frames, decoded or not. So this depends on the clip's bytes and two numbers, and on no
order: a camera's still stretches are left undecoded and the others come as the gate asks for them, yet the answer stands.
Who is in view for `once_s` seconds and the distance of two kept frames is on such a frame, for certain (ADR 0018).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from infra import video


def column(once_s: float) -> str:
    """Return the column of a batch that says which frames are the first of their cell."""
    return f"first_{round(once_s * 1_000_000)}_us"


class Firsts:
    """Says of one clip's kept frames which are the first of their cells.

    Args:
        once_s: lengths of cells, seconds.
        time_base: seconds per tick.
        grid: pts of all frames on the grid of kept frames, in order; None: `columns` is given all of them, in order.
    """

    def __init__(self, once_s: Sequence[float], time_base: Fraction, grid: Sequence[int] | None = None) -> None:
        self._grids = {column(length): video.Grid(length, time_base) for length in once_s}
        self._known: dict[str, set[int]] | None = None
        if grid is not None:
            self._known = {name: {pts for pts in grid if cells.is_due(pts)} for name, cells in self._grids.items()}

    def columns(self, pts: Sequence[int] | NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
        """Return for each length of cells (see `column`) bool (n,): whether each frame is the first of its cell."""
        ticks = [int(at) for at in pts]
        if self._known is not None:
            return {name: np.array([at in firsts for at in ticks], dtype=bool) for name, firsts in self._known.items()}
        return {name: np.array([cells.is_due(at) for at in ticks], dtype=bool) for name, cells in self._grids.items()}


def kept_grid(pts: Sequence[int], every_s: float, time_base: Fraction) -> list[int]:
    """Return those of a clip's pts (sorted) that lie on the grid of kept frames, decoded or not."""
    cells = video.Grid(every_s, time_base)
    return [at for at in pts if cells.is_due(at)]
