"""The live funnel of a run: what it did so far, as lines of at most 80 columns. A pure function of the tally.

    3/12 clips, 1 failed, 0:00:41, left 0:02:03, 41 frames/s, 22x real time
                  clips  failed    GOPs decoded  moving  looked  person  tagged
    all               3       1      45      45      12      60      17       0
    gate              2       0      30      30      12      40      17       0
    stage          frames  passed  looked   found   s busy   share
    decode          1,800   1,800      60      60       31     62%
    detect             60      60      60      17       19     38%

*GOPs* to *moving* count GOPs, *looked* and *person* frames of the last detector, the others clips. These are counts of what
this run looked at, for whoever waits; estimates for all footage are those of `curate/funnel.py` on the page. Seconds are those
that workers were busy, in sum. Shown while a run works (`infra.console.Board`), and once more when it is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Final

from curate.collect import Seen, Tally
from curate.plan import Work

WIDTH: Final = 80
CAMERAS: Final = 12  # with more, those with the most clips; the rest in one row
_NAME: Final = 14  # characters of a camera's or a stage's name


@dataclass(frozen=True, slots=True)
class Total:
    """What there is to do: clips that need decoding, and their length in seconds."""

    n_clips: int
    footage_s: float

    @classmethod
    def of(cls, works: Sequence[Work]) -> Total:
        """Return what a plan's works come to."""
        decoded = [work for work in works if work.pixel_steps]
        return cls(len(decoded), sum(work.footage_s for work in decoded))


def lines(tally: Tally, total: Total, seconds: float, *, by_camera: bool = False) -> list[str]:
    """Return the funnel, each line at most `WIDTH` characters.

    Args:
        tally: what was done so far.
        total: what there is to do.
        seconds: since the work began.
        by_camera: also a row for each camera.
    """
    made = [headline(tally, total, seconds), _row("", _names(tally)), _row("all", _counts(_sum(tally.cameras.values())))]
    if by_camera:
        busiest = sorted(tally.cameras, key=lambda name: (-tally.cameras[name].n_clips, name))
        made += [_row(name, _counts(tally.cameras[name])) for name in sorted(busiest[:CAMERAS])]
        if rest := busiest[CAMERAS:]:
            made.append(_row(f"{len(rest)} others", _counts(_sum([tally.cameras[name] for name in rest]))))
    if tally.stages:
        busy_s = sum(flow.seconds for flow in tally.stages.values()) or 1.0
        made.append(_row("stage", ["frames", "passed", "looked", "found", "s busy", "share"]))
        for name, flow in tally.stages.items():
            counts = [_short(n) for n in (flow.n_in, flow.n_passed, flow.n_out, flow.n_found, round(flow.seconds))]
            made.append(_row(name, [*counts, f"{flow.seconds / busy_s:.0%}"]))
    return made


def line(tally: Tally, total: Total, seconds: float) -> str:
    """Return the funnel of all cameras in one line of any length, for logs."""
    counts = zip(_names(tally)[2:], _counts(_sum(tally.cameras.values()))[2:], strict=True)
    return f"{headline(tally, total, seconds)}; " + ", ".join(f"{name} {count}" for name, count in counts)


def headline(tally: Tally, total: Total, seconds: float) -> str:
    """Return how far it is, how fast, and how long it will take; what does not fit into `WIDTH` is left out from the end.

    Time left goes by the length of footage, which clips differ in; unknown until the first clip came through.
    """
    seen = _sum(tally.cameras.values())
    parts = [f"{seen.n_clips:,}/{total.n_clips:,} clips"]
    if seen.n_failed:
        parts.append(f"{seen.n_failed:,} failed")
    parts.append(_time(seconds))
    share = seen.footage_s / total.footage_s if total.footage_s else seen.n_clips / max(total.n_clips, 1)
    if 0 < share < 1:
        parts.append(f"left {_time(seconds * (1 - share) / share)}")
    if seconds > 0:
        parts += [f"{_rate(tally.n_frames / seconds)} frames/s", f"{_rate(seen.footage_s / seconds)}x real time"]
    while len(", ".join(parts)) > WIDTH:
        parts.pop()
    return ", ".join(parts)


def _names(tally: Tally) -> list[str]:
    return ["clips", "failed", "GOPs", "decoded", "moving", "looked", tally.sought, "tagged"]


def _counts(seen: Seen) -> list[str]:
    counts = (
        seen.n_clips, seen.n_failed, seen.n_gops, seen.n_decoded, seen.n_moving, seen.n_looked, seen.n_found, seen.n_tagged,
    )  # fmt: skip
    return [_short(count) for count in counts]


def _sum(parts: Iterable[Seen]) -> Seen:
    made = Seen()
    for part in parts:
        for field in fields(Seen):
            setattr(made, field.name, getattr(made, field.name) + getattr(part, field.name))
    return made


def _row(name: str, cells: Sequence[str]) -> str:
    cut = name if len(name) <= _NAME else f"{name[: _NAME // 2 - 1]}\u2026{name[-_NAME // 2 :]}"  # fleets share beginnings
    return f"{cut:{_NAME}}" + "".join(f"{cell:>8}" for cell in cells)


def _short(count: int) -> str:
    """Return a count in at most 7 characters."""
    if count < 1_000_000:
        return f"{count:,}"
    return f"{count / 1e6:,.1f}M" if count < 1e9 else f"{count / 1e9:,.1f}G"


def _rate(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
