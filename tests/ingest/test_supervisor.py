"""Recorder processes that hang, die and talk nonsense, under the supervisor; real processes, short times."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.clock import SystemClock
from ingest import supervisor as supervisor_module
from ingest.supervisor import HEARTBEAT, Child, Supervisor
from ingest.watchdog import Watch

ROOT = Path(__file__).parents[2]
COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
FAKE = Path(__file__).with_name("fake_recorder.py")


def fake(tmp_path: Path, name: str, mode: str, **more: int | bool) -> Child:
    """Return a child that goes wrong as `mode` says."""
    watch = Watch(clock=SystemClock(), stall_s=0.7, start_s=3.0, longest_pause_s=0.2, rng=random.Random(1))
    argv = [sys.executable, str(FAKE), HEARTBEAT, str(tmp_path / name), mode]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return Child(name=name, argv=argv, watch=watch, environment=environment, **more)  # type: ignore[arg-type]


def starts(tmp_path: Path, name: str) -> list[tuple[int, float]]:
    """Return (pid, monotonic seconds) of each start of a fake recorder."""
    path = tmp_path / name
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(line.split()[0]), float(line.split()[1])) for line in lines]


def is_alive(pid: int) -> bool:
    """Say whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def turn_until(supervisor: Supervisor, done: Callable[[], bool], limit_s: float = 15.0) -> None:
    """Turn the loop until `done`."""
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, [(child.name, child.watch) for child in supervisor.children]
        supervisor.turn(0.05)


@pytest.fixture
def supervised() -> Iterator[Callable[..., Supervisor]]:
    """Make supervisors whose children are gone after the test."""
    made: list[Supervisor] = []

    def make(*children: Child, out: io.StringIO | None = None) -> Supervisor:
        made.append(Supervisor(children, SystemClock(), out=out or io.StringIO()))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor._end_children(0.0)


@pytest.mark.parametrize("mode", ["stall", "dies", "garbage", "group", "exits"])
def test_a_camera_that_goes_wrong_records_again(tmp_path: Path, supervised: Callable[..., Supervisor], mode: str) -> None:
    """Whatever its fault, the recorder is killed and started again, and its neighbour is never touched."""
    broken, fine = fake(tmp_path, "broken", mode), fake(tmp_path, "fine", "fine")
    turn_until(supervised(broken, fine), lambda: broken.watch.n_restarts == 1 and broken.watch.state == "running")
    assert len(starts(tmp_path, "broken")) == 2 and len(starts(tmp_path, "fine")) == 1
    assert not is_alive(starts(tmp_path, "broken")[0][0]) and fine.watch.state == "running"
    assert broken.watch.last_error is not None
    if mode == "exits":
        assert broken.watch.last_error == "no such camera /dev/video7; there are: /dev/video0"


def test_the_whole_group_is_killed(tmp_path: Path, supervised: Callable[..., Supervisor]) -> None:
    """What a stalled recorder started itself goes with it."""
    broken = fake(tmp_path, "broken", "group")
    supervisor = supervised(broken)
    turn_until(supervisor, lambda: broken.watch.state == "running")
    parent = starts(tmp_path, "broken")[0][0]
    (grandchild,) = map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    turn_until(supervisor, lambda: broken.watch.n_restarts == 1)
    assert not is_alive(grandchild)


def test_a_camera_that_never_gives_a_frame(tmp_path: Path, supervised: Callable[..., Supervisor]) -> None:
    """No first frame within the time for a start is a stall too."""
    late = fake(tmp_path, "late", "late!")
    late.watch.start_s = 1.0
    turn_until(supervised(late), lambda: late.watch.n_stalls == 1)
    assert late.watch.last_error == "no frame for 1 s; killed and started again"


def test_a_slow_card_is_no_stalled_camera(
    tmp_path: Path, supervised: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder that the kernel holds is left alone, and killed when it does not go on once it is free."""
    held = True
    monkeypatch.setattr(supervisor_module, "is_in_disk_wait", lambda pid: held)
    monkeypatch.setattr(supervisor_module, "AFTER_DISK_WAIT_NS", 300_000_000)
    child = fake(tmp_path, "slow", "stall")
    supervisor = supervised(child)
    turn_until(supervisor, lambda: child.watch.is_stalled())
    for _ in range(10):
        supervisor.turn(0.02)
    assert child.watch.n_stalls == 0 and len(starts(tmp_path, "slow")) == 1
    held = False
    turn_until(supervisor, lambda: child.watch.n_stalls == 1)


def test_a_file_ends_and_stays_so(tmp_path: Path, supervised: Callable[..., Supervisor]) -> None:
    """The end of a file is its end; the end of a stream is a fault, and the stream is opened again."""
    file, stream = fake(tmp_path, "file", "ends", ends=True), fake(tmp_path, "stream", "ends")
    turn_until(supervised(file, stream), lambda: file.watch.state == "ended" and stream.watch.n_restarts == 1)
    assert stream.watch.last_error == "the stream ended" and file.watch.n_restarts == 0


def test_what_children_say_is_bounded_and_masked(tmp_path: Path, supervised: Callable[..., Supervisor]) -> None:
    """A child that writes without end fills no card, and no password gets through."""
    out = io.StringIO()
    loud = fake(tmp_path, "loud", "loud", lines_per_minute=3)
    turn_until(supervised(loud, out=out), lambda: loud.n_lines_hidden > 20)
    lines = out.getvalue().splitlines()
    assert 3 <= len(lines) <= 6 and "secret" not in out.getvalue() and lines[0] == "loud: line a of rtsp://***@host/1"
    assert len(set(lines)) == len(lines) and "loud: same line" in lines


def test_the_end_is_exact(tmp_path: Path, supervised: Callable[..., Supervisor]) -> None:
    """SIGTERM to all; who does not end in time is killed; nobody is left and nobody comes back."""
    fine, deaf = fake(tmp_path, "fine", "fine"), fake(tmp_path, "deaf", "deaf!")
    supervisor = supervised(fine, deaf)
    turn_until(supervisor, lambda: fine.watch.state == deaf.watch.state == "running")
    before = time.monotonic()
    supervisor._end_children(0.4)
    assert time.monotonic() - before < 1.5
    assert fine.process is None and deaf.process is None
    assert [fine.watch.state, deaf.watch.state] == ["stopped", "stopped"]
    assert not any(is_alive(pid) for name in ("fine", "deaf") for pid, _ in starts(tmp_path, name))


def test_children_die_with_the_supervisor(tmp_path: Path) -> None:
    """kill -9 of the supervisor leaves no recorder behind that would hold the camera."""
    code = (
        "import sys; from pathlib import Path; from infra.clock import SystemClock\n"
        "from ingest.supervisor import *; from ingest.watchdog import Watch\n"
        f"argv = [sys.executable, {str(FAKE)!r}, HEARTBEAT, {str(tmp_path / 'a')!r}, 'deaf!']\n"
        "Supervisor([Child(name='a', argv=argv, watch=Watch(clock=SystemClock()))], SystemClock()).run()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        end = time.monotonic() + 10
        while not starts(tmp_path, "a"):
            assert time.monotonic() < end
            time.sleep(0.05)
        child = starts(tmp_path, "a")[0][0]
        process.kill()
        process.wait()
        while is_alive(child):
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.kill()


def test_the_watching_process_is_light() -> None:
    """The supervisor loads neither numpy nor av nor boto3."""
    code = "import sys, ingest.agent, ingest.supervisor, infra.cli; print(sorted({'numpy', 'av', 'boto3'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert found.stdout.decode().strip() == "[]", found.stderr


@pytest.mark.slow
def test_row_16(tmp_path: Path, supervised: Callable[..., Supervisor]) -> None:
    """With the agent's own times: found within 10 s, recording again within 30 s, each time (goal 100 of 100)."""
    n_cameras, modes = min(100, 5 * COUNT), ["stall", "deaf", "garbage", "dies", "late"]
    children = [fake(tmp_path, f"camera-{number}", modes[number % len(modes)]) for number in range(n_cameras)]
    for child in children:
        child.watch.stall_s, child.watch.start_s, child.watch.longest_pause_s = 8.0, 25.0, 16.0
    supervisor = supervised(*children)
    last_frame: dict[str, float] = {}
    found_s: dict[str, float] = {}
    again_s: dict[str, float] = {}
    end = time.monotonic() + 60 + n_cameras
    while len(again_s) < n_cameras:
        supervisor.turn(0.2)
        now = time.monotonic()
        assert now < end, again_s
        for child in children:
            if not starts(tmp_path, child.name):
                continue
            if child.name not in found_s:
                came_ns = child.watch.last_frame_ns
                last_frame[child.name] = starts(tmp_path, child.name)[0][1] if came_ns is None else came_ns / 1e9
                if child.watch.n_restarts:
                    found_s[child.name] = now - last_frame[child.name]
            elif child.watch.state == "running" and child.name not in again_s:
                again_s[child.name] = now - last_frame[child.name]
    late = {child.name for number, child in enumerate(children) if number % len(modes) == 4}
    found = max(seconds for name, seconds in found_s.items() if name not in late)
    print(f"{n_cameras} faults: found after {found:.1f} s, recording again after {max(again_s.values()):.1f} s at most")
    assert found <= 10 and max(again_s.values()) <= 30
