"""What a link that drops costs: bytes sent again beside bytes delivered, ours and awscli's. Prints one table.

Usage: python tests/bench/resume.py --aws PATH [--mb 1000] [--mbit 25] [--drop-s 20] [--down-s 2] [--limit-s 1800]
       python tests/bench/resume.py --small       (200 clips of 200 KB at 1 Mbit/s, the same drops)

One file of `--mb` goes through a proxy that passes `--mbit` and cuts every connection each `--drop-s` seconds, for `--down-s`.
Bytes are counted where they leave for the store; what is sent again is all that went minus the file. Ours is the uploader in
its `--watch` mode; awscli (`aws s3 cp`, its defaults) is started again whenever it gives up, until it is done or the limit is
reached. Bar: at most 5 % sent again. 1 GB at 25 Mbit/s is 5.4 minutes for ours; awscli may need the whole limit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.upload import REPOSITORY, clips, fill
from tests.ministack_server import Ministack, free_port, ministack

_PIECE_BYTES = 16 << 10


@dataclass
class BadLink:
    """A running proxy in front of a server on loopback; `sent` counts the bytes that clients sent through it."""

    port: int
    upstream_port: int
    bytes_per_s: float
    drop_s: float
    down_s: float
    sent: int = 0
    n_drops: int = 0
    _free_at_s: float = 0.0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def is_down(self) -> bool:
        """Say whether the link is cut just now."""
        return (
            time.monotonic() - self.started_s
        ) % self.drop_s < self.down_s and time.monotonic() - self.started_s > self.down_s

    def __post_init__(self) -> None:
        self.started_s = time.monotonic()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE_BYTES):
                now_s = time.monotonic()
                self._free_at_s = max(self._free_at_s, now_s) + len(data) / self.bytes_per_s
                await asyncio.sleep(max(0.0, self._free_at_s - now_s))
                if writer.is_closing():
                    return
                self.sent += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_down():
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._up(reader, far_writer), self._back(far_reader, writer))
        self._writers -= {writer, far_writer}

    async def run(self, stop: asyncio.Event) -> None:
        """Pass, and cut."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=_PIECE_BYTES)
        was_down = False
        while not stop.is_set():
            down = self.is_down()
            if down and not was_down:
                self.n_drops += 1
                for writer in list(self._writers):
                    writer.transport.abort()
            was_down = down
            await asyncio.sleep(0.05)
        server.close()


@contextlib.contextmanager
def bad_link(upstream_port: int, mbit: float, drop_s: float, down_s: float) -> Iterator[BadLink]:
    """Run a bad link for the length of the `with`."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    link = BadLink(free_port(), upstream_port, mbit * 1e6 / 8, drop_s, down_s)
    thread = threading.Thread(target=loop.run_until_complete, args=(link.run(stop),), daemon=True)
    thread.start()
    time.sleep(0.3)
    try:
        yield link
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def stored(server: Ministack, bucket: str) -> tuple[int, int]:
    """Return how many clips the bucket holds, and their bytes."""
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    sizes = [found["Size"] for page in pages for found in page.get("Contents", ()) if found["Key"].endswith(".mp4")]
    return len(sizes), sum(sizes)


def environment(server: Ministack, link: BadLink, folder: Path) -> dict[str, str]:
    """Return the environment of a program that talks through the link."""
    return dict(os.environ) | {
        "AWS_ACCESS_KEY_ID": server.s3.access_key_id or "", "AWS_SECRET_ACCESS_KEY": server.s3.secret_access_key or "",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": str(folder / "none"),
        "CAMLOOP_S3_ENDPOINT": f"http://127.0.0.1:{link.port}", "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip


def report(who: str, n: int, n_bytes: int, link: BadLink, started_s: float, expected: int, n_starts: int) -> None:
    """Print one row."""
    again = f"{100 * (link.sent - n_bytes) / expected:5.1f} %" if n_bytes == expected else "unknown: it did not finish"
    seconds = time.monotonic() - started_s
    print(
        f"{who:<8} {n:>4} clips, {n_bytes / 1e6:8.1f} MB of {expected / 1e6:.1f} in {seconds:6.0f} s, {link.n_drops} drops, "
        f"{link.sent / 1e6:8.1f} MB sent, sent again {again}, started {n_starts} times",
        flush=True,
    )


def main() -> None:
    """Run both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aws", help="awscli's executable; without it only ours runs")
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--mbit", type=float)
    parser.add_argument("--drop-s", type=float, default=20.0)
    parser.add_argument("--down-s", type=float, default=2.0)
    parser.add_argument("--limit-s", type=float, default=1800.0)
    parser.add_argument("--small", action="store_true", help="200 clips of 200 KB at 1 Mbit/s")
    parser.add_argument("--clips", type=int, default=200, help="with --small")
    args = parser.parse_args()
    mbit = args.mbit or (1.0 if args.small else 25.0)
    n, size = (args.clips, 200_000) if args.small else (1, args.mb * 1_000_000)
    with tempfile.TemporaryDirectory() as name, ministack() as server:
        folder = Path(name)
        paths = clips(folder / "in", n, size, seed=1)
        fill(folder / "spool", paths)
        expected = n * size
        bucket = server.new_bucket()
        with bad_link(server.port, mbit, args.drop_s, args.down_s) as link:
            started_s = time.monotonic()
            argv = [sys.executable, "-m", "infra.cli", "upload", "spool", "--watch", "--store", f"s3://{bucket}", "--quiet"]
            ours = subprocess.Popen(argv, cwd=folder, env=environment(server, link, folder), stderr=subprocess.DEVNULL)
            while stored(server, bucket)[0] < n and time.monotonic() - started_s < args.limit_s and ours.poll() is None:
                time.sleep(0.5)
            report("ours", *stored(server, bucket), link, started_s, expected, 1)
            ours.terminate()
            ours.wait()
        if not args.aws:
            return
        bucket, n_starts = server.new_bucket(), 0
        with bad_link(server.port, mbit, args.drop_s, args.down_s) as link:
            started_s = time.monotonic()
            argv = [args.aws, "s3", "cp", "--recursive", str(folder / "in"), f"s3://{bucket}/clips/", "--only-show-errors"]
            argv += ["--endpoint-url", f"http://127.0.0.1:{link.port}"]
            left_s = args.limit_s
            while stored(server, bucket)[0] < n and left_s > 0:
                n_starts += 1
                with contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run(argv, env=environment(server, link, folder), timeout=left_s, stderr=subprocess.DEVNULL)
                left_s = args.limit_s - (time.monotonic() - started_s)
            report("awscli", *stored(server, bucket), link, started_s, expected, n_starts)


if __name__ == "__main__":
    main()
