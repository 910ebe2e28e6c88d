"""A Ray cluster of two machines: two network namespaces of this one, joined by a veth pair; token on, no dashboard. Needs root.

camloop-head 10.78.0.1 (GCS, no work)  <-- veth -->  camloop-node 10.78.0.2 (two cores)
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
CORES = {HEAD: 0, NODE: 2}  # so that a killed machine is the one that works
STORE_BYTES = 150_000_000
START_S = 300.0  # a shared machine is slow
AGENT_PORTS = (  # named, for Ray gives its agents 15 s to name them
    "--dashboard-agent-grpc-port=6392", "--dashboard-agent-listen-port=6393", "--runtime-env-agent-port=6394",
    "--metrics-export-port=6395",
)  # fmt: skip


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
        "RAY_raylet_start_wait_time_s": f"{START_S:.0f}", "RAY_agent_register_timeout_ms": f"{START_S * 1000:.0f}",
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
        argv = [RAY, "start", *role, f"--node-ip-address={address}", f"--num-cpus={CORES[address]}"]
        argv += [f"--object-store-memory={STORE_BYTES}", *AGENT_PORTS]
        argv += ["--include-dashboard=false"] if address == HEAD else []
        said = self._folder.parent / f"ray-{address}.txt"
        with said.open("ab") as out:
            self._raylets[address] = subprocess.Popen(
                inside(address, [*argv, "--block", "--disable-usage-stats"]), env=environment(), stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
            n_said = out.tell()
        deadline = time.monotonic() + START_S
        while b"Ray runtime started" not in said.read_bytes()[n_said:]:
            assert time.monotonic() < deadline, f"Ray on {address} does not come up; see {said}"
            time.sleep(0.5)

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
