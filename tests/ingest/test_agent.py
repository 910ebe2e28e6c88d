"""The agent over fake recorders: states, health documents, its place, its end."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import keys
from infra.clock import SystemClock
from infra.errors import DeviceError
from infra.settings import ServiceSettings, Settings, load_settings
from ingest import agent as agent_module
from ingest import host
from ingest.agent import Agent, health_document
from ingest.agent_state import is_running, only_agent, read_state
from ingest.config import agent_config, camera_configs
from ingest.tally import Counts, DayTally
from ingest.uplink import LEAST_SEGMENT_BYTES, Uplink, max_segment_bytes, read_uplink, write_uplink
from ingest.watchdog import Beat

ROOT = Path(__file__).parents[2]
FAKE = (sys.executable, str(Path(__file__).with_name("fake_camloop.py")))
TOML = """
host_id = "barn"
[agent]
spool = "{folder}/spool"
stall_s = 1
start_s = 5
longest_pause_s = 0.2
publish_s = 1
health_s = 10
stop_s = 1
[[camera]]
id = "fine-1"
url = "rtsp://me:hunter2@host/1"
[[camera]]
id = "{mode}-2"
url = "v4l2:///dev/video0"
"""


def settings_of(tmp_path: Path, mode: str) -> Settings:
    """Return the settings of a host with a good camera and one of this mode."""
    (tmp_path / "camloop.toml").write_text(TOML.format(folder=tmp_path, mode=mode))
    return load_settings(tmp_path / "camloop.toml", {})


def make(tmp_path: Path, mode: str, out: io.StringIO | None = None, notify: str | None = None) -> Agent:
    """Return an agent over fake recorders."""
    settings = settings_of(tmp_path, mode)
    service = ServiceSettings(notify_socket=notify, watchdog_s=1.0, runtime_folder=tmp_path / "run")
    cameras = camera_configs(settings)
    made = Agent(
        agent_config(settings), cameras, settings, service, SystemClock(), version="0", command=FAKE, out=out or io.StringIO()
    )
    for child in made._supervisor.children:
        child.environment = {**(child.environment or {}), "PYTHONPATH": str(ROOT)}
    return made


def run_until(agent: Agent, spool: Path, done: Callable[[dict[str, Any]], bool], limit_s: float = 12.0) -> dict[str, Any]:
    """Run the agent in this thread until what it published is `done`; return that."""
    found: list[dict[str, Any]] = []

    def look() -> None:
        end = time.monotonic() + limit_s
        while time.monotonic() < end and not found:
            state = read_state(spool)
            if state is not None and done(state):
                found.append(state)
            time.sleep(0.05)
        agent._supervisor.stop()

    looker = threading.Thread(target=look)
    looker.start()
    agent.run()
    looker.join()
    assert found, read_state(spool)
    return found[0]


def starts(spool: Path, name: str) -> int:
    """Return how often a fake child was started."""
    path = spool / f"{name}.starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_an_uploader_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An uploader that gives no sign of life is killed and started again, and the cameras are not touched."""
    monkeypatch.setattr(agent_module, "UPLOADER_STALL_S", 1.0)
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "uploader.hangs").touch()
    again = lambda state: starts(spool, "uploader") >= 2 and state["cameras"][0]["fps"]  # noqa: E731
    state = run_until(make(tmp_path, "fine"), spool, again)
    assert "no sign of life for 1 s" in (state["uploader"]["last_error"] or "")
    assert [camera["n_restarts"] for camera in state["cameras"]] == [0, 0]


def test_a_broken_camera_beside_a_good_one(tmp_path: Path) -> None:
    """The good one is never disturbed; the state, the errors and the health documents tell of the broken one."""
    spool = tmp_path / "spool"
    address = str(tmp_path / "systemd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(1)
        out = io.StringIO()
        agent = make(tmp_path, "exits_", out, address)
        broken = lambda state: state["cameras"][1]["n_restarts"] >= 3 and state["cameras"][0]["fps"]  # noqa: E731
        state = run_until(agent, spool, broken)
        said = systemd.recv(1000).decode(), systemd.recv(1000).decode()
    good, bad = state["cameras"]
    assert (good["state"], good["n_restarts"], starts(spool, "fine-1")) == ("running", 0, 1)
    assert good["url"] == "rtsp://***@host/1" and good["today"]["n_frames"] > 5 and 10 < good["fps"] < 60
    assert bad["last_error"] == "no such camera /dev/video7; there are: /dev/video0"
    ((error,),) = ([each for each in state["errors"] if each["name"] == bad["id"]],)
    assert error["n_times"] >= 3 and starts(spool, "uploader") == 1 and starts(spool, bad["id"]) >= 3
    assert out.getvalue().count("no such camera") == 1  # the same line again is counted, not written
    assert "hunter2" not in out.getvalue() + json.dumps(read_state(spool)) + (spool / "agent.json").read_text()
    assert said[0] == "READY=1" and said[1].startswith("WATCHDOG=1\nSTATUS=")
    (document,) = (json.loads(path.read_text()) for path in sorted((spool / "health" / host.boot_id()).glob("*.json")))
    assert keys.health_key("barn", document["boot_id"], document["n"]) and set(document["cameras"]) == {"fine-1", "exits_-2"}
    assert document["disk_free_bytes"] > 0 and document["clock"]["quality"] in ("ntp", "unknown")
    assert read_state(spool)["state"] == "stopped" and not is_running(spool)  # type: ignore[index]


def test_a_second_agent_is_refused(tmp_path: Path) -> None:
    """One agent a spool; the message names the other; a place given up can be taken."""
    with only_agent(tmp_path / "spool"):
        assert is_running(tmp_path / "spool")
        with pytest.raises(DeviceError, match=f"another agent runs on it .process {os.getpid()}."):
            make(tmp_path, "fine").run()
    assert not is_running(tmp_path / "spool") and not is_running(tmp_path / "never")
    with only_agent(tmp_path / "spool"):
        assert is_running(tmp_path / "spool")


def test_todays_counts_outlive_the_agent(tmp_path: Path) -> None:
    """What an agent counted today is where the next one begins; a new day begins at nothing."""
    spool = tmp_path / "spool"
    counted = run_until(make(tmp_path, "fine"), spool, lambda state: all(c["today"]["n_frames"] > 10 for c in state["cameras"]))
    day = counted["day"]
    again = DayTally.read(spool, ["fine-1", "new"], day)
    assert again.today["fine-1"].n_frames >= counted["cameras"][0]["today"]["n_frames"] and again.today["new"] == Counts()
    assert DayTally.read(spool, ["fine-1"], "1970-01-01").today["fine-1"] == Counts()
    again.turn_to("1970-01-01")
    assert again.today["fine-1"] == Counts()


def test_counts_over_restarts() -> None:
    """A recorder counts from zero; the tally goes on."""
    tally = DayTally(day="d", today={"a": Counts()}, total={"a": Counts()})
    for n_frames, n_dropped in [(10, 1), (10, 1), (30, 2), (5, 0), (7, 3)]:  # started again after the third
        beat = Beat(frame_number=n_frames, sensor_ns=0, n_frames=n_frames, n_dropped=n_dropped, n_skipped=0, n_clips=1)
        tally.take("a", beat)
        tally.take("a", None)
    assert (tally.total["a"].n_frames, tally.total["a"].n_dropped, tally.total["a"].n_clips) == (37, 5, 2)


def test_what_the_spool_gave_up_today(tmp_path: Path) -> None:
    """An alarm of yesterday is none today: the first look of a day is where its counts begin."""
    tally = DayTally.read(tmp_path, ["a"], "monday")
    assert tally.spool_today({"n_evicted": 7}) == {"n_evicted": 0}
    assert tally.spool_today({"n_evicted": 9}) == {"n_evicted": 2}
    tally.turn_to("tuesday")
    assert tally.spool_today({"n_evicted": 9}) == {"n_evicted": 0} and tally.spool_today({"n_evicted": 1}) == {"n_evicted": 0}


def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State and health documents that cannot be written stop nothing and are told once."""

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    agent = make(tmp_path, "fine")
    monkeypatch.setattr(agent_module.durable, "write", full)
    agent._tick()
    agent._due = dict.fromkeys(agent._due, 0)
    agent._tick()
    assert [(error["name"], error["n_times"]) for error in agent._errors.values()] == [
        ("live state", 1), ("agent.json", 1), ("health", 1),
    ]  # fmt: skip


def test_health_documents_are_bounded(tmp_path: Path) -> None:
    """An outage of months leaves a bounded number of health documents, the newest."""
    folder = tmp_path / "health" / "boot"
    folder.mkdir(parents=True)
    for number in range(30):
        path = folder / f"{number:08d}.json"
        path.write_text("{}")
        os.utime(path, (number, number))
    agent_module._forget_oldest(tmp_path / "health", 10)
    assert [path.name for path in sorted(folder.glob("*.json"))] == [f"{number:08d}.json" for number in range(20, 30)]


def test_health_before_anything_is_known() -> None:
    """A spool and a disk that do not answer are null, not zero."""
    state = {
        "spool_holds": None, "disk": None, "host_id": "h", "boot_id": "b", "at_ns": 5, "at_mono_ns": 6, "version": "0",
        "cameras": [], "temperature_c": None, "power": None, "clock": {"quality": "unknown", "offset_s": None}, "uptime_s": 1.0,
    }  # fmt: skip
    document = health_document(state, 7)
    assert document["spool"] == {"pending": None, "bytes": None, "evicted": None, "oldest_s": None}
    assert document["disk_free_bytes"] is None and document["n"] == 7


def test_recorders_hold_no_key_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decodes a stranger's stream has no credentials in its environment; the uploader has."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/s")
    *recorders, uploader = make(tmp_path, "fine")._supervisor.children
    assert all("canary" not in (recorder.environment or {}).values() for recorder in recorders)
    assert uploader.environment is not None and uploader.environment["AWS_SECRET_ACCESS_KEY"] == "canary"
    assert [child.niceness for child in (*recorders, uploader)] == [0, 0, 10]
    assert all("NOTIFY_SOCKET" not in (child.environment or {}) for child in (*recorders, uploader))


def test_uplink(tmp_path: Path) -> None:
    """What the uploader measured bounds the clips on a slow link, and only there."""
    assert read_uplink(tmp_path) is None and max_segment_bytes(None) is None
    write_uplink(tmp_path, Uplink(bytes_per_s=50_000.0, reason="x"))
    assert max_segment_bytes(read_uplink(tmp_path)) == 3_000_000
    assert max_segment_bytes(Uplink(bytes_per_s=100.0)) == LEAST_SEGMENT_BYTES
    assert max_segment_bytes(Uplink(bytes_per_s=5e6)) is None
    (tmp_path / "uplink.json").write_text('{"bytes')
    assert read_uplink(tmp_path) is None


def test_a_state_of_an_earlier_agent_is_not_live(tmp_path: Path) -> None:
    """A live file of another run, or a torn one, is not believed."""
    from ingest.agent_state import publish

    kept = {"live": str(tmp_path / "live"), "spool": "s", "boot_id": "b", "started_mono_ns": 5, "at_mono_ns": 6}
    publish(tmp_path / "agent.json", kept)
    for live, at in [({"started_mono_ns": 4, "at_mono_ns": 9}, 6), ({"at_mono_ns": 9}, 9), ({"at_mono_ns": 2}, 6)]:
        publish(tmp_path / "live", kept | live)
        assert read_state(tmp_path)["at_mono_ns"] == at  # type: ignore[index]
    (tmp_path / "live").write_text("{")
    assert read_state(tmp_path)["at_mono_ns"] == 6  # type: ignore[index]
    assert read_state(tmp_path / "never") is None


def camloop(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a camloop command in a folder."""
    argv = [sys.executable, "-m", "infra.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("toml", "arguments", "message"),
    [
        ("", ("agent",), "camloop agent: camloop.toml (there is none here): no camera; add [[camera]] with id"),
        ("", ("agent", "status"), "camloop agent: no agent ever ran on camloop-spool; `camloop agent` starts one"),
        ("[agent]\nspol = 1\n", ("agent", "status"), "camloop.toml line 2: [agent]: unknown key 'spol'; did you mean spool"),
        ("", ("agent", "status", "--code", "x"), "camloop agent status takes no URL and no --code"),
        ("", ("agent", "dance"), "invalid choice: 'dance'"),
    ],
)  # fmt: skip
def test_wrong_use(tmp_path: Path, toml: str, arguments: tuple[str, ...], message: str) -> None:
    """Each is one line and exit code 2."""
    if toml:
        (tmp_path / "camloop.toml").write_text(toml)
    found = camloop(tmp_path, *arguments)
    assert found.returncode == 2 and message in found.stderr and found.stderr.count("\n") == 1
