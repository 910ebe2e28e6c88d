"""`camloop record` as people and agents call it: names and seconds, formats, tables, an exact end, and bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.cli import main
from infra.images import read_roll
from infra.video import decode
from ingest.source import open_source
from ingest.spool import Spool, SpooledClip
from ingest.watchdog import read_beats
from tests.ingest.extractors import write_extractor

SIM = "sim://7/harbour1-yard?seconds=3"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


def record(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    """Run the command; return its document, or its error line."""
    capsys.readouterr()
    assert main(["record", *argv, "--json"]) == code
    said = capsys.readouterr()
    return json.loads(said.out) if said.out else said.err.strip()


def clips() -> list[SpooledClip]:
    """Return what waits in the spool."""
    with Spool(Path("camloop-spool")) as spool:
        return spool.pending()


class TestNames:
    def test_name_class_seconds(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`record day1/light 2`: two seconds of class light of recording day1."""
        said = record(capsys, "day1/light", "2", "--source", SIM, "--countdown", "0")
        assert said["recorded"][0]["n_frames"] == 20
        assert said["recorded"][0]["fps"] == pytest.approx(10) and said["recorded"][0]["mb_per_hour"] > 1
        (clip,) = clips()
        assert (clip.sidecar.label, clip.sidecar.source_group, clip.sidecar.container) == ("light", "day1", "mp4")

    def test_until_it_ends(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`record day1 -1` goes on until the camera ends or Ctrl-C."""
        assert record(capsys, "day1", "-1", "--source", SIM, "--countdown", "0")["recorded"][0]["n_frames"] == 30
        (clip,) = clips()
        assert (clip.sidecar.label, clip.sidecar.source_group) == (None, "day1")

    def test_countdown(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Three seconds are counted down before a named recording, none before a file."""
        from infra.clock import SystemClock

        slept: list[float] = []
        monkeypatch.setattr(SystemClock, "sleep_s", lambda self, seconds: slept.append(seconds))
        record(capsys, "day1", "1", "--source", SIM)
        assert slept == [1, 1, 1]
        record(capsys, SIM)
        assert len(slept) == 3


class TestFormats:
    @pytest.mark.parametrize("kind", ["png", "jpeg", "raw", "features"])
    def test_each(self, kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """Each format at 64x48 and 5 frames a second, filmed into memory first."""
        more = ("--extractor", str(write_extractor(tmp_path / "e.onnx"))) if kind == "features" else ()
        said = record(
            capsys, "day1/Door", "2", "--source", SIM, "--countdown", "0", "--as", kind, "--size", "64x48", "--fps", "5",
            "--buffer", "ram", "--buffer-bytes", "1000000", *more,
        )  # fmt: skip
        assert (said["recorded"][0]["n_frames"], said["recorded"][0]["n_dropped"]) == (10, 0)
        (clip,) = clips()
        shapes = {part.rgb.shape[1:] for part in decode(clip.path)}
        assert shapes == ({(96, 128, 3)} if kind == "features" else {(48, 64, 3)}) or (kind == "features" and len(shapes) == 1)
        assert read_roll(clip.path).kind == {"png": "images", "jpeg": "images"}.get(kind, kind)

    def test_full_memory(self, capsys: pytest.CaptureFixture[str]) -> None:
        """At the cap filming ends with one line; what was filmed is written."""
        capsys.readouterr()
        assert main(["record", SIM, "--as", "raw", "--buffer", "ram", "--buffer-bytes", "1000000", "--json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["recorded"][0]["n_frames"] == 6
        assert "memory buffer full: 6 frames" in said.err

    def test_two_extractors(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """A recording that was begun with one extractor refuses another, before anything is filmed."""
        for name, seed in (("a", 1), ("b", 2)):
            write_extractor(tmp_path / f"{name}.onnx", seed=seed)
        film = ("1", "--source", SIM, "--countdown", "0", "--as", "features", "--extractor")
        record(capsys, "day1", *film, "a.onnx")
        record(capsys, "day2", *film, "b.onnx")
        assert "recording 'day1' was begun with extractor a@" in record(capsys, "day1", *film, "b.onnx", code=2)
        assert len(clips()) == 2


class TestTables:
    def test_camera_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A [[camera]] is filmed under its id, with its format and site; frames beat over the pipe."""
        Path("camloop.toml").write_text(
            f'[[camera]]\nid = "yard"\nurl = "{SIM}"\nsite = "farm"\nformat = "png"\nsize = [64, 48]\nsegment_s = 2\n'
        )
        reader, writer = os.pipe()
        said = record(capsys, "--camera-table", "yard", "--heartbeat-fd", str(writer))
        os.close(writer)
        beats, _ = read_beats(os.read(reader, 10_000))
        os.close(reader)
        assert beats[0].frame_number == 0
        assert (said["recorded"][0]["camera_id"], said["recorded"][0]["n_clips"]) == ("yard", 2)
        assert {(clip.sidecar.camera_id, clip.sidecar.site) for clip in clips()} == {("yard", "farm")}

    def test_trigger_and_privacy(self, capsys: pytest.CaptureFixture[str]) -> None:
        """With a trigger only events are kept; with privacy the masked part of every stored picture is hidden."""
        Path("camloop.toml").write_text(
            '[[camera]]\nid = "yard"\nurl = "sim://7/harbour1-yard?seconds=8"\nformat = "png"\n'
            'trigger = {kind = "motion", pre_roll_s = 0.5, post_roll_s = 0.5}\n'
            'privacy = {masks = [[0.0, 0.0, 0.5, 1.0]], style = "fill"}\n'
        )
        record(capsys, "--camera-table", "yard")
        for clip in clips():
            assert clip.sidecar.trigger == "motion" and clip.sidecar.event["peak"] > 0
            for part in decode(clip.path):
                assert (part.rgb[:, 8:-8, 8:100] == part.rgb[:1, 8:9, 8:9]).all()
                assert part.rgb[:, :, 140:].std() > 5
        n_kept = sum(len(clip.sidecar.sensor_ns) for clip in clips())
        assert 0 < n_kept < sum(1 for _ in open_source("sim://7/harbour1-yard?seconds=8"))

    def test_an_address_hides_what_its_camera_hides(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Without --camera-table the privacy of the device's own table holds as well; two that differ are refused."""
        table = '[[camera]]\nid = "{}"\nurl = "{}&counter=1"\nprivacy = {{masks = [[0.0, 0.0, {}, 1.0]], style = "fill"}}\n'
        Path("camloop.toml").write_text(table.format("a", SIM, 1.0))
        record(capsys, "day1", "1", "--source", SIM, "--countdown", "0")
        assert [int(part.rgb.max()) < 16 for clip in clips() for part in decode(clip.path)] == [True]
        Path("camloop.toml").write_text(table.format("a", SIM, 1.0) + table.format("b", SIM, 0.5))
        assert "hide different things; say --camera-table ID" in record(capsys, SIM, code=2)


def started(*argv: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own, playing a long recording at its own speed."""
    Path("camloop.toml").write_text(
        '[[camera]]\nid = "yard"\nurl = "sim://7/harbour1-yard?seconds=600"\nformat = "png"\nsize = [64, 48]\n'
        "segment_s = 1\nrealtime = true\n"
    )
    return subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "record", "--camera-table", "yard", "--json", *argv], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def wait_for(pattern: str) -> None:
    """Wait until a file is there."""
    for _ in range(400):
        if any(Path("camloop-spool").glob(pattern)):
            return
        time.sleep(0.025)
    pytest.fail(f"no {pattern}")


def expected() -> dict[int, Any]:
    """Return the pictures of the first seconds of that recording by sensor time."""
    from ingest.take import limited, resized

    filmed = limited(open_source("sim://7/harbour1-yard?seconds=600"), n_frames=80)
    return {frame.sensor_ns: frame.rgb for frame in resized(filmed, (64, 48))}  # type: ignore[arg-type]


def check_clips() -> int:
    """Assert that every picture in the spool is the one that was filmed then, once; return how many there are."""
    pictures, seen = expected(), 0
    times: set[int] = set()
    for clip in clips():
        rows = [rgb for part in decode(clip.path) for rgb in part.rgb.copy()]
        assert len(rows) == len(clip.sidecar.sensor_ns)
        for at_ns, rgb in zip(clip.sidecar.sensor_ns, rows, strict=True):
            if at_ns in pictures:
                assert (rgb == pictures[at_ns]).all()
            seen += 1
            times.add(at_ns)
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_exactly(number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end with the frame under way: exit 0, everything filmed is in the spool, nothing unfinished."""
    process = started()
    wait_for("recording/.tmp-yard-*.tar")
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert json.loads(out)["recorded"][0]["n_frames"] == check_clips() > 0
    assert not list(Path("camloop-spool/recording").glob(".tmp-*"))


@pytest.mark.slow
def test_killed_in_a_loop(capsys: pytest.CaptureFixture[str]) -> None:
    """kill -9 at random moments: no partial picture is ever served, every clip holds what was filmed."""
    chosen = random.Random(4)
    for _ in range(int(os.environ.get("CAMLOOP_TEST_COUNT", "5"))):
        process = started()
        wait_for("recording/.tmp-yard-*.tar")
        time.sleep(chosen.uniform(0.0, 1.5))
        process.kill()
        process.communicate()
        check_clips()
    process = started("--frames", "3")
    process.communicate(timeout=30)
    assert check_clips() > 0
    assert not list(Path("camloop-spool/recording").glob(".tmp-*"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to film: give video files or addresses, NAME SECONDS, or --camera-table ID"),
        (["day1", "0", "--source", SIM], "0 seconds; legal: more than 0, or -1 for until Ctrl-C"),
        (["day1", "-2", "--source", SIM], "-2 seconds; legal"),
        (["a/b/c", "5", "--source", SIM], "class 'b/c' cannot stand in an object key"),
        (["../day1", "5", "--source", SIM], "recording '..' cannot stand in an object key"),
        (["x" * 2000, "5", "--source", SIM], "recording 'xxxx"),
        (["day1/" + "y" * 2000, "5", "--source", SIM], "class 'yyyy"),
        (["dag één", "5", "--source", SIM], "recording 'dag één' cannot stand"),
        (["day1/", "5", "--source", SIM], "class '' cannot stand"),
        ([SIM, "--label", "z" * 2000], "class 'zzzz"),
        (["x" * 2000], "no file name"),
        (["day1", "5"], "no Pi camera ("),
        (["day1", "5", "--source", "http://x/y"], "is not understood; legal: a video file"),
        ([SIM, "--source", SIM], "--source URL goes with NAME SECONDS"),
        ([SIM, "--as", "gif"], "--as gif; legal: h264, png, jpeg, raw, features"),
        ([SIM, "--size", "128"], "--size 128; legal: WIDTHxHEIGHT"),
        ([SIM, "--size", "129x128"], "size 129x128; legal for h264: even sides"),
        ([SIM, "--size", "8x8", "--as", "png"], "--size 8x8; legal"),
        ([SIM, "--fps", "0"], "is not a rate; legal"),
        ([SIM, "--every-s", "0"], "is not a rate; legal"),
        ([SIM, "--fps", "5", "--every-s", "1"], "both say the rate"),
        ([SIM, "--as", "features"], "features need an extractor"),
        ([SIM, "--as", "png", "--extractor", "e.onnx"], "goes with the format features only"),
        ([SIM, "--as", "features", "--extractor", "gone.onnx"], "extractor 'gone.onnx': no such file"),
        ([SIM, "--training-mode"], "--training-mode locks a Pi camera's exposure"),
        ([SIM, "--buffer-bytes", "5"], "--buffer-bytes is the cap of --buffer ram; say both"),
        ([SIM, "--buffer", "ram", "--buffer-bytes", "0"], "--buffer-bytes 0; legal: 1 to the free memory"),
        ([SIM, "--countdown", "-1"], "--countdown -1; legal: 0 to 60"),
        (["--camera-table", "yard"], "no camera; add [[camera]]"),
        ([SIM, "--camera-table", "yard"], "leave SOURCE and --source out"),
    ],
)
def test_bad_input(argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that cannot be is refused in one line, and nothing is written."""
    said = record(capsys, *argv, code=2)
    assert message in said and "\n" not in said and len(said) < 400
    assert not Path("camloop-spool").exists()


def test_passwords_stay_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    """A password in an address is in no message."""
    for url in ("rtsp://anna:geheim1@nowhere.invalid/x", "foo://anna:geheim1@nowhere.invalid/x"):
        capsys.readouterr()
        assert main(["record", "day1", "5", "--source", url, "--countdown", "0"]) != 0
        said = capsys.readouterr()
        assert "geheim1" not in said.out + said.err
        assert main(["record", url, "--training-mode"]) == 2
        assert "geheim1" not in capsys.readouterr().err


def test_read_only_spool(capsys: pytest.CaptureFixture[str]) -> None:
    """A spool that cannot be written is one line."""
    Path("camloop-spool").write_text("a file")
    assert "\n" not in record(capsys, SIM, code=1)
