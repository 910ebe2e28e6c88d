"""Cameras -> recorders -> spool -> uploader -> store, all of them real processes under a real agent, and killed.

The cameras are video files, played at their own speed or as fast as they can be. The verdict is always the same: what the
store holds are whole clips, each number of each sequence once or with a reason in the ledger, and every frame of the files.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from infra.records import Sidecar
from infra.sequence import LedgerPage, audit, delivered_in
from infra.store import DirStore
from infra.video import Writer
from ingest.agent_state import is_running, read_state
from ingest.spool import Spool

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
ROOT = Path(__file__).parents[2]
FPS = 10
CAMERAS = ("yard", "hall")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small films of twelve seconds."""
    folder = tmp_path_factory.mktemp("films")
    made = {}
    for seed, name in enumerate(CAMERAS):
        path = folder / f"{name}.mp4"
        rng = np.random.default_rng(seed)
        writer = Writer(path, 64, 48, Fraction(1, 90_000), gop_s=1.0)
        for number in range(12 * FPS):
            writer.add(rng.integers(0, 255, (48, 64, 3), np.uint8), number * 90_000 // FPS)
        writer.close()
        made[name] = path
    return made


def configure(tmp_path: Path, films: dict[str, Path], *, realtime: bool, pause_s: float = 0.5) -> None:
    """Write a camloop.toml with both films as cameras and a folder as store."""
    text = 'store = "store"\nhost_id = "barn"\n[agent]\nspool = "spool"\npublish_s = 1\nstop_s = 10\n'
    text += f"longest_pause_s = {pause_s}\n[spool]\nkeep_free_bytes = 0\nmax_share_of_disk = 1.0\n"
    for name, path in films.items():
        text += f'[[camera]]\nid = "{name}"\nurl = "{path}"\nsegment_s = 2\nrealtime = {str(realtime).lower()}\n'
    (tmp_path / "camloop.toml").write_text(text)


@contextmanager
def agent(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `camloop agent` in a folder; it is gone afterwards, whatever happens."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "infra.cli", "agent"]
    with (tmp_path / "agent.log").open("ab") as log:
        process = subprocess.Popen(argv, cwd=tmp_path, env=environment, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(done: Callable[[], bool], tmp_path: Path, limit_s: float = 60.0) -> None:
    """Wait for `done`."""
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, (tmp_path / "agent.log").read_text()[-3000:]
        time.sleep(0.1)


def children(pid: int) -> dict[str, int]:
    """Return the agent's children: pid by camera id, or `uploader`."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        except OSError:
            continue
        if "record" in words:
            found[words[words.index("--camera-table") + 1]] = int(child)
        elif "upload" in words:
            found["uploader"] = int(child)
    return found


def all_ended(spool: Path) -> bool:
    """Say whether all films were recorded to their end and nothing waits."""
    state = read_state(spool)
    if state is None or not is_running(spool) or state["spool_holds"] is None:
        return False
    return all(camera["state"] == "ended" for camera in state["cameras"]) and state["spool_holds"]["n_pending"] == 0


def verdict(tmp_path: Path) -> None:
    """Every frame once, whole, under a number; every number delivered or explained."""
    store = DirStore(tmp_path / "store")
    keys = [stat.key for stat in store.list("clips/")]
    frames: dict[str, list[int]] = {name: [] for name in CAMERAS}
    for key in keys:
        if key.endswith(".json"):
            sidecar = Sidecar.from_json(store.get(key))
            clip = store.get(f"{key.removesuffix('.json')}.{sidecar.container}")
            assert len(clip) == sidecar.n_bytes and sidecar.host_id == "barn"
            frames[sidecar.camera_id] += sidecar.sensor_ns
    assert {name: len(times) for name, times in frames.items()} == dict.fromkeys(CAMERAS, 12 * FPS)
    assert {name: len(set(times)) for name, times in frames.items()} == dict.fromkeys(CAMERAS, 12 * FPS)
    pages = [LedgerPage.from_json(store.get(stat.key)) for stat in store.list("ledger/")]
    found = audit(delivered_in(store), pages)
    assert found.n_missing == 0, found


def finish(tmp_path: Path) -> None:
    """Deliver what waits, ledger included, as the uploader would in its own time."""
    argv = [sys.executable, "-m", "infra.cli", "upload", "spool", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_films_become_clips_of_the_store(tmp_path: Path, films: dict[str, Path]) -> None:
    """Two cameras are recorded, delivered and told of; SIGTERM ends all of it with exit code 0."""
    configure(tmp_path, films, realtime=False)
    with agent(tmp_path) as process:
        until(lambda: all_ended(tmp_path / "spool"), tmp_path)
        state = read_state(tmp_path / "spool")
        assert state is not None
        assert {camera["id"]: camera["today"]["n_frames"] for camera in state["cameras"]} == dict.fromkeys(CAMERAS, 12 * FPS)
        uploader = children(process.pid)["uploader"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert not Path(f"/proc/{uploader}").exists()
    assert not is_running(tmp_path / "spool")
    finish(tmp_path)
    verdict(tmp_path)


@pytest.mark.slow
def test_everybody_is_killed(tmp_path: Path, films: dict[str, Path]) -> None:
    """kill -9 of recorders, uploader and agent at random times (3 kills each by default): 0 lost, 0 doubled, 0 torn."""
    rng, kills = random.Random(7), {"recorder": 0, "uploader": 0, "agent": 0}
    for number in range(COUNT):
        folder = tmp_path / str(number)
        folder.mkdir()
        configure(folder, films, realtime=True)
        for victim in rng.sample(["recorder", "uploader", "agent"] * 3, 9):
            with agent(folder) as process:
                time.sleep(rng.uniform(1.0, 3.0))
                found = children(process.pid)
                pid = (
                    process.pid if victim == "agent" else found.get("uploader" if victim == "uploader" else rng.choice(CAMERAS))
                )
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                    kills[victim] += 1
                time.sleep(rng.uniform(0.0, 1.0))
        configure(folder, films, realtime=False)
        with agent(folder) as process:
            until(lambda folder=folder: all_ended(folder / "spool"), folder)  # type: ignore[misc]
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
        finish(folder)
        verdict(folder)
        with Spool(folder / "spool") as spool:
            assert spool.counts().get("lost", 0) == 0
    print(f"kills: {kills}; 0 lost, 0 doubled, 0 torn")
