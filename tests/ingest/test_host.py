"""What the agent reads of its host, and what it tells systemd."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from infra.clock import FakeClock
from infra.settings import load_settings, service_settings
from ingest import host
from ingest.notify import Notify


def test_temperature(tmp_path: Path) -> None:
    """The hottest believable zone counts; a zone that cannot be read does not."""
    assert host.temperature_c(tmp_path) is None
    for number, text in enumerate(("41000", "53500", "nonsense", "999000")):
        (tmp_path / f"thermal_zone{number}").mkdir()
        (tmp_path / f"thermal_zone{number}" / "temp").write_text(text)
    assert host.temperature_c(tmp_path) == 53.5


@pytest.mark.parametrize(
    ("text", "words"),
    [("0", None), ("50005", "under-voltage now"), ("10000", "under-voltage since boot"), ("x", None)],
)
def test_power(tmp_path: Path, text: str, words: str | None) -> None:
    """The Pi firmware's bits in words."""
    path = tmp_path / "get_throttled"
    assert host.power_trouble(path) is None
    path.write_text(text)
    assert host.power_trouble(path) == words


def test_disk_and_clock(tmp_path: Path) -> None:
    """A folder's disk is read; one that is not there is None; the clock has a quality whatever the machine."""
    found = host.disk_state(tmp_path)
    assert found is not None and 0 < found.free_bytes <= found.total_bytes and not found.is_read_only
    assert host.disk_state(tmp_path / "gone") is None
    assert host.clock_state(tmp_path).quality == "ntp"  # timesyncd's file is there
    assert host.clock_state(tmp_path / "gone").quality in ("ntp", "unknown")
    assert len(host.boot_id()) == 32 and host.boot_id(tmp_path / "gone") == "unknown"


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_hears(tmp_path: Path, kind: str) -> None:
    """READY, WATCHDOG three times in the time allowed, STATUS when it changes, on the socket that systemd named."""
    address = str(tmp_path / "notify") if kind == "path" else f"\0camloop-test-{tmp_path.name}"
    clock = FakeClock()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(1)
        notify = Notify(address.replace("\0", "@"), 30.0, clock)
        notify.send("READY=1")
        for _ in range(60):
            clock.advance_s(0.5)
            notify.alive("2 of 2 cameras recording")
        notify.alive("1 of 2 cameras recording")
        said = []
        systemd.setblocking(False)
        while True:
            try:
                said.append(systemd.recv(1000).decode())
            except BlockingIOError:
                break
    assert said[0] == "READY=1" and said[1] == "WATCHDOG=1\nSTATUS=2 of 2 cameras recording"
    assert said[2:] == ["WATCHDOG=1", "WATCHDOG=1", "STATUS=1 of 2 cameras recording"]


def test_nobody_listens(tmp_path: Path) -> None:
    """Without systemd, or with one that is gone, nothing happens."""
    Notify(None, 10.0, FakeClock()).alive("x")
    Notify(str(tmp_path / "gone"), 10.0, FakeClock()).send("READY=1")


def test_what_systemd_says(tmp_path: Path) -> None:
    """Its variables are read in one place; without them the live state lies in memory all the same."""
    said = {"NOTIFY_SOCKET": "/run/s", "WATCHDOG_USEC": "30000000", "RUNTIME_DIRECTORY": "/run/camloop:/run/x"}
    found = service_settings(said)
    assert (found.notify_socket, found.watchdog_s, str(found.runtime_folder)) == ("/run/s", 30.0, "/run/camloop")
    assert service_settings({}).notify_socket is None and str(service_settings({}).runtime_folder) == "/dev/shm"
    assert load_settings(None, {"CAMLOOP_HOST_ID": "a"}).host_id == "a"
