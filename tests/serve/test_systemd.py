"""The systemd units: their commands exist with these arguments, and systemd understands them where it is installed."""

from __future__ import annotations

import argparse
import importlib
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from infra.cli import COMMANDS

UNITS = sorted((Path(__file__).parents[2] / "infra" / "deploy" / "systemd").iterdir())


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit.suffix == ".service"], ids=lambda unit: unit.name)
def test_a_unit_calls_camloop_with_arguments_that_exist(unit: Path) -> None:
    """ExecStart is parsed by the command's own parser; stopping and new privileges are as they must be."""
    lines = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line and not line.startswith("#"))
    words = shlex.split(lines["ExecStart"])
    assert words[0] == "/opt/camloop/bin/camloop" and lines["NoNewPrivileges"] == "yes" and lines["User"] == "camloop"
    (command,) = [command for command in COMMANDS if command.name == words[1]]
    module, _, attribute = command.target.partition(":")
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--quiet", action="store_true")
    getattr(importlib.import_module(module), attribute)(parser)
    parser.parse_args(words[2:])
    if words[1] == "run":
        assert (lines["Restart"], lines["KillSignal"], lines["SuccessExitStatus"]) == ("always", "SIGINT", "130")


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say but that the program is not installed here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/camloop/bin/camloop", "/bin/true"))
    found = [str(tmp_path / unit.name) for unit in UNITS]
    done = subprocess.run(["systemd-analyze", "verify", *found], capture_output=True, text=True, check=False, timeout=60)
    ours = [line for line in done.stderr.splitlines() if "camloop" in line]
    assert ours == [], done.stderr
