"""`camloop record` and `camloop upload`, as their command functions."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest

from infra.console import Context, Output
from infra.errors import UsageError
from infra.settings import Settings
from infra.store import DirStore
from ingest import cli_record, cli_upload


def call(command: object, *argv: str, store: Path | None = None, as_json: bool = True) -> tuple[int, str]:
    """Run a command's function and return its exit code and what it printed."""
    parser = argparse.ArgumentParser()
    assert callable(command)
    command(parser)
    arguments = parser.parse_args(argv)
    printed = io.StringIO()
    out = Output(as_json=as_json, quiet=True, stdout=printed)
    context = Context(settings=Settings(), out=out, store_url=None if store is None else str(store))
    return int(arguments.run(arguments, context)), printed.getvalue()


def test_record_then_upload(tmp_path: Path) -> None:
    """A simulated camera's recording arrives in a folder store; both commands say what they did, and again is a no-op."""
    spool = str(tmp_path / "spool")
    film = ("sim://7/harbour1-hall?seconds=3", "--spool", spool, "--segment-s", "2", "--label", "Door")
    code, text = call(cli_record.record, *film)
    recorded = json.loads(text)
    assert code == 0
    assert recorded["pending"] == 2
    assert recorded["recorded"][0]["n_frames"] == 30
    code, text = call(cli_upload.upload, spool, store=tmp_path / "store")
    sent = json.loads(text)
    assert code == 0
    assert (sent["n_clips"], sent["spool"]) == (2, {"done": 2})
    names = [stat.key for stat in DirStore(tmp_path / "store").list("clips/harbour1-hall/")]
    assert len(names) == 4
    call(cli_record.record, *film)
    assert json.loads(call(cli_upload.upload, spool, store=tmp_path / "store")[1])["n_clips"] == 0
    assert [stat.key for stat in DirStore(tmp_path / "store").list("clips/")] == names


def test_words_for_people(tmp_path: Path) -> None:
    """Without --json a table and the next command are printed."""
    spool = str(tmp_path / "spool")
    _, text = call(cli_record.record, "sim://7/harbour1-hall", "--frames", "5", "--spool", spool, as_json=False)
    assert "harbour1-hall" in text and f"camloop upload {spool}" in text
    _, text = call(cli_upload.upload, spool, store=tmp_path / "store", as_json=False)
    assert "1 clips (" in text and "delivered to" in text


def test_rotten_clip_is_exit_1(tmp_path: Path) -> None:
    """A clip that had to be put aside makes the upload's exit code 1 and is counted."""
    spool = tmp_path / "spool"
    call(cli_record.record, "sim://7/harbour1-hall", "--frames", "5", "--spool", str(spool))
    (clip,) = (spool / "clips").glob("*.mp4")
    clip.write_bytes(b"\0" * clip.stat().st_size)
    code, text = call(cli_upload.upload, str(spool), store=tmp_path / "store")
    assert code == 1 and json.loads(text)["n_quarantined"] == 1


@pytest.mark.parametrize(
    ("command", "argv", "message"),
    [
        (cli_upload.upload, ["nowhere"], "nowhere: no such folder"),
        (cli_upload.upload, ["nowhere", "--tries", "0"], "--tries 0; legal: 1 or more"),
        (cli_record.record, ["gone.mp4"], "no such file"),
        (cli_record.record, ["sim://7/harbour1-hall", "--frames", "0"], "--frames 0; legal: 1 or more"),
        (cli_record.record, ["sim://7/harbour1-hall", "--camera", "x"], "leave --camera 'x' out"),
    ],
)
def test_wrong_use(command: object, argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong use is refused before anything is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        call(command, *argv)
    assert list(tmp_path.iterdir()) == []
