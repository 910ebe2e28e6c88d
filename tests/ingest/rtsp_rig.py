"""Starts and stops GStreamer's RTSP server for tests; skips, with the reason, where it is not installed."""

from __future__ import annotations

import functools
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SYSTEM_PYTHON = "/usr/bin/python3"
SERVER = Path(__file__).with_name("rtsp_server.py")
PACKAGES = Path(__file__).resolve().parent.parent / "apt-packages.txt"


@functools.cache
def is_there() -> bool:
    """Say whether the system's Python has GStreamer's RTSP server."""
    look = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        return subprocess.run([SYSTEM_PYTHON, "-c", look], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class Rtsp:
    """A running server; `url` is its stream's address."""

    def __init__(self, process: subprocess.Popen[str], secret: str) -> None:
        assert process.stdout is not None
        self.process = process
        self.port = int(process.stdout.readline().split()[1])
        self.url = f"rtsp://{secret}127.0.0.1:{self.port}/cam"

    def order(self, text: str) -> None:
        """Say something to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def freeze(self) -> None:
        """Stop it as a hung camera stops: connections stay, nothing moves."""
        self.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End it as a pulled plug does."""
        self.process.kill()
        self.process.wait()


@contextmanager
def serving(*arguments: str, secret: str = "") -> Iterator[Rtsp]:
    """Run a server with these arguments."""
    if not is_there():
        packages = " ".join(PACKAGES.read_text().split())
        pytest.skip(f"GStreamer's RTSP server is absent: apt-get install --no-install-recommends {packages}")
    command = [SYSTEM_PYTHON, str(SERVER), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Rtsp(process, secret)
        finally:
            process.kill()
