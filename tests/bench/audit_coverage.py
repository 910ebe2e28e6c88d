"""How often the audit's interval holds the truth: simulated audits of a filter over a frozen grid.

    .venv/bin/python tests/bench/audit_coverage.py [--count 2000] [--json]

Each audit is of footage with N_FRAMES frames, of which the filter keeps KEPT_SHARE beside what it rightly keeps. Exactly
round(N x prevalence) frames are positive, exactly round(positives x (1 - recall)) of them were dropped. Of D dropped units
each is looked at with p = m / D. LAYOUTS say how the missed frames lie and what a unit is:

    alone    a unit is a frame, missed frames lie anywhere
    events   a unit is a frame, missed frames lie in events (geometric lengths, mean EVENT_FRAMES)
    gops     the same events, but a unit is a GOP of GOP_FRAMES frames, looked at as a whole
    uneven   like alone, but half the dropped frames have UNEVEN times the chance of the other half (two cameras)

Truth is the recall of this footage. Printed: how often the interval holds it (bar: 93.5 % in every cell), its mean width, and
both for the plain exact interval of Clopper and Pearson, which takes every frame looked at for a draw of its own.
The grid, the worlds and the seed were committed before the first run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator
from functools import cache

import numpy as np

from infra.audit import Estimate, recall_of, total

RECALLS = (0.80, 0.95, 0.99)
PREVALENCES = (1e-2, 1e-3)
LOOKS = (100, 1_000)
LAYOUTS = ("alone", "events", "gops", "uneven")
COUNT = 2_000
BAR = 0.935
N_FRAMES = 100_000
KEPT_SHARE = 0.10
EVENT_FRAMES = 12
GOP_FRAMES = 12
UNEVEN = 4.0
SEED = 20_261_121


def event_lengths(rng: np.random.Generator, n_frames: int) -> list[int]:
    """Return lengths of events that add up to `n_frames`; the last one is cut."""
    lengths: list[int] = []
    while (left := n_frames - sum(lengths)) > 0:
        lengths.append(min(left, int(rng.geometric(1 / EVENT_FRAMES))))
    return lengths


def estimate(rng: np.random.Generator, layout: str, n_missed: int, n_dropped: int, m: int) -> tuple[Estimate, int, int]:
    """Look at one footage's dropped units; return the estimate of what was missed, frames looked at, positives among them."""
    if layout == "gops":
        n_gops = n_dropped // GOP_FRAMES
        p = m / n_gops
        sizes = [size for length in event_lengths(rng, n_missed) for size in in_gops(rng, length)]
        found = [size for size in sizes if rng.random() < p]
        n_dark = max(0, n_dropped - m * GOP_FRAMES)
        made = total([p] * len(found), found, least_p=p, most_positive=GOP_FRAMES, unseen=n_dark)
        return made, m * GOP_FRAMES, sum(found)
    if layout == "uneven":
        low = 2 * m / n_dropped / (1 + UNEVEN)
        halves = [int(rng.binomial(half, p)) for half, p in ((n_missed // 2, low), (n_missed - n_missed // 2, UNEVEN * low))]
        p_look = [low] * halves[0] + [UNEVEN * low] * halves[1]
        return total(p_look, least_p=low, unseen=n_dropped - m), m, len(p_look)
    p = m / n_dropped
    lengths = event_lengths(rng, n_missed) if layout == "events" else [1] * n_missed
    hits = rng.binomial(lengths, p) if lengths else np.zeros(0, int)
    cluster = [number for number, n in enumerate(hits) for _ in range(n)]
    return total([p] * len(cluster), cluster=cluster, least_p=p, unseen=n_dropped - m), m, len(cluster)


def in_gops(rng: np.random.Generator, length: int) -> Iterator[int]:
    """Yield how many frames of an event, begun anywhere in a GOP, fall into each GOP."""
    room = GOP_FRAMES - int(rng.integers(GOP_FRAMES))
    while length > 0:
        yield min(room, length)
        length, room = length - room, GOP_FRAMES


@cache
def clopper_pearson(found: int, looked: int) -> tuple[float, float]:
    """Return the exact two-sided 95 % interval of a share."""

    def tail(share: float, upto: int) -> float:
        logs = (
            math.lgamma(looked + 1) - math.lgamma(k + 1) - math.lgamma(looked - k + 1)
            + k * math.log(share) + (looked - k) * math.log1p(-share)
            for k in range(upto + 1)
        )  # fmt: skip
        return sum(map(math.exp, logs))

    def solve(upto: int, level: float) -> float:
        low, high = 1e-12, 1 - 1e-12
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if tail(middle, upto) > level else (low, middle)
        return (low + high) / 2

    return (solve(found - 1, 0.975) if found else 0.0), solve(found, 0.025) if found < looked else 1.0


def cell(number: int, recall: float, prevalence: float, m: int, layout: str, count: int) -> dict[str, object]:
    """Simulate one cell of the grid."""
    rng = np.random.default_rng([SEED, number])
    n_positive = round(N_FRAMES * prevalence)
    n_missed = round(n_positive * (1 - recall))
    kept = n_positive - n_missed
    n_dropped = N_FRAMES - kept - round(N_FRAMES * KEPT_SHARE)
    truth = kept / n_positive
    hits, plain_hits, widths, plain_widths, n_found = 0, 0, 0.0, 0.0, 0
    for _ in range(count):
        made, looked, found = estimate(rng, layout, n_missed, n_dropped, m)
        _, low, high = recall_of(Estimate(kept, kept, kept), made)
        hits, widths, n_found = hits + (low <= truth <= high), widths + high - low, n_found + found
        least, most = clopper_pearson(found, looked)
        plain_low, plain_high = kept / (kept + most * n_dropped), kept / (kept + least * n_dropped)
        plain_hits, plain_widths = plain_hits + (plain_low <= truth <= plain_high), plain_widths + plain_high - plain_low
    return {
        "recall": recall, "prevalence": prevalence, "m": m, "layout": layout, "found": n_found / count,
        "coverage": hits / count, "width": widths / count, "plain_coverage": plain_hits / count,
        "plain_width": plain_widths / count,
    }  # fmt: skip


def main() -> int:
    """Print the table; exit code 1 if a cell is below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT, help=f"audits per cell (default {COUNT})")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    grid = itertools.product(RECALLS, PREVALENCES, LOOKS, LAYOUTS)
    rows = [cell(number, *place, arguments.count) for number, place in enumerate(grid)]
    least = min(float(str(row["coverage"])) for row in rows)
    if arguments.json:
        print(json.dumps({"rows": rows, "least": least, "bar": BAR, "count": arguments.count}))
    else:
        print("| recall | prevalence | m | layout | found | coverage | width | plain exact: coverage | width |")
        print("|---|---|---|---|---|---|---|---|---|")
        for row in rows:
            cells = [f"{row[name]:.3f}" for name in ("found", "coverage", "width", "plain_coverage", "plain_width")]
            print(
                "| "
                + " | ".join([str(row["recall"]), f"{row['prevalence']:g}", str(row["m"]), str(row["layout"]), *cells])
                + " |"
            )
        print(f"\n{len(rows)} cells of {arguments.count} audits: least coverage {least:.2%}, bar {BAR:.1%}")
    return 0 if least >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
