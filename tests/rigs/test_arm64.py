"""A Pi's software world under qemu: our wheel installs beside Debian's camera packages, records, uploads, pulls and runs.

Takes minutes; times say nothing about a Pi. python3-simplejpeg is in Raspberry Pi OS, not in Debian: its place is taken by
the same module from the package index, compiled for numpy 1 as the Pi's is, and by a package of Debian's own (python3-pywt).
onnxruntime complains about a missing /sys on standard error: that is the rig's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from infra import keys, video
from tests.rigs.conftest import Arm
from tests.test_light_install import tiny_bundle

pytestmark = pytest.mark.slow

VENV = "/opt/camloop"
PYTHON = f"{VENV}/bin/python"
SIMPLEJPEG = "simplejpeg==1.6.6"
DIST_PACKAGES = "/usr/lib/python3/dist-packages"
SYSTEM = "import numpy, pywt, simplejpeg; print(numpy.__version__, numpy.__file__, pywt.__file__, simplejpeg.__file__)"


@pytest.fixture(scope="module")
def host(arm64: Arm, arm64_root: Path, wheel: Path) -> Arm:
    """Return the arm64 system with its own numpy and simplejpeg, and our light install in an environment that sees them."""
    arm64("apt-get", "update", "-qq")
    arm64("apt-get", "install", "-y", "-qq", "--no-install-recommends", "python3-numpy", "python3-pywt")
    arm64("python3", "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", DIST_PACKAGES, SIMPLEJPEG)
    shutil.rmtree(arm64_root / VENV.lstrip("/"), ignore_errors=True)
    arm64("python3", "-m", "venv", "--system-site-packages", VENV)
    shutil.copy(wheel, arm64_root / "tmp")
    began = time.monotonic()
    install = [PYTHON, "-m", "pip", "install", "--quiet", "--only-binary=:all:", f"/tmp/{wheel.name}"]
    done = arm64(*install, timeout_s=1200, check=False)
    if done.returncode != 0 and ("No matching distribution" in done.stderr or "Connection" in done.stderr):
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    site = arm64_root / VENV.lstrip("/") / "lib"
    size_bytes = sum(path.stat().st_size for path in site.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"\npip install camloop on aarch64: {time.monotonic() - began:.0f} s, {size_bytes >> 20} MiB")
    return arm64


def work_folder(arm64_root: Path) -> Path:
    """Return an empty /work of the arm64 system, with six seconds of video in it."""
    work = arm64_root / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    with video.Writer(work / "door.mp4", 320, 240, Fraction(1, 1000)) as writer:
        for number in range(60):
            writer.add(np.full((240, 320, 3), 20 if number < 30 else 160, np.uint8), number * 100)
    return work


def test_debian_s_camera_packages_still_import(host: Arm) -> None:
    """numpy is Debian's, in the system and in the environment, and what was compiled for it works in both."""
    inside, outside = (host(python, "-c", SYSTEM).stdout.split() for python in (PYTHON, "/usr/bin/python3"))
    assert inside == outside and all(path.startswith(DIST_PACKAGES) for path in inside[1:])
    assert host(PYTHON, "-c", "import platform; print(platform.machine())").stdout == "aarch64\n"
    assert host(f"{VENV}/bin/pip", "check", check=False).stdout.strip() == "No broken requirements found."


def test_it_records_uploads_pulls_and_runs_a_model(host: Arm, arm64_root: Path) -> None:
    """The same commands as on any camera host; the model's answers are those of this machine."""
    work = work_folder(arm64_root)
    bundle = tiny_bundle()
    bundle.write(work / "store" / keys.bundle_prefix(bundle.bundle_id))
    release = ["release", bundle.bundle_id, "--force", "no gate in this test", "--keys", "keys", "--store", "store"]
    run = ["run", "door.mp4", "--from", "store", "--json", "--home"]
    for argv in (release, [*run, "home-here"]):  # the people's side, and what the model says on this machine
        done = subprocess.run(
            [sys.executable, "-m", "infra.cli", *argv], cwd=work, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
    here = json.loads(done.stdout)
    camloop = f"{VENV}/bin/camloop"
    steps = (
        ["--version"],
        ["record", "door.mp4", "--spool", "spool"],
        ["upload", "spool", "--store", "store"],
        [*run, "home"],
    )
    for argv in steps:
        began = time.monotonic()
        done = host(camloop, *argv, cwd="/work")
        print(f"camloop {argv[0]} on aarch64: {time.monotonic() - began:.1f} s")
    there = json.loads(done.stdout)
    assert there["n_predictions"] == here["n_predictions"] == 60
    assert [line["label"] for line in there["lines"]] == [line["label"] for line in here["lines"]]
    (clip,) = (work / "store" / "clips").rglob("*.mp4")
    assert sum(len(frames) for frames in video.decode(clip)) == 60


AGENT = """
store = "store"
host_id = "pi"

[agent]
spool = "spool"
start_s = 300  # qemu is 10 to 20 times slower than a machine
stall_s = 300
stop_s = 120

[[camera]]
id = "door"
url = "door.mp4"
realtime = true
segment_s = 3
"""


def test_the_agent_records_and_uploads(host: Arm, rigs: Path, arm64_root: Path) -> None:
    """Agent, recorder and uploader as aarch64 processes: all clips in the store, health too, a clean end on SIGTERM."""
    work = work_folder(arm64_root)
    (work / "camloop.toml").write_text(AGENT)
    script = f"cd /work && {VENV}/bin/camloop agent 2>agent.log & echo $! >/work/agent.pid; wait $!; echo $? >/work/agent.rc"
    enter = subprocess.Popen([str(rigs / "arm64" / "enter"), str(arm64_root), "/bin/sh", "-c", script])
    began, n_clips = time.monotonic(), 0
    try:
        while n_clips < 2 and time.monotonic() - began < 600 and enter.poll() is None:
            time.sleep(1)
            n_clips = len(list((work / "store" / "clips").rglob("*.mp4"))) if (work / "store").exists() else 0
        print(f"\nagent on aarch64: {n_clips} clips in the store after {time.monotonic() - began:.0f} s")
    finally:
        os.kill(int((work / "agent.pid").read_text()), signal.SIGTERM)
        enter.wait(timeout=300)
    events = (work / "agent.log").read_text()
    assert (work / "agent.rc").read_text().strip() == "0" and '"agent_stopped"' in events, events[-3000:]
    clips = list((work / "store" / "clips").rglob("*.mp4"))
    assert sum(len(frames) for clip in clips for frames in video.decode(clip)) == 60
    assert list((work / "store" / "health" / "pi").rglob("*.json"))
    page = host(f"{VENV}/bin/camloop", "agent", "status", cwd="/work", check=False).stdout
    assert "AGENT NOT RUNNING" in page and "camera door" in page and "2 clips delivered" in page


def test_a_missing_picamera2_is_one_line(host: Arm) -> None:
    """Debian 12 has no python3-picamera2: the command says what to install."""
    done = host(f"{VENV}/bin/camloop", "preview", "picam://0", cwd="/work", check=False)
    assert done.returncode == 2 and "apt install python3-picamera2" in done.stderr.splitlines()[-1]
