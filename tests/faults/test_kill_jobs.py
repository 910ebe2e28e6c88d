"""Any job killed at any moment and run again ends where an unkilled one does; Ctrl-C says so in one line.

Each job is the command as a person types it, in a process group of its own. It gets SIGKILL at a random moment between its
first sign of life (a line, or a change in the store or spool) and the time that the unkilled run took, several times in a
row; then the same command runs to its end. Live rows and objects must equal those of a run that nobody disturbed.
`CAMLOOP_TEST_COUNT` (1) multiplies the kills. Power cuts are in test_power_cut.py, single crash points in test_commit.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.catalog import open_catalog
from infra.cli import main
from infra.demo.card import fill
from infra.keys import sha256_hex
from infra.store import DirStore
from infra.tables import SCHEMAS
from train import checkpoint

ROOT = Path(__file__).parents[2]
COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
PATIENCE_S = 240.0  # a shared machine is slow
ORPHANS_S = 20.0  # within which our own children must be gone
RAY_ORPHANS_S = 150.0  # Ray's workers notice after about a minute that their raylet is gone, when it died as they started
VOLATILE = {"batch_id", "created_ns", "done_ns"}  # which differ between two undisturbed runs as well
_RAYS = re.compile("ray::|/site-packages/ray/")  # in the command line of Ray's own processes
NOT_COMPARED = {"runs"}  # the log of who ran what: a killed run is in it


@dataclasses.dataclass(frozen=True)
class Job:
    """A command and the folder it starts from; `{here}` is the copy of that folder it works on."""

    name: str
    start: str
    argv: tuple[str, ...]

    def command(self, here: Path) -> list[str]:
        words = [word.format(here=here) for word in self.argv]
        return [sys.executable, "-m", "infra.cli", *words, "--store", str(here / "store"), "--quiet"]


INGEST = Job("ingest", "nothing", ("ingest", "{here}/card"))
CURATE = Job("curate", "ingested", ("curate", "--local", "--without", "detect", "embed"))
CURATE_RAY = Job("curate-ray", "ingested", ("curate", "--without", "detect", "embed"))
TRAIN = Job("train", "labelled", ("train", "few", "--recipe", "quick"))
UPLOAD = Job("upload", "recorded", ("upload", "{here}/spool"))
JOBS = (INGEST, CURATE, TRAIN, UPLOAD)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `nothing`, `recorded`, `ingested`, `labelled`: a card, a spool and a store at three stages."""
    made = tmp_path_factory.mktemp("starts")
    nothing, recorded = made / "nothing", made / "recorded"
    fill(nothing / "card", 6, seed=5)
    shutil.copytree(nothing, recorded)
    for number in range(3):
        source = f"sim://5/harbour1-hall?seconds=6&recording={number}"
        run_here("record", source, "--spool", str(recorded / "spool"), "--segment-s", "2", store=recorded)
    shutil.copytree(nothing, made / "ingested")
    run_here("ingest", str(nothing / "card"), store=made / "ingested")
    shutil.copytree(made / "ingested", made / "labelled")
    labelled = made / "labelled"
    run_here("curate", "--local", "--without", "detect", "embed", store=labelled)
    run_here("label", "import", str(nothing / "card" / "labels.csv"), "--annotator", "anna", store=labelled)
    run_here("sample", "few", "all", "--split", "train=.6,val=.2,test=.2", "--split-by", "recording_id", store=labelled)
    run_here("dataset", "few", "--selection", "few", store=labelled)
    return made


def run_here(*argv: str, store: Path) -> None:
    """Run a command in this process."""
    assert main([*argv, "--store", str(store / "store"), "--quiet"]) == 0


class Running:
    """A started command: when it first showed life, and how it ends."""

    def __init__(self, job: Job, here: Path) -> None:
        self._here, self._said = here, here.with_suffix(".said.txt")
        self._before = changes(here)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self._said.open("wb") as out:
            self.process = subprocess.Popen(
                job.command(here), cwd=here, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_for_life(self) -> None:
        """Wait until the command prints a line or changes something, or ends."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and not self.said and changes(self._here) == self._before:
            assert time.monotonic() < deadline, f"no sign of life from {self.process.args!r}"
            time.sleep(0.01)

    @property
    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def end(self) -> int:
        """Wait until it ends by itself and return its exit code."""
        return self.process.wait(PATIENCE_S)

    def send(self, number: signal.Signals) -> bool:
        """Signal the whole group, as a terminal does; return whether it was still running. Nothing may outlive it for long."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
        alive = self.process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        self.end()
        if alive:
            _, left = psutil.wait_procs(children, timeout=ORPHANS_S)
            assert [told for process in left if (told := _told(process)) and not _RAYS.search(told)] == []
            _, left = psutil.wait_procs(left, timeout=RAY_ORPHANS_S)
            assert [_told(process) for process in left] == []
        return alive


def _told(process: psutil.Process) -> str:
    try:
        seconds = time.time() - process.create_time()
        return f"{' '.join(process.cmdline())[:200]} ({process.status()}, child of {process.ppid()}, {seconds:.0f} s old)"
    except psutil.NoSuchProcess:
        return ""


def changes(here: Path) -> int:
    """Return the number of files below a folder: it grows with the first thing that a job leaves."""
    return sum(len(names) for _, _, names in os.walk(here))


def content(store: Path) -> dict[str, Any]:
    """Return what a store holds, without what differs between two undisturbed runs: live rows by table, objects by key."""
    found: dict[str, Any] = {}
    if (store / "tables").is_dir():
        catalog = open_catalog(DirStore(store), create=False)
        for table in sorted(set(SCHEMAS) - NOT_COMPARED):
            rows = catalog.scan(table).collect()
            kept = [name for name in rows.columns if name not in VOLATILE]
            found[table] = sorted(map(repr, rows.select(kept).iter_rows()))
    for stat in DirStore(store).list():
        if not stat.key.startswith(("tables/", "runs/", "selftest-")) and stat.key != "camloop.json":
            found[stat.key] = sha256_hex((store / stat.key).read_bytes())
    return found


def trained(store: Path) -> list[tuple[str, Any, Any]]:
    """Return each run's id, weights and history without seconds."""
    found = []
    for folder in sorted((store / "runs").iterdir()):
        last = checkpoint.load(DirStore(store), folder.name)
        assert last is not None and last.finished
        weights = {name: tensor.numpy().tobytes() for name, tensor in last.best.items()}
        history = [{name: value for name, value in row.items() if name != "seconds"} for row in last.history]
        found.append((folder.name, weights, history))
    return found


@pytest.fixture(scope="module")
def undisturbed(starts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Job], tuple[Path, float]]:
    """Return what runs a job once without disturbance: its folder, and seconds from its first sign of life to its end."""
    done: dict[str, tuple[Path, float]] = {}

    def reference(job: Job) -> tuple[Path, float]:
        if job.name not in done:
            here = tmp_path_factory.mktemp("undisturbed") / "here"
            shutil.copytree(starts / job.start, here)
            running = Running(job, here)
            running.wait_for_life()
            start = time.monotonic()
            assert running.end() == 0, running.said
            done[job.name] = here, time.monotonic() - start
        return done[job.name]

    return reference


def check_same(job: Job, here: Path, reference: Path) -> None:
    """Assert that two folders hold the same, and that nothing is there twice."""
    found = content(here / "store")
    assert found == content(reference / "store")
    for table in ("clips", "frames", "gops", "tags"):
        assert len(set(found.get(table, ()))) == len(found.get(table, ()))
    if job is TRAIN:
        assert trained(here / "store") == trained(reference / "store")
    if job is UPLOAD:
        assert list((here / "spool" / "clips").iterdir()) == []
        assert len([key for key in found if key.endswith(".mp4")]) == 9


def kill_and_go_on(job: Job, here: Path, reference: Path, delays_s: Sequence[float]) -> int:
    """Kill a job after each delay, run it to its end, compare; return how many kills hit it at work."""
    n_hit = 0
    for delay_s in delays_s:
        running = Running(job, here)
        running.wait_for_life()
        time.sleep(delay_s)
        n_hit += running.send(signal.SIGKILL)
    running = Running(job, here)
    assert running.end() == 0, running.said
    check_same(job, here, reference)
    return n_hit


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_killed_jobs_end_where_others_do(
    job: Job, starts: Path, undisturbed: Callable[[Job], tuple[Path, float]], tmp_path: Path
) -> None:
    """SIGKILL at random moments, the same command again: the same rows, objects and weights, nothing twice."""
    reference, seconds = undisturbed(job)
    here = tmp_path / "here"
    shutil.copytree(starts / job.start, here)
    rng = random.Random(f"{job.name} 7")
    delays_s = [rng.uniform(0, seconds) * 0.8 for _ in range(2 * COUNT)]
    assert kill_and_go_on(job, here, reference, delays_s) >= 1


def test_killed_on_ray(starts: Path, undisturbed: Callable[[Job], tuple[Path, float]], tmp_path: Path) -> None:
    """A Ray job killed in the middle leaves no process; run again it ends with the rows of the plain loop."""
    reference, _ = undisturbed(CURATE)
    here = tmp_path / "here"
    shutil.copytree(starts / CURATE_RAY.start, here)
    assert kill_and_go_on(CURATE_RAY, here, reference, [random.Random(7).uniform(1, 4)]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("job", [*JOBS, CURATE_RAY], ids=lambda job: job.name)
def test_killed_often(job: Job, starts: Path, undisturbed: Callable[[Job], tuple[Path, float]], tmp_path: Path) -> None:
    """The same with many kills in a row, on stores that start anew each fifth time."""
    reference, seconds = undisturbed(CURATE if job is CURATE_RAY else job)
    rng = random.Random(f"{job.name} 11")
    n_hit = 0
    for number in range(3 * COUNT):
        here = tmp_path / f"here-{number}"
        shutil.copytree(starts / job.start, here)
        longest_s = 8.0 if job is CURATE_RAY else seconds
        n_hit += kill_and_go_on(job, here, reference, [rng.uniform(0, longest_s) for _ in range(5)])
        shutil.rmtree(here)
    assert n_hit >= 3


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_ctrl_c(job: Job, starts: Path, undisturbed: Callable[[Job], tuple[Path, float]], tmp_path: Path) -> None:
    """Ctrl-C is exit code 130 and one line without a traceback; the same command goes on to the same end."""
    reference, _ = undisturbed(job)
    here = tmp_path / "here"
    shutil.copytree(starts / job.start, here)
    running = Running(job, here)
    running.wait_for_life()
    assert running.send(signal.SIGINT), "it ended before Ctrl-C came"
    # Python ends itself by SIGINT where the interrupt came out of code that a C library ran (seen once): 130 to a shell, too.
    assert running.process.returncode in (130, -signal.SIGINT), running.said
    last = [line for line in running.said.splitlines() if line.strip()][-1]
    assert last == f"camloop {job.argv[0]}: stopped; the same command goes on from here"
    assert "Traceback" not in running.said
    assert Running(job, here).end() == 0
    check_same(job, here, reference)
