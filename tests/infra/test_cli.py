"""The command line's own words: exit codes, near names, one line for a full disk."""

from __future__ import annotations

import argparse
import errno
import json
from pathlib import Path

import pytest

from infra import cli
from infra.console import Output


def test_an_unknown_command_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and the near name is offered."""
    assert cli.main(["quary"]) == 2
    assert "did you mean query?" in capsys.readouterr().err


def test_a_wrong_argument_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line that names the argument and where to read on."""
    assert cli.main(["upload", "--tries", "many"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--tries" in said and "--help" in said


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An operating system's error that nobody translated still ends in one line and exit code 1."""

    def command(parser: argparse.ArgumentParser) -> None:
        def run(arguments: argparse.Namespace, context: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device", "/data/frames.npy")

        parser.set_defaults(run=run)

    row = cli.Command(name="fill", target="tests:command", summary="", example="camloop fill")
    monkeypatch.setattr(cli, "COMMANDS", (row,))
    monkeypatch.setattr(cli, "_resolve", lambda found: command)
    assert cli.main(["fill"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left" in said and "/data/frames.npy" in said


def test_a_document_is_json_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    """NaN and infinities, which JSON has no words for, are null at any depth; everything else stays as it is."""
    numbers = [float("nan"), float("inf"), -float("inf"), 0.1, 10**20, True]
    Output(as_json=True).document({"deep": [{"numbers": tuple(numbers)}], "text": "NaN größer", "path": Path("a"), 7: None})
    read = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert read == {
        "deep": [{"numbers": [None, None, None, 0.1, 10**20, True]}], "text": "NaN größer", "path": "a", "7": None,
    }  # fmt: skip


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`camloop` alone lists the table."""
    assert cli.main([]) == 0
    said = capsys.readouterr().out
    assert all(f"  {command.name} " in said for command in cli.COMMANDS)
