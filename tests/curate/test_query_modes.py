"""`camloop query` refuses what has no meaning together, and an expression layer counts detections from --min-score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curate import events, events_page, layers
from curate.query import open_catalog
from infra.catalog import Catalog, Done
from infra.cli import main
from tests.curate.test_events import clip_row, frames_of, gop, put, ticks


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--audit", "--coverage", "c.html"], "--audit and --coverage exclude each other"),
        (["--audit", "--intervals", "motion"], "--audit and --intervals exclude each other"),
        (["--audit", "--intervals", ""], "--audit and --intervals exclude each other"),
        (["--audit", "--list", "3", "--csv", "a.csv"], "--audit and --list, --csv exclude each other"),
        (["--coverage", "c.html", "--intervals", "motion"], "--coverage and --intervals exclude each other"),
        (["--coverage", "c.html", "--by", "day"], "--coverage and --by exclude each other"),
        (["--coverage", "c.html", "--csv", "a.csv"], "--coverage and --csv exclude each other"),
        (["--coverage", "c.html", "--list", "0"], "--coverage and --list exclude each other"),
        (["--coverage", "c.html", "--min-score", ".5"], "--coverage and --min-score exclude each other"),
        (["--intervals", ""], "layer ''; legal: motion, a class"),
        (["--list", "-5"], "--list -5: give 0 or more"),
        (["--intervals", "motion", "--list", "-5"], "--list -5: give 0 or more"),
        (["--intervals", "motion", "--min-score", ".5"], "motion has its own thresholds, --on and --off"),
        (["--intervals", "person", "--min-score", ".25"], "person has its own thresholds, --on and --off"),
        (["--intervals", "n_person > 0", "--min-score", "2"], "min_score 2 is outside [0, 1]"),
        (["--intervals", "motion", "--csv", "FOLDER"], "FOLDER: it cannot be written (Is a directory)"),
        (["--intervals", "motion", "--page", "FOLDER"], "FOLDER: it cannot be written (Is a directory)"),
        (["--intervals", "motion", "--page", f"FOLDER/{'x' * 300}"], "it cannot be written (File name too long)"),
        (["--intervals", "motion", "--csv", "FOLDER/none/e.csv"], "there is no folder"),
        (["--csv", "FOLDER"], "FOLDER: it cannot be written (Is a directory)"),
        (["--audit", "--moving=-3"], "moving -3; legal: above 0, at most 1"),
        (["--audit", "--moving", "nan"], "moving nan; legal: above 0, at most 1"),
    ],
)
def test_refused(
    catalog: Catalog, tmp_path: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Exit code 2, one line, and nothing was computed or written."""
    folder = tmp_path / "out"
    folder.mkdir()
    if "min_score 2" not in message:
        monkeypatch.setattr(events, "find", lambda *_: pytest.fail("computed"))
    assert main(["query", *(part.replace("FOLDER", str(folder)) for part in argv), "--store", catalog.store.url]) == 2
    err = capsys.readouterr().err
    assert message.replace("FOLDER", str(folder)) in err and len(err.splitlines()) == 1
    assert not list(folder.iterdir())


def test_what_may_be_written_is_not_touched(catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The probe keeps a file that is there, and leaves none when the question is refused afterwards."""
    kept = tmp_path / "kept.csv"
    kept.write_text("old")
    asked = ["query", "nothing_known > 0", "--store", catalog.store.url, "--intervals", "motion"]
    assert main([*asked, "--csv", str(kept)]) == main([*asked, "--csv", str(tmp_path / "new.csv")]) == 2
    assert "no column 'nothing_known'" in capsys.readouterr().err
    assert kept.read_text() == "old" and not (tmp_path / "new.csv").exists()


def found_people(catalog: Catalog, *persons: tuple[int, float]) -> dict[str, Any]:
    """Write a clip of 20 frames with kept frames at 0, 5, 10, 15, and these persons (pts, score)."""
    clip = clip_row("a", 20)
    put(catalog, [clip], [gop(clip, 0, 0, [0.0] * 20, 20)], frames=frames_of(clip, [9] * 4))
    box = {"clip_id": clip["clip_id"], "source": "d@1", "class_name": "person", "x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0}
    rows = [{**box, "det_id": str(i), "pts": pts, "score": score} for i, (pts, score) in enumerate(persons)]
    catalog.commit({"detections": rows}, [Done("clip", clip["clip_id"], "detect", "e" * 32, 4, len(rows))])
    return clip


def test_an_expression_counts_from_min_score(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    """From .25 persons are at 5 and 10, from .5 at 5 only; the events have other ids, and the page says which it is."""
    found_people(catalog, (5, 0.9), (10, 0.3))
    asked = ["query", "--intervals", "n_person > 0", "--least-s", "0", "--store", catalog.store.url, "--json"]
    documents = []
    for more in ([], ["--min-score", ".25"], ["--min-score", ".5"]):
        assert main([*asked, *more]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    plain, same, strict = ([(row["start_pts"], row["end_pts"], row["event_id"]) for row in d["intervals"]] for d in documents)
    assert plain == same and [row[:2] for row in plain] == [(5, 15)] and [row[:2] for row in strict] == [(5, 10)]
    assert plain[0][2] != strict[0][2] and documents[2]["parameters"]["min_score"] == 0.5
    view = open_catalog(catalog.store).events("n_person > 0", least_s=0).counting(0.5)
    assert view.layer is not None and view.count() == 1
    assert ticks(events.find(catalog, view.layer)) == [("a", 5, 10)]
    assert "detections count from 0.5" in events_page.describe(view.layer)
    assert "min_score" not in view.sample(1).extra["layer"] and view.sample(1).extra["min_score"] == 0.5
    assert "count from" not in events_page.describe(layers.layer("n_person > 0"))


def test_a_store_without_a_detector_says_so(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    """Scanned, but nobody looked for persons: that is said, not zero events alone; another class is refused with it."""
    clip = clip_row("a", 20)
    put(catalog, [clip], [gop(clip, 0, 0, [0.0] * 20, 20)], frames=frames_of(clip, [9] * 4))
    asked = ["query", "--store", catalog.store.url, "--intervals"]
    assert main([*asked, "person"]) == 0
    assert "no detector looked yet: camloop curate --weights FILE" in capsys.readouterr().out
    assert main([*asked, "dog"]) == 2
    assert "no detector looked yet: camloop curate --weights FILE" in capsys.readouterr().err
    assert main([*asked, "motion"]) == 0
    assert "no detector" not in capsys.readouterr().out
