"""The marks of real clips: two passes as CSV, one of them equal to what the tests and benchmarks read."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent


def rows(number: int) -> list[dict[str, str]]:
    """Return the rows of a pass."""
    lines = (HERE / f"motion_marks_{number}.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def test_the_first_pass_as_csv_is_what_the_benchmarks_read() -> None:
    """Every `moves` and `quiet` of motion_truth.toml stands in motion_marks_1.csv, and nothing else does."""
    clips = tomllib.loads((HERE / "motion_truth.toml").read_text())["clip"]
    known = {
        (clip["path"], first, end, what)
        for clip in clips for what, key in (("moves", "moves"), ("nothing", "quiet")) for first, end in clip[key]
    }  # fmt: skip
    assert {(row["clip"], int(row["first_frame"]), int(row["end_frame"]), row["what"]) for row in rows(1)} == known
    assert len(rows(1)) == len(known) > 40


def test_both_passes_are_of_the_same_clips_and_every_interval_is_one() -> None:
    """17 clips in both; a second pass has no interval twice, none is empty but those that only name a clip."""
    assert {row["clip"] for row in rows(1)} == {row["clip"] for row in rows(2)} and len({row["clip"] for row in rows(2)}) == 17
    by_clip: dict[str, list[tuple[int, int]]] = {}
    for row in rows(2):
        first, end = int(row["first_frame"]), int(row["end_frame"])
        assert row["sure"] in ("sure", "unsure") and row["what"]
        assert first < end or ((first, end) == (0, 0) and row["what"].startswith("nothing"))
        by_clip.setdefault(row["clip"], []).append((first, end))
    assert all(end <= after for marks in by_clip.values() for (_, end), (after, _) in zip(marks, marks[1:], strict=False))
