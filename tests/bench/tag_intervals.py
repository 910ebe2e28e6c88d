"""How often the interval of a tag's precision or recall holds the truth, and how often a bad tag would be believed.

    python tests/bench/tag_intervals.py

The grid was written and committed before its first run: true shares, recordings, how alike frames of one recording are
(intra-recording correlation), recordings of uneven length (geometric, 20 labelled frames on average). 2,000 audits each.
Bar: coverage >= 93.5 % in every cell; a tag whose true share is 0.75 or less is believed (lower end >= 0.75) in <= 5 % of
audits.
"""

from __future__ import annotations

import numpy as np

from curate.share_interval import share

TRUE_SHARES = (0.70, 0.75, 0.80, 0.90, 0.95, 0.99)
RECORDINGS = (5, 10, 20, 50)
ALIKE = (0.1, 0.5, 0.9)
MEAN_FRAMES = 20
N_AUDITS = 2000
SEED = 20261121
BAR, USABLE = 0.935, 0.75


def audits(true: float, alike: float, n_recordings: int) -> tuple[float, float, float]:
    """Return coverage, mean width and the share of audits whose lower end reaches `USABLE`; beta-binomial recordings."""
    rng = np.random.default_rng([SEED, round(true * 100), round(alike * 10), n_recordings])
    a, b = true * (1 - alike) / alike, (1 - true) * (1 - alike) / alike
    held = believed = 0
    width = 0.0
    for _ in range(N_AUDITS):
        totals = rng.geometric(1 / MEAN_FRAMES, n_recordings)
        found = share(rng.binomial(totals, rng.beta(a, b, n_recordings)), totals)
        held += found.low <= true <= found.high
        believed += found.low >= USABLE
        width += found.high - found.low
    return held / N_AUDITS, width / N_AUDITS, believed / N_AUDITS


def main() -> None:
    """Print the table."""
    print(f"{'true':>5} {'alike':>6} " + " ".join(f"{f'{n} recordings':>24}" for n in RECORDINGS))
    worst, fooled = 1.0, 0.0
    for true in TRUE_SHARES:
        for alike in ALIKE:
            cells = [audits(true, alike, n) for n in RECORDINGS]
            worst = min(worst, *(coverage for coverage, _, _ in cells))
            fooled = max([fooled, *(believed for _, _, believed in cells if true <= USABLE)])
            shown = " ".join(f"{coverage:8.1%} w {width:.2f} b {believed:5.1%}" for coverage, width, believed in cells)
            print(f"{true:5.2f} {alike:6.1f} {shown}")
    print(f"worst coverage {worst:.1%} (bar {BAR:.1%})")
    print(f"a tag of true share <= {USABLE} is believed in at most {fooled:.1%} of audits (bar 5 %)")


if __name__ == "__main__":
    main()
