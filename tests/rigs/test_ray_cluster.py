"""A curation job on a cluster of two machines whose workers, machines, driver and head are killed ends with the rows of a loop.

How much is done again is counted where it is done: each clip whose decoding begins is noted (`counted_curate.py`).
`CAMLOOP_TEST_COUNT` (1) multiplies the kills, four kinds each. Needs root for network namespaces.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import pytest

from infra.video import Writer
from tests.faults.test_kill_jobs import content, run_here
from tests.rigs import ray_nodes
from tests.rigs.ray_nodes import HEAD, NODE, Cluster

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
KINDS = ("worker", "machine", "driver", "head")
CLIPS = 400  # so that one clip is a quarter of a percent
MOST_REDONE = 0.05
PATIENCE_S = 600.0
STEPS = ("--without", "detect", "embed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip (iproute2)"
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two machines."""
    folder = Path("/tmp") / f"camloop-ray-{os.getpid()}"  # Ray's sockets need a short path
    with ray_nodes.namespaces():
        made = Cluster(folder / "s")
        folder.mkdir()
        try:
            made.start(HEAD)
            made.start(NODE)
            yield made
        finally:
            made.stop()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with clips that nobody curated, and beside it `reference`, curated by a plain loop."""
    made = tmp_path_factory.mktemp("cluster")
    rng = np.random.default_rng(6)
    for number in range(CLIPS):
        folder = made / "card" / f"cam{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        with Writer(folder / f"clip{number:03}.mp4", 64, 48, Fraction(1, 10)) as writer:
            for pts in range(30):
                writer.add(rng.integers(0, 255, (48, 64, 3), np.uint8), pts)
    (made / "start").mkdir()
    run_here("ingest", str(made / "card"), store=made / "start")
    shutil.copytree(made / "start", made / "reference")
    run_here("curate", "--local", *STEPS, store=made / "reference")
    return made


def curate(cluster: Cluster, here: Path, said: Path) -> subprocess.Popen[bytes]:
    """Start the command on the head's machine; it notes the clips that it begins in `begun`."""
    program = "from tests.rigs.counted_curate import main; main()"
    argv = [sys.executable, "-c", program, str(here / "begun"), *STEPS, "--ray-address", cluster.address]
    argv += ["--store", str(here / "store"), "--quiet"]
    with said.open("ab") as out:
        return subprocess.Popen(
            ray_nodes.inside(HEAD, argv), env=ray_nodes.environment(), stdout=out, stderr=out, cwd=here, start_new_session=True
        )


def begun(here: Path) -> list[str]:
    """Return the clip_ids that were begun, as often as they were, and the machines that did."""
    file = here / "begun"
    return file.read_text().splitlines() if file.exists() else []


def hit(kind: str, cluster: Cluster, job: subprocess.Popen[bytes], rng: random.Random) -> None:
    """Kill one thing; a machine or the head is started again, as an autoscaler would."""
    if kind == "driver":
        os.killpg(job.pid, signal.SIGKILL)
    elif kind == "worker":
        decoders = [p for address in (HEAD, NODE) for p in cluster.processes(address) if is_decoder(p)]
        rng.choice(decoders).send_signal(signal.SIGKILL)
    elif kind == "machine":
        cluster.kill(NODE)
        cluster.start(NODE)
    else:
        cluster.kill(HEAD)
        if NODE in cluster._raylets:
            cluster.kill(NODE)
        cluster.start(HEAD)
        cluster.start(NODE)


def is_decoder(process: psutil.Process) -> bool:
    """Say whether a process is a Ray worker of the first stage."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "ray::" in (told := " ".join(process.cmdline())) and "Map" in told
    return False


@pytest.mark.parametrize("number", range(COUNT))
@pytest.mark.parametrize("kind", KINDS)
def test_killed_on_a_cluster(kind: str, number: int, cluster: Cluster, start: Path, tmp_path: Path) -> None:
    """One kill in the middle; the job goes on, or the same command does: the rows of a loop, none lost, none twice."""
    here, said, rng = tmp_path / "here", tmp_path / "said.txt", random.Random(f"{kind} {number}")
    shutil.copytree(start / "start", here)
    job = curate(cluster, here, said)
    deadline, moment = time.monotonic() + PATIENCE_S, rng.uniform(0.2, 0.7) * CLIPS
    while len(begun(here)) < moment:
        assert job.poll() is None and time.monotonic() < deadline, said.read_text(errors="replace")[-3000:]
        time.sleep(0.02)
    hit(kind, cluster, job, rng)
    code = job.wait(PATIENCE_S)
    for _ in range(3):
        if code == 0:
            break
        assert b"Traceback" not in said.read_bytes(), said.read_text(errors="replace")[-3000:]
        code = curate(cluster, here, said).wait(PATIENCE_S)
    assert code == 0, said.read_text(errors="replace")[-3000:]
    found, reference = content(here / "store"), content(start / "reference" / "store")
    for table in ("clips", "frames", "gops", "tags", "done", "failures"):
        assert found.get(table) == reference.get(table), table
    assert len(set(found["frames"])) == len(found["frames"])
    lines = begun(here)
    clip_ids, machines = [line.split()[0] for line in lines], Counter(line.split()[1] for line in lines)
    n_redone = len(clip_ids) - CLIPS
    print(f"{kind} killed after {moment:.0f} of {CLIPS} clips: {n_redone} done again, {n_redone / CLIPS:.2%}; {dict(machines)}")
    assert len(set(clip_ids)) == CLIPS
    assert n_redone <= MOST_REDONE * CLIPS


def test_without_the_token(cluster: Cluster) -> None:
    """Who lacks the token is refused, from either machine, and in words."""
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.cluster_resources())"
    for address in (HEAD, NODE):
        for environment in (ray_nodes.environment("f" * 32), ray_nodes.environment() | {"RAY_AUTH_MODE": "disabled"}):
            argv = ray_nodes.inside(address, [sys.executable, "-c", code, cluster.address])
            asked = subprocess.run(argv, env=environment, capture_output=True, timeout=PATIENCE_S, check=False)
            assert asked.returncode != 0 and b"CPU" not in asked.stdout
