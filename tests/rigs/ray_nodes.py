"""A Ray cluster of two machines: two network namespaces of this one, joined by a veth pair; token on, no dashboard. Needs root.

camloop-head 10.78.0.1 (GCS, one core)  <-- veth -->  camloop-node 10.78.0.2 (one core)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

HEAD, NODE = "10.78.0.1", "10.78.0.2"
NAMESPACES = {HEAD: "camloop-head", NODE: "camloop-node"}
PORT = 6391
TOKEN = "0123456789abcdef" * 2
RAY = str(Path(sys.executable).with_name("ray"))
STORE_BYTES = 150_000_000
START_S = 120.0


def _do(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


@contextlib.contextmanager
def namespaces() -> Iterator[None]:
    """Make both namespaces and the line between them."""
    _remove()
    try:
        for name in NAMESPACES.values():
            _do(f"ip netns add {name}")
            _do(f"ip -n {name} link set lo up")
        _do(f"ip link add camloop-h netns {NAMESPACES[HEAD]} type veth peer name camloop-n netns {NAMESPACES[NODE]}")
        for address, device in ((HEAD, "camloop-h"), (NODE, "camloop-n")):
            _do(f"ip -n {NAMESPACES[address]} addr add {address}/24 dev {device}")
            _do(f"ip -n {NAMESPACES[address]} link set {device} up")
        yield
    finally:
        _remove()


def _remove() -> None:
    for name in NAMESPACES.values():
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def environment(token: str = TOKEN) -> dict[str, str]:
    """Return the environment of everything that talks to the cluster."""
    return dict(os.environ) | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip


def inside(address: str, argv: Sequence[str]) -> list[str]:
    """Return a command line that runs on the machine with this address."""
    return ["ip", "netns", "exec", NAMESPACES[address], *argv]


class Cluster:
    """Two machines; each can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.address = f"{HEAD}:{PORT}"
        self._folder = folder
        self._raylets: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, address: str) -> None:
        """Start Ray on a machine and wait until it serves."""
        role = ["--head", f"--port={PORT}", f"--temp-dir={self._folder}"] if address == HEAD else [f"--address={self.address}"]
        argv = [RAY, "start", *role, f"--node-ip-address={address}", "--num-cpus=1", f"--object-store-memory={STORE_BYTES}"]
        argv += ["--include-dashboard=false"] if address == HEAD else []
        said = (self._folder.parent / f"ray-{address}.txt").open("ab")
        self._raylets[address] = subprocess.Popen(
            inside(address, [*argv, "--block", "--disable-usage-stats"]), env=environment(), stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_S
        while self.n_alive() < (1 if address == HEAD else 2):
            assert time.monotonic() < deadline, f"Ray on {address} does not come up; see {said.name}"
            time.sleep(1.0)

    def n_alive(self) -> int:
        """Return how many machines the cluster has, 0 while there is none."""
        code = (
            "import os, ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); "
            "print('ALIVE', sum(node['Alive'] for node in ray.nodes()), flush=True); os._exit(0)"  # a farewell may hang
        )
        asked = subprocess.run(
            inside(HEAD, [sys.executable, "-c", code, self.address]),
            env=environment(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        words = asked.stdout.decode(errors="replace").split()
        return int(words[-1]) if "ALIVE" in words else 0

    def processes(self, address: str) -> list[psutil.Process]:
        """Return what runs on a machine because of Ray."""
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            found = psutil.Process(self._raylets[address].pid).children(recursive=True)
        return found

    def kill(self, address: str) -> None:
        """Kill everything of Ray on a machine, at once."""
        for process in [*self.processes(address), psutil.Process(self._raylets[address].pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self._raylets.pop(address).wait()

    def stop(self) -> None:
        """End it all."""
        for address in list(self._raylets):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.kill(address)
