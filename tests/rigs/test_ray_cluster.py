"""A curation job on a cluster of two machines whose workers, machines, driver and head are killed ends with the rows of a loop.

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
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.demo.card import fill
from tests.faults.test_kill_jobs import changes, content, run_here
from tests.rigs import ray_nodes
from tests.rigs.ray_nodes import HEAD, NODE, Cluster

COUNT = int(os.environ.get("CAMLOOP_TEST_COUNT", "1"))
KINDS = ("worker", "machine", "driver", "head")
CLIPS = 12
PATIENCE_S = 400.0
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
    fill(made / "card", CLIPS, seed=6)
    (made / "start").mkdir()
    run_here("ingest", str(made / "card"), store=made / "start")
    shutil.copytree(made / "start", made / "reference")
    run_here("curate", "--local", *STEPS, store=made / "reference")
    return made


def curate(cluster: Cluster, here: Path, said: Path) -> subprocess.Popen[bytes]:
    """Start the command on the head's machine."""
    argv = [sys.executable, "-m", "infra.cli", "curate", *STEPS, "--ray-address", cluster.address]
    argv += ["--store", str(here / "store"), "--quiet"]
    with said.open("ab") as out:
        return subprocess.Popen(
            ray_nodes.inside(HEAD, argv), env=ray_nodes.environment(), stdout=out, stderr=out, cwd=here, start_new_session=True
        )


def hit(kind: str, cluster: Cluster, job: subprocess.Popen[bytes], rng: random.Random) -> None:
    """Kill one thing; a machine or the head is started again, as an autoscaler would."""
    if kind == "driver":
        os.killpg(job.pid, signal.SIGKILL)
    elif kind == "worker":
        busy = [p for address in (HEAD, NODE) for p in cluster.processes(address) if "ray::" in " ".join(p.cmdline())]
        if busy:
            rng.choice(busy).send_signal(signal.SIGKILL)
    elif kind == "machine":
        cluster.kill(NODE)
        cluster.start(NODE)
    else:
        cluster.kill(HEAD)
        if NODE in cluster._raylets:
            cluster.kill(NODE)
        cluster.start(HEAD)
        cluster.start(NODE)


@pytest.mark.parametrize("number", range(COUNT))
@pytest.mark.parametrize("kind", KINDS)
def test_killed_on_a_cluster(kind: str, number: int, cluster: Cluster, start: Path, tmp_path: Path) -> None:
    """One kill in the middle; the job goes on, or the same command does: the rows of a loop, none lost, none twice."""
    here, said, rng = tmp_path / "here", tmp_path / "said.txt", random.Random(f"{kind} {number}")
    shutil.copytree(start / "start", here)
    before = changes(here)
    job = curate(cluster, here, said)
    deadline = time.monotonic() + PATIENCE_S
    while job.poll() is None and changes(here) == before and b"to do" not in said.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(rng.uniform(0.5, 12.0))
    was_running = job.poll() is None
    with contextlib.suppress(psutil.NoSuchProcess):  # the worker had ended by itself
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
        assert found.get(table) == reference.get(table), (table, was_running)
    assert len(set(found["frames"])) == len(found["frames"])


def test_without_the_token(cluster: Cluster) -> None:
    """Who lacks the token is refused, from either machine, and in words."""
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.cluster_resources())"
    for address in (HEAD, NODE):
        for environment in (ray_nodes.environment("f" * 32), ray_nodes.environment() | {"RAY_AUTH_MODE": "disabled"}):
            argv = ray_nodes.inside(address, [sys.executable, "-c", code, cluster.address])
            asked = subprocess.run(argv, env=environment, capture_output=True, timeout=PATIENCE_S, check=False)
            assert asked.returncode != 0 and b"CPU" not in asked.stdout
