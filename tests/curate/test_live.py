"""The live funnel: counts while a run works, 80 columns, in place on a terminal and a line now and then elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from curate import factors, live
from curate.collect import Flow, Seen, Tally
from curate.detect import read_weights
from curate.live import Total
from curate.plan import Options
from curate.run import curate
from infra import video
from infra.catalog import Catalog
from infra.cli import main
from infra.clock import FakeClock
from infra.console import BOARD_EVERY_S, BOARD_LINE_EVERY_S, PROGRESS_AFTER_S, Output
from infra.settings import Settings

AddClip = Callable[..., str]


def tally(**cameras: Seen) -> Tally:
    """Return a tally of two stages, with these cameras."""
    stages = {"decode": Flow(1800, 1800, 60, 60, 31.2), "detect": Flow(60, 60, 60, 17, 18.8)}
    return Tally(n_frames=60, cameras=cameras, stages=stages)


GATE = Seen(n_clips=2, footage_s=60.0, n_gops=30, n_decoded=30, n_moving=12, n_looked=40, n_found=17)
YARD = Seen(n_clips=1, n_failed=1, footage_s=30.0, n_gops=15, n_decoded=15, n_looked=20, n_tagged=1)


def test_the_example_of_the_module_is_what_it_prints() -> None:
    """Cameras are summed, the time left goes by footage: 90 of 360 s in 41 s, so 123 s are left."""
    made = live.lines(tally(gate=GATE, yard=YARD), Total(12, 360.0), 41.0, by_camera=True)
    assert made == [
        "3/12 clips, 1 failed, 0:00:41, left 0:02:03, 1.5 frames/s, 2.2x real time",
        "                 clips  failed    GOPs decoded  moving  looked  person  tagged",
        "all                  3       1      45      45      12      60      17       1",
        "gate                 2       0      30      30      12      40      17       0",
        "yard                 1       1      15      15       0      20       0       1",
        "stage           frames  passed  looked   found  s busy   share",
        "decode           1,800   1,800      60      60      31     62%",
        "detect              60      60      60      17      19     38%",
    ]
    one = live.line(tally(gate=GATE, yard=YARD), Total(12, 360.0), 41.0)
    assert one == made[0] + "; GOPs 45, decoded 45, moving 12, looked 60, person 17, tagged 1"


def test_nothing_yet_claims_nothing() -> None:
    """No rate from no time, no time left before a clip came through, and none when all did."""
    assert live.lines(Tally(), Total(3, 90.0), 0.0)[0] == "0/3 clips, 0:00:00"
    assert "left" not in live.headline(Tally(), Total(3, 90.0), 20.0)
    assert "left" not in live.headline(tally(gate=Seen(n_clips=3, footage_s=90.0)), Total(3, 90.0), 20.0)
    assert live.headline(Tally(), Total(0, 0.0), 5.0).startswith("0/0 clips, 0:00:05")


def test_a_fleet_fits_80_columns() -> None:
    """Thirty cameras with long names and counts of a year: twelve rows and the rest in one, nothing wider than 80."""
    many = {
        f"camera-at-the-very-far-end-{i:02}": Seen(10**6 + i, 10**5, 1e9, 10**9, 10**9, 10**8, 10**10, 10**7, 10**6)
        for i in range(30)
    }
    made = live.lines(tally(**many), Total(31_234_567, 4e10), 4.1e6, by_camera=True)
    assert max(map(len, made)) <= live.WIDTH and made[0].startswith(
        "30,000,435/31,234,567 clips, 3,000,000 failed, 1138:53:20, "
    )
    assert len(made) == 3 + live.CAMERAS + 1 + 3 and "18 others" in "\n".join(made)
    assert all(re.match(r"\S.{13} +\S+( +\S+)*$", line) for line in made[2:])


class TestBoard:
    """When it is written, and where."""

    @staticmethod
    def output(clock: FakeClock, *, terminal: bool, quiet: bool = False) -> tuple[Output, io.StringIO]:
        made, said = Output(quiet=quiet, clock=clock), io.StringIO()
        made.errors = Console(file=said, force_terminal=terminal, width=100, highlight=False)
        made.bars = terminal and not quiet
        return made, said

    def test_in_place_on_a_terminal(self) -> None:
        """Nothing for two seconds, then at most twice a second; controls in a camera's name do not reach the terminal."""
        clock, asked = FakeClock(), []
        out, said = self.output(clock, terminal=True)

        def lines() -> list[str]:
            asked.append(clock.mono_ns())
            return ["1/2 clips", "g\x1b[2Jate"]

        with out.board(lines, lambda: "line") as board:
            for _ in range(400):
                clock.sleep_s(0.01)
                board.touch()
        assert len(asked) == 1 + int((4.0 - PROGRESS_AFTER_S) / BOARD_EVERY_S)
        assert "1/2 clips" in said.getvalue() and "\x1b[2Jate" not in said.getvalue() and "line" not in said.getvalue()

    def test_a_line_now_and_then_elsewhere(self) -> None:
        """A hundred seconds of work in a pipe are three lines; with --quiet none."""
        for quiet, lines in ((False, ["3 clips"] * 3), (True, [])):
            clock = FakeClock()
            out, said = self.output(clock, terminal=False, quiet=quiet)
            with out.board(list, lambda: "3 clips") as board:
                for _ in range(1000):
                    clock.sleep_s(0.1)
                    board.touch()
            assert said.getvalue().splitlines() == lines, BOARD_LINE_EVERY_S


def moving(path: Path) -> bytes:
    """Return a clip of ten dark frames through which a lighter square goes."""
    with video.Writer(path, 64, 48, Fraction(1, 10)) as writer:
        for pts in range(10):
            rgb = np.full((48, 64, 3), 10, np.uint8)
            rgb[14:34, 5 * pts : 5 * pts + 20] = 90
            writer.add(rgb, pts)
    return path.read_bytes()


def test_a_run_counts_what_it_did(catalog: Catalog, add_clip: AddClip, tiny_detector: Path, tmp_path: Path) -> None:
    """A clip that flashes shows persons half of the time, one moves, a dark one does neither, a bad one fails."""
    add_clip(catalog, "moves", moving(tmp_path / "moving.mp4"), camera_id="gate")
    add_clip(catalog, "flash", ([20] * 5 + [220] * 5) * 3, camera_id="gate")
    add_clip(catalog, "dark", [5] * 30, camera_id="yard")
    add_clip(catalog, "bad", b"no video" * 90, camera_id="yard")
    sheet = factors.parse(factors.DEFAULT)
    wanted = Options(steps=("scan", "detect", "tag"), detector=read_weights(tiny_detector), sheet=sheet, every_s=0.5)
    kept, touched = Tally(), []
    result = curate(catalog, wanted, Settings(), tally=kept, advance=lambda n, note: touched.append(n))
    assert result.tally is kept and sum(touched) == 4
    gate, yard = kept.cameras["gate"], kept.cameras["yard"]
    assert (gate.n_clips, gate.n_failed, gate.n_looked, gate.n_tagged) == (2, 0, 8, 2)
    assert (yard.n_clips, yard.n_failed, yard.n_looked, yard.n_tagged) == (2, 1, 6, 1)
    gops = catalog.scan("gops").collect()
    assert gate.n_gops + yard.n_gops == gate.n_decoded + yard.n_decoded == gops.height
    assert gate.n_moving == gops.filter(gops["motion"].list.max() >= 0.02).height == 1 and yard.n_moving == 0 < yard.n_gops
    persons = catalog.scan("detections").collect().filter(class_name="person")
    assert gate.n_found == persons.filter(persons["score"] >= 0.25)["pts"].n_unique() == 3 and yard.n_found == 0
    again = curate(catalog, wanted, Settings())
    assert again.tally.cameras == {}


def test_a_detector_without_persons_counts_boxes(
    catalog: Catalog, add_clip: AddClip, tmp_path: Path, make_detector: Callable[..., Path]
) -> None:
    """Its column says so."""
    add_clip(catalog, "bright", [200] * 20)
    weights = read_weights(make_detector(tmp_path / "cows.onnx", names=("cow", "van")))
    sheet = factors.parse(factors.DEFAULT)
    result = curate(catalog, Options(steps=("scan", "detect"), detector=weights, sheet=sheet), Settings())
    assert result.tally.sought == "a box" and result.tally.cameras["cam1"].n_found == 2
    assert "a box" in live.lines(result.tally, Total(1, 2.0), 1.0)[1]


def test_the_command_ends_with_the_funnel(
    catalog: Catalog, add_clip: AddClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--by camera_id gives each camera a row; without it there is one for all."""
    add_clip(catalog, "a", [200] * 20, camera_id="gate")
    add_clip(catalog, "b", [100] * 20, camera_id="yard")
    asked = ["curate", "--local", "--only", "scan", "--store", str(tmp_path / "store")]
    assert main([*asked, "--by", "camera_id"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^2/2 clips, 0:00:\d\d, ", said, re.MULTILINE) and re.search(r"^gate +1 +0 +\d", said, re.MULTILINE)
    assert max(map(len, said.splitlines())) <= live.WIDTH
    assert main([*asked, "--every-s", "0.5"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^all +2 +0 +\d", said, re.MULTILINE) and "gate" not in said
    assert main([*asked, "--plan", "--by", "camera_id"]) == 2
    assert "--by camera_id is about the funnel of a run" in capsys.readouterr().err
