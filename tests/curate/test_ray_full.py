"""A curation job by Ray whose object store is the smallest there is, with a spill disk that is large, small, full or refuses.

The frames at 640 px are five times what the object store holds. The job ends with the rows of the loop, or stops with one
line and goes on later from what it committed; it never hangs, and no row is lost or there twice.
Needs root, to mount the small disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from infra.video import Writer
from tests.faults.test_kill_jobs import ROOT, content, run_here

CLIPS, FRAMES, SIDE_PX = 6, 60, 640
PATIENCE_S = 300.0
POOLS = ("--workers", "decode=1", "detect=1")  # of their own: only then do pictures go through the object store
TABLES = ("clips", "frames", "gops", "detections", "tags", "done", "failures")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root and mount"),
]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return what mounts a disk of so many bytes in memory; it is gone after the test."""
    folder = tmp_path / "small"
    folder.mkdir()

    def make(n_bytes: int) -> Path:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def start(tmp_path: Path, make_detector: Callable[..., Path]) -> tuple[Path, list[str]]:
    """Return a folder with a store that nobody curated, and what curates it; beside it `reference`, curated by a plain loop."""
    made = tmp_path / "start"
    for number in range(CLIPS):
        (tmp_path / "card" / f"cam{number % 2}").mkdir(parents=True, exist_ok=True)
        with Writer(tmp_path / "card" / f"cam{number % 2}" / f"c{number}.mp4", 64, 48, Fraction(1, 10)) as writer:
            for pts in range(FRAMES):
                writer.add(np.full((48, 64, 3), (10 * number + 2 * pts) % 250, np.uint8), pts)
    made.mkdir()
    run_here("ingest", str(tmp_path / "card"), store=made)
    shutil.copytree(made, tmp_path / "reference")
    detector = make_detector(tmp_path / "tiny.onnx", size_px=SIDE_PX)
    asked = ["--without", "embed", "--weights", str(detector), "--every-s", "0.1"]
    run_here("curate", "--local", *asked, store=tmp_path / "reference")
    return made, asked


def by_ray(here: Path, spill: Path, taken_bytes: int, asked: list[str]) -> tuple[int, str]:
    """Run the command; return its exit code and what it said. It must end by itself."""
    program = "from tests.curate.full_curate import main; main()"
    argv = [sys.executable, "-c", program, str(spill), str(taken_bytes), *asked, *POOLS]
    argv += ["--store", str(here / "store"), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_raylet_start_wait_time_s": "240"}
    with (here / "said.txt").open("w+b") as out:
        job = subprocess.Popen(argv, env=environment, cwd=here, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = job.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            pytest.fail(f"hangs: {(here / 'said.txt').read_text(errors='replace')[-2000:]}")
    return code, (here / "said.txt").read_text(errors="replace")


@pytest.mark.parametrize(
    ("spill_bytes", "taken_bytes"),
    [(2_000_000_000, 0), (20_000_000, 0), (20_000_000, 50_000_000), (4096, 0), (4096, 50_000_000)],
    ids=["small store", "small spill", "small spill, store taken", "no spill", "no spill, store taken"],
)
def test_a_full_object_store(
    spill_bytes: int, taken_bytes: int, start: tuple[Path, list[str]], small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    """The rows of the loop; or one line, a store in which nothing is half done, and the rows of the loop once there is room."""
    here, asked = start
    spill = small_disk(spill_bytes)
    code, said = by_ray(here, spill, taken_bytes, asked)
    reference = content(tmp_path / "reference" / "store")
    print(f"spill {spill_bytes}, taken {taken_bytes}: exit {code}; {said[-600:]}")
    if code != 0:
        assert "Traceback" not in said and "the same command goes on" in said, said[-3000:]
        half = content(here / "store")
        assert all(set(half.get(table, ())) <= set(reference[table]) for table in TABLES if table in reference)
        code, said = by_ray(here, tmp_path, 0, asked)
    assert code == 0, said[-3000:]
    found = content(here / "store")
    for table in TABLES:
        assert found.get(table) == reference.get(table), table
        assert len(set(found.get(table, ()))) == len(found.get(table, ()))
