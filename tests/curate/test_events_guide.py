"""The guide of events: its commands run as written, in order, in one empty folder, in this process."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import re
import shlex
from pathlib import Path

import pytest

from curate import cli_intervals
from infra.cli import main
from infra.demo import card

GUIDE = Path(__file__).resolve().parents[2] / "infra" / "docs" / "guides" / "events.md"
BLOCKS = re.findall(r"^```(console|python)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_guide_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command exits with 0; the first question's CSV and page are there; the Python block sees the same store."""
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for kind, block in BLOCKS:
            if kind == "python":
                exec(compile(block, str(GUIDE), "exec"), {})
                continue
            for argv in (shlex.split(line[2:]) for line in block.splitlines() if line.startswith("$ ")):
                if argv[:3] == ["python", "-m", "infra.demo.card"]:
                    card.fill(Path(argv[3]), int(argv[5]), seed=3)
                else:
                    assert argv[0] == "camloop"
                    assert main(argv[1:]) == 0, argv
    rows = list(csv.DictReader(io.StringIO(Path("events.csv").read_text())))
    assert len(rows) >= 2 and all(float(row["start_s"]) < float(row["end_s"]) for row in rows)
    assert Path("events.html").read_text().count("data:image/jpeg") == len({row["event_id"] for row in rows})
    assert "events of motion" in said.getvalue() and "Selection" in said.getvalue()


def test_every_option_is_in_the_guide() -> None:
    """What --help lists of events, the guide explains; what the guide names, the command knows."""
    parser = argparse.ArgumentParser()
    cli_intervals.add_arguments(parser)
    known = set(re.findall(r"^  (--[a-z-]+)", parser.format_help(), re.MULTILINE))
    text = GUIDE.read_text(encoding="utf-8")
    assert sorted(name for name in known if f"`{name}" not in text and f" {name} " not in text) == []
    assert sorted(set(re.findall(r"`(--[a-z-]+)", text)) - known - {"--json", "--csv", "--by"}) == []
