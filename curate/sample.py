"""Who is drawn: quotas per cell, then a seeded draw inside each cell. Pure functions, no catalog.

A *cell* is one combination of the by-columns' values, such as ("cam1", "night"). Every strategy only sets quotas:

- `balanced`     the same number from every cell; a cell that has too few gives all, and nobody fills in for it;
- `undersample`  as `balanced`, but what the smallest cells lack is taken from the others ("next-minority");
- `shares`       stated shares of the total per value (night=.4), the rest shared out over the values not named;
- `random`       one cell.

`draw` then takes, inside a cell, the rows whose hash of (seed, row) is smallest: the same rows are drawn whatever the
order of arrival. What a quota lacked is a `Shortage`, as data. Whole numbers come from the largest remainder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from infra.artefacts import Shortage
from infra.errors import QueryError

Cell = tuple[Hashable, ...]
Strategy = Literal["balanced", "undersample", "shares", "random"]
STRATEGIES: tuple[Strategy, ...] = ("balanced", "undersample", "shares", "random")


@dataclass(frozen=True, slots=True)
class Pick:
    """One drawn row: its position in the list given to `draw`, its cell and the probability it was drawn with."""

    index: int
    cell: Cell
    p_select: float


@dataclass(frozen=True, slots=True)
class Quotas:
    """How many to draw from each cell, and what had to be given up."""

    per_cell: Mapping[Cell, int]
    shortages: tuple[Shortage, ...] = ()


def name_cell(by: Sequence[str], cell: Cell) -> str:
    """Return a cell as a person reads it: `camera_id=cam1, lighting=night`."""
    named = zip(by, ("unknown" if value is None else value for value in cell), strict=True)
    return ", ".join(f"{column}={value}" for column, value in named) or "all"


def _order(cells: Mapping[Cell, int]) -> list[Cell]:
    """Return the cells in an order that depends on their values alone (values may be of mixed types)."""
    return sorted(cells, key=lambda cell: [(type(value).__name__, str(value)) for value in cell])


def largest_remainder(weights: Mapping[Hashable, float], total: int) -> dict[Hashable, int]:
    """Share `total` out in proportion to `weights`, in whole numbers that add up exactly.

    Equal remainders go to the entries that come first.

    Raises:
        QueryError: a weight is negative, or all are zero.
    """
    mass = sum(weights.values())
    if any(weight < 0 for weight in weights.values()) or not mass > 0:
        raise QueryError(f"shares {dict(weights)}: none may be negative and one must be positive")
    exact = {name: total * weight / mass for name, weight in weights.items()}
    whole = {name: int(value + 1e-9) for name, value in exact.items()}
    missing = total - sum(whole.values())
    for name in sorted(exact, key=lambda name: whole[name] - exact[name])[:missing]:
        whole[name] += 1
    return whole


def random(counts: Mapping[Cell, int], n: int | None) -> Quotas:
    """Return one quota for the only cell; `n` None takes everything."""
    (cell, found), *more = counts.items() or [((), 0)]
    if more:
        raise QueryError("strategy 'random' looks at no columns: leave --by out, or use 'balanced'")
    wanted = found if n is None else n
    short = (Shortage(cell="all", wanted=wanted, found=found, why="the query finds no more"),) if found < wanted else ()
    return Quotas({cell: min(wanted, found)}, short)


def balanced(counts: Mapping[Cell, int], n: int | None, by: Sequence[str]) -> Quotas:
    """Give every cell the same quota, within one; `n` None means: as many as the smallest cell has.

    A cell with fewer rows gives all it has and is reported; its lack is not filled from others, so that all cells
    that could meet their quota stay equal.
    """
    cells = _order(counts)
    if n is None:
        return Quotas(dict.fromkeys(cells, min(counts.values(), default=0)))
    # the odd ones go to the largest cells, which can best afford them
    by_size = sorted(cells, key=lambda cell: -counts[cell])
    wanted = largest_remainder(dict.fromkeys(by_size, 1.0), n) if cells else {}
    return _capped({cell: wanted[cell] for cell in cells}, counts, by, "the query finds no more; not filled from others")


def undersample(counts: Mapping[Cell, int], n: int | None, by: Sequence[str]) -> Quotas:
    """Cut the larger cells down to the minority; where that is too few for `n`, the next class is the minority.

    Cells are taken in order of size. One that cannot give an equal part of what is still wanted is taken whole, and
    the rest is shared out over those that are left. `n` None: all cells are cut down to the smallest.
    """
    if n is None:
        return balanced(counts, None, by)
    left, quotas, shortages = n, {}, []
    by_size = sorted(_order(counts), key=lambda cell: counts[cell])
    for position, cell in enumerate(by_size):
        part = left // (len(by_size) - position)
        quotas[cell] = min(counts[cell], part)
        left -= quotas[cell]
        if counts[cell] < part:
            last = position == len(by_size) - 1
            why = "taken whole; the query finds no more" if last else "taken whole; the next class is the minority"
            shortages.append(Shortage(cell=name_cell(by, cell), wanted=part, found=counts[cell], why=why))
    return Quotas({cell: quotas[cell] for cell in _order(counts)}, tuple(shortages))


def shares(counts: Mapping[Cell, int], n: int, by: Sequence[str], wanted: Mapping[str, float]) -> Quotas:
    """Give each named value of the one by-column its share of `n`; what is left goes to the other values by size.

    Raises:
        QueryError: not exactly one column, a share outside [0, 1], or shares that exceed 1.
    """
    if len(by) != 1:
        raise QueryError(f"shares need exactly one --by column, not {len(by)}: {', '.join(by) or 'none'}")
    total = sum(wanted.values())
    if any(not 0 <= share <= 1 for share in wanted.values()) or total > 1 + 1e-9:
        raise QueryError(f"shares {dict(wanted)} add up to {total:g}: each from 0 to 1, together at most 1")
    values = {str(cell[0]): cell for cell in _order(counts)}
    weights: dict[Hashable, float] = {values.get(name, (name,)): share for name, share in wanted.items()}
    others = {cell: counts[cell] for cell in values.values() if cell not in weights}
    rest, mass = max(0.0, 1 - total), sum(others.values())
    if rest > 1e-9 and not mass:
        raise QueryError(f"shares {dict(wanted)} add up to {total:g} and {by[0]} has no other value to fill the rest")
    weights |= {cell: rest * found / mass for cell, found in others.items() if mass}
    quotas = {cell: count for cell, count in largest_remainder(weights, n).items() if isinstance(cell, tuple)}
    return _capped(quotas, counts, by, "the query finds no more; the shares of the others are kept")


def _capped(wanted: Mapping[Cell, int], counts: Mapping[Cell, int], by: Sequence[str], why: str) -> Quotas:
    short = [
        Shortage(cell=name_cell(by, cell), wanted=quota, found=counts.get(cell, 0), why=why)
        for cell, quota in wanted.items()
        if counts.get(cell, 0) < quota
    ]
    return Quotas({cell: min(quota, counts.get(cell, 0)) for cell, quota in wanted.items()}, tuple(short))


def quotas(
    counts: Mapping[Cell, int], n: int | None, by: Sequence[str], strategy: Strategy, wanted: Mapping[str, float] | None = None
) -> Quotas:
    """Return the quotas of a strategy. Cells that hold an unknown value are never asked for; they are reported.

    Raises:
        QueryError: unknown strategy, a negative `n`, or nothing but unknown values.
    """
    if strategy not in STRATEGIES:
        raise QueryError(f"strategy {strategy!r}; legal: {', '.join(STRATEGIES)}")
    if n is not None and n < 0:
        raise QueryError(f"a sample of {n}: ask for 0 or more, or for 'all'")
    known = {cell: count for cell, count in counts.items() if None not in cell}
    if counts and not known:
        raise QueryError(f"{', '.join(by)}: unknown in every row found; run the step that fills it, or leave it out of --by")
    if strategy == "random":
        made = random(counts, n)
    elif strategy == "balanced":
        made = balanced(known, n, by)
    elif strategy == "undersample":
        made = undersample(known, n, by)
    elif n is None or not wanted:
        raise QueryError("strategy 'shares' needs a number of rows and --shares VALUE=SHARE,...")
    else:
        made = shares(known, n, by, wanted)
    unknown = [
        Shortage(cell=name_cell(by, cell), wanted=0, found=counts[cell], why="unknown value: left out")
        for cell in _order(counts)
        if cell not in known
    ]
    return Quotas(made.per_cell, (*made.shortages, *unknown))


def draw(rows: Sequence[tuple[str, Cell]], quota: Quotas, seed: int) -> list[Pick]:
    """Draw the quotas from `rows`, each a (row id, cell); row ids are unique.

    Args:
        rows: what can be drawn; its order changes nothing but the indices.
        quota: how many from each cell.
        seed: another seed gives another draw.

    Returns:
        The picks in order of row id; `p_select` is drawn / found in the row's cell.
    """
    found: dict[Cell, list[tuple[bytes, str, int]]] = {}
    for index, (row_id, cell) in enumerate(rows):
        if quota.per_cell.get(cell, 0):
            rank = hashlib.blake2b(f"{seed}\0{row_id}".encode(), digest_size=16).digest()
            found.setdefault(cell, []).append((rank, row_id, index))
    picks = []
    for cell, ranked in found.items():
        chosen = sorted(ranked)[: quota.per_cell[cell]]
        picks += [(row_id, Pick(index, cell, len(chosen) / len(ranked))) for _, row_id, index in chosen]
    return [pick for _, pick in sorted(picks, key=lambda pair: pair[0])]
