"""A bad link: a network namespace behind veth pairs (MTU 1500), joined by a process that delays and drops packets.

This machine's kernel has no netem, so the packets are carried in user space: AF_PACKET on one end of each pair, a heap of
due times, a seeded draw for each packet. Offloads are off, so that a packet is a packet of at most 1500 bytes with its own
checksum. Needs root.

    client in the namespace 10.77.0.2 -> a0 | a1 -> this process -> b1 | b0 -> 10.77.0.1, the host
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import heapq
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST, CLIENT = "10.77.0.1", "10.77.0.2"
_SIOCETHTOOL = 0x8946
_OFFLOADS_OFF = (0x15, 0x17, 0x19, 0x1F, 0x24, 0x2C)  # SRXCSUM, STXCSUM, SSG, STSO, SGSO, SGRO of linux/ethtool.h
_PACKET_OUTGOING = 4
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Link:
    """What the link does in each direction."""

    loss: float = 0.05
    delay_s: float = 0.05
    seed: int = 7


def _do(command: str) -> None:
    subprocess.run(command.split(), check=True)


def offloads_off(device: str) -> None:
    """Let packets be packets; what a device cannot switch is passed over."""
    import array

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in _OFFLOADS_OFF:
            value = array.array("B", struct.pack("II", command, 0))
            request = struct.pack("16sP", device.encode(), value.buffer_info()[0])
            with contextlib.suppress(OSError):
                fcntl.ioctl(control, _SIOCETHTOOL, request)


def carry(first: str, second: str, link: Link) -> None:
    """Carry packets between two devices until SIGTERM."""
    sockets = []
    for device in (first, second):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind((device, 0))
        made.setblocking(False)
        sockets.append(made)
    other = {sockets[0]: sockets[1], sockets[1]: sockets[0]}
    rng, due, number = random.Random(link.seed), list[tuple[float, int, socket.socket, bytes]](), 0
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    while not stopped:
        wait_s = 0.2 if not due else max(0.0, due[0][0] - time.monotonic())
        for ready in select.select(sockets, [], [], wait_s)[0]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, where = ready.recvfrom(65_536)
                    if where[2] == _PACKET_OUTGOING or rng.random() < link.loss:
                        continue
                    number += 1
                    heapq.heappush(due, (time.monotonic() + link.delay_s, number, other[ready], data))
        while due and due[0][0] <= time.monotonic():
            _, _, target, data = heapq.heappop(due)
            with contextlib.suppress(OSError):
                target.send(data)


async def relay(address: str, port: int) -> None:
    """Pass connections to `address`:`port` on to the server on loopback, which listens nowhere else."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 18):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, address, port)
    async with server:
        await server.serve_forever()


def _child(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)


@contextlib.contextmanager
def lossy_link(port: int, link: Link) -> Iterator[tuple[Sequence[str], str]]:
    """Make the link to 127.0.0.1:`port`; yields the prefix of a command behind it and the server's address from there."""
    name = f"cl{os.getpid() % 10_000}"
    children: list[subprocess.Popen[bytes]] = []
    _do(f"ip netns add {name}")
    try:
        for pair in "ab":
            _do(f"ip link add {name}{pair}0 type veth peer name {name}{pair}1")
        for device in (f"{name}{pair}{end}" for pair in "ab" for end in "01"):
            Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1")
            offloads_off(device)
            _do(f"ip link set {device} mtu 1500")
        _do(f"ip link set {name}a0 netns {name}")
        _do(f"ip addr add {HOST}/24 dev {name}b0")
        for device in ("a1", "b0", "b1"):
            _do(f"ip link set {name}{device} up")
        inside = f"ip netns exec {name}"
        _do(f"{inside} ip addr add {CLIENT}/24 dev {name}a0")
        _do(f"{inside} ip link set {name}a0 up")
        _do(f"{inside} ip link set lo up")
        there = f"from tests.bench.lossy_link import *; carry('{name}a1', '{name}b1', {link!r})"
        children.append(_child(there))
        children.append(
            _child(f"import asyncio; from tests.bench.lossy_link import relay; asyncio.run(relay('{HOST}', {port}))")
        )
        time.sleep(1.5)
        yield inside.split(), f"http://{HOST}:{port}"
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
        subprocess.run(["ip", "netns", "del", name], check=False)
        for pair in "ab":
            subprocess.run(["ip", "link", "del", f"{name}{pair}1"], check=False, capture_output=True)
