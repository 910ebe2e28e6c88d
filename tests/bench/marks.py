"""Do two people see the same motion in the same clips? Prints how far the two passes of marks agree.

Usage: python tests/bench/marks.py [FIRST.csv SECOND.csv]   (given none: tests/motion_marks_1.csv and _2.csv)

A row of a pass: clip, [first_frame, end_frame), what moves there, sure or unsure. A row whose `what` begins with "nothing"
says that the frames are quiet. Where a pass has such rows its other frames are not judged; a pass without them (empty ones,
0 to 0, only name a clip) judged every frame. An event is *found* in the other pass as a detector finds one (`is_found`):
temporal IoU of .3 or more, or centres within 1 s. Rows that are "unsure" are not asked for, and disagree with nobody.

Nothing is changed here: a mark is what somebody saw, and a disagreement is printed, not settled.
"""

from __future__ import annotations

import argparse
import csv
import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infra import video

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "videos"
PASSES = [Path(__file__).resolve().parents[1] / f"motion_marks_{number}.csv" for number in (1, 2)]
QUIET, MOVES, OPEN = 0, 1, 2
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A row of a pass; `first` and `end` are frames, half open."""

    clip: str
    first: int
    end: int
    what: str
    sure: bool

    @property
    def moves(self) -> bool:
        """Say whether the row is of something that moves."""
        return not self.what.startswith("nothing")


def read(path: Path) -> list[Mark]:
    """Return the rows of a pass; lines that begin with "#" say who marked, how and when."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return [
        Mark(row["clip"], int(row["first_frame"]), int(row["end_frame"]), row["what"], row["sure"] == "sure")
        for row in csv.DictReader(lines)
    ]


def events(marks: Iterable[Mark], clip: str) -> list[Mark]:
    """Return what surely moves in a clip."""
    return [mark for mark in marks if mark.clip == clip and mark.moves and mark.sure]


def judged(marks: Sequence[Mark], clip: str, n_frames: int) -> npt.NDArray[np.int8]:
    """Return QUIET, MOVES or OPEN (not judged, or unsure) of each frame of a clip: int8 (n_frames,)."""
    says_quiet = any(not mark.moves and mark.end > mark.first for mark in marks)
    seen = np.full(n_frames, OPEN if says_quiet else QUIET, np.int8)
    for mark in sorted((mark for mark in marks if mark.clip == clip), key=lambda mark: mark.sure):
        seen[mark.first : mark.end] = OPEN if not mark.sure else MOVES if mark.moves else QUIET
    return seen


def is_found(event: Interval, found: Interval) -> bool:
    """Say whether an interval finds an event: IoU of .3 or more, or centres within 1 s."""
    both = max(0.0, min(event[1], found[1]) - max(event[0], found[0]))
    either = max(event[1], found[1]) - min(event[0], found[0])
    return both / either >= 0.3 or abs(sum(event) - sum(found)) / 2 <= 1.0


@functools.cache
def _times(clip: str) -> list[float]:
    """Return when each frame is shown, and when the last one ends, in seconds."""
    path = DATA / clip
    shown = [float(one.pts * one.time_base) for one in video.pictures(path, index=video.probe(path).index)]
    return [*shown, 2 * shown[-1] - shown[-2]]


def seconds(mark: Mark) -> Interval:
    """Return a mark's interval in seconds."""
    times = _times(mark.clip)
    return times[mark.first], times[mark.end]


def duration_s(clip: str) -> float:
    """Return when a clip's last frame ends, in seconds."""
    return _times(clip)[-1]


def _asked(asked: Sequence[Mark], other: Sequence[Mark]) -> tuple[int, list[Mark], list[float]]:
    """Return how many events the other pass has too, those it has not, and how far the borders of the found ones lie apart."""
    lost, apart = [], []
    for mark in asked:
        here = seconds(mark)
        there = [seconds(one) for one in other if one.clip == mark.clip and is_found(here, seconds(one))]
        if there:
            best = min(there, key=lambda one: abs(one[0] - here[0]) + abs(one[1] - here[1]))
            apart += [abs(best[0] - here[0]), abs(best[1] - here[1])]
        else:
            lost.append(mark)
    return len(asked) - len(lost), lost, apart


def compare(first: Sequence[Mark], second: Sequence[Mark]) -> None:
    """Print the agreement of two passes."""
    clips = sorted({mark.clip for mark in (*first, *second)})
    print(f"{len(clips)} clips\n")
    print("| asked | events | found in the other | borders apart, s: median | p95 | most |\n" + "|---" * 6 + "|")
    sure = [[mark for clip in clips for mark in events(marks, clip)] for marks in (first, second)]
    unfound = []
    for name, asked, other in (("pass 1", sure[0], sure[1]), ("pass 2", sure[1], sure[0])):
        n_found, lost, apart = _asked(asked, other)
        middle, high = np.percentile(apart, [50, 95])
        print(f"| {name} | {len(asked)} | {n_found} | {middle:.2f} | {high:.2f} | {max(apart):.2f} |")
        unfound += [(name, mark) for mark in lost]
    for name, mark in unfound:
        start_s, end_s = seconds(mark)
        print(f"only in {name}: {mark.clip} [{mark.first}, {mark.end}) {start_s:.1f}-{end_s:.1f} s: {mark.what}")
    print("\n| clip | frames | both judged | disagree | pass 1 quiet, 2 moves | pass 1 moves, 2 quiet |\n" + "|---" * 6 + "|")
    total: Counter[str] = Counter()
    for clip in clips:
        one, two = (judged(marks, clip, len(_times(clip)) - 1) for marks in (first, second))
        both = int(((one != OPEN) & (two != OPEN)).sum())
        new, gone = (int(((one == a) & (two == b)).sum()) for a, b in ((QUIET, MOVES), (MOVES, QUIET)))
        row = Counter(frames=len(one), both=both, new=new, gone=gone)
        total.update(row)
        _print_row(clip, row)
    _print_row("all", total)


def _print_row(name: str, row: Counter[str]) -> None:
    differ = row["new"] + row["gone"]
    share = differ / row["both"] if row["both"] else 0.0
    print(f"| {name} | {row['frames']} | {row['both']} | {differ} ({share:.1%}) | {row['new']} | {row['gone']} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("passes", nargs="*", type=Path, default=PASSES, help="two files of marks")
    arguments = parser.parse_args()
    if len(arguments.passes) != 2:
        parser.error(f"{len(arguments.passes)} files of marks; two are compared")
    compare(*(read(path) for path in arguments.passes))


if __name__ == "__main__":
    main()
