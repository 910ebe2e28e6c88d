"""How fast is the uploader beside one `aws s3 cp --recursive`? Prints one table.

Usage: python tests/bench/upload.py --aws PATH [--server ministack|radosgw] [--small 1000] [--large 20] [--rounds 3]
       python tests/bench/upload.py --aws PATH --lossy-minutes 15      (root: see tests/bench/lossy_link.py)

Both sides send the same files to the same server, ours first and theirs first by turns: N x 200 KB, N x 32 MB. awscli runs at
its defaults (10 requests at once, parts of 8 MiB above 8 MiB); ours has no more connections and the same part size. Ours also
writes a sidecar for each clip, proves each object, and deletes it locally; all of that is inside its time, and so are both
programs' starts. With --both awscli also copies the same clips with the same sidecars: the folder as it lies in the spool.
Bars: at least .9 of awscli's rate, resident memory of the uploader below 80 MB.

With --lossy-minutes the client side runs in a namespace behind a veth pair (MTU 1500, half of the round trip's 100 ms
and 5 % loss in each direction), each side for so many minutes or until it is done; what counts is how many bytes of whole
objects the store then holds. Bar: more than awscli's.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from infra import keys
from infra.records import Sidecar
from ingest.spool import Spool
from tests.bench.lossy_link import Link, lossy_link
from tests.ministack_server import Ministack, ministack
from tests.radosgw_server import radosgw

SMALL_BYTES, LARGE_BYTES = 200_000, 32_000_000
PART_BYTES = 8 << 20
CONNECTIONS = 10  # awscli's default max_concurrent_requests
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    """One side's run."""

    seconds: float
    n_bytes: int
    n_objects: int
    rss_mb: float
    cpu_s: float

    @property
    def mb_per_s(self) -> float:
        """Bytes of whole clips that arrived, a second."""
        return self.n_bytes / self.seconds / 1e6


def clips(folder: Path, n: int, n_bytes: int, seed: int) -> list[Path]:
    """Write n files of random bytes."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    made = []
    for number in range(n):
        path = folder / f"{number:05d}.mp4"
        with path.open("wb") as file:
            for start in range(0, n_bytes, 1 << 20):
                file.write(rng.randbytes(min(1 << 20, n_bytes - start)))
        made.append(path)
    return made


def fill(spool_folder: Path, paths: Sequence[Path]) -> None:
    """Copy clips into a new spool."""
    with Spool(spool_folder) as spool:
        for number, path in enumerate(paths):
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            copy = spool.recording / path.name
            copy.write_bytes(data)
            spool.adopt(
                copy,
                Sidecar(
                    clip_id=keys.clip_id(sha256), camera_id="cam1", host_id="pi", boot_id="boot", recording_id="rec",
                    seq=number, sha256=sha256, n_bytes=len(data), container="mp4", start_ns=None,
                    start_mono_ns=number * 10**9, clock="unknown", sensor_ns=tuple(range(0, 250 * 10**8, 10**8)),
                ),
            )  # fmt: skip


def timed(argv: Sequence[str], cwd: Path, environment: dict[str, str], limit_s: float | None) -> tuple[float, float, float]:
    """Run a command and return its seconds, peak resident MB and CPU seconds; it is ended after `limit_s`."""
    start = time.perf_counter()
    process = subprocess.Popen(argv, cwd=cwd, env=environment, stdout=subprocess.DEVNULL)
    peak_kb, ended = 0, False
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        with contextlib.suppress(OSError, StopIteration):  # ru_maxrss would count this process's own memory, before the exec
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak_kb = max(peak_kb, int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))))
        if limit_s is not None and not ended and time.perf_counter() - start > limit_s:
            process.send_signal(signal.SIGKILL)
            ended = True
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not ended:
        raise RuntimeError(f"{' '.join(argv)} ended with {process.returncode}")
    return time.perf_counter() - start, peak_kb / 1024, usage.ru_utime + usage.ru_stime


class Sides:
    """The two programs against one server, or one address of it."""

    def __init__(self, server: Ministack, aws: str, folder: Path, prefix: Sequence[str], endpoint: str, limit_s: float | None):
        self.server, self.aws, self.folder, self.prefix, self.limit_s = server, aws, folder, list(prefix), limit_s
        self.endpoint = endpoint
        self.environment = dict(os.environ) | {
            "AWS_ACCESS_KEY_ID": server.s3.access_key_id or "", "AWS_SECRET_ACCESS_KEY": server.s3.secret_access_key or "",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": str(folder / "none"),
            "CAMLOOP_S3_ENDPOINT": endpoint, "PYTHONPATH": str(REPOSITORY),
        }  # fmt: skip

    def _arrived(self, bucket: str) -> tuple[int, int]:
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        sizes = [found["Size"] for page in pages for found in page.get("Contents", ()) if found["Key"].endswith(".mp4")]
        return len(sizes), sum(sizes)

    def ours(self, paths: Sequence[Path], name: str) -> Run:
        """Upload a spool of these clips."""
        home = self.folder / f"ours-{name}"
        fill(home / "spool", paths)
        (home / "camloop.toml").write_text(f"[upload]\npart_bytes = {PART_BYTES}\nconnections = {CONNECTIONS}\n")
        bucket = self.server.new_bucket()
        argv = [sys.executable, "-m", "infra.cli", "upload", "spool", "--store", f"s3://{bucket}", "--quiet", "--json"]
        seconds, rss_mb, cpu_s = timed([*self.prefix, *argv], home, self.environment, self.limit_s)
        return self._run(bucket, seconds, rss_mb, cpu_s)

    def theirs(self, paths: Sequence[Path], name: str) -> Run:
        """Copy the folder with awscli."""
        bucket = self.server.new_bucket()
        argv = [self.aws, "s3", "cp", "--recursive", str(paths[0].parent), f"s3://{bucket}/clips/cam1/"]
        argv += ["--endpoint-url", self.endpoint, "--only-show-errors"]
        seconds, rss_mb, cpu_s = timed([*self.prefix, *argv], self.folder, self.environment, self.limit_s)
        return self._run(bucket, seconds, rss_mb, cpu_s)

    def _run(self, bucket: str, seconds: float, rss_mb: float, cpu_s: float) -> Run:
        n_objects, n_bytes = self._arrived(bucket)
        found = self.server.client()
        for page in found.get_paginator("list_objects_v2").paginate(Bucket=bucket):  # the servers hold it all in memory
            for stored in page.get("Contents", ()):
                found.delete_object(Bucket=bucket, Key=stored["Key"])
        return Run(seconds, n_bytes, n_objects, rss_mb, cpu_s)


def show(what: str, ours: list[Run], theirs: list[Run]) -> None:
    """Print one row of the table."""
    a, b = median(run.mb_per_s for run in ours), median(run.mb_per_s for run in theirs)
    ratio = a / b if b else float("inf")
    pairs = " ".join(f"{x.mb_per_s / y.mb_per_s:.2f}" if y.n_bytes else "inf" for x, y in zip(ours, theirs, strict=True))
    rss = f"{max(r.rss_mb for r in ours):.0f} / {max(r.rss_mb for r in theirs):.0f} MB"
    cpu = f"{median(r.cpu_s for r in ours):.1f} / {median(r.cpu_s for r in theirs):.1f} s"
    print(
        f"{what:<24} ours {a:8.2f} MB/s ({min(r.n_objects for r in ours)} objects)   awscli {b:8.2f} MB/s "
        f"({min(r.n_objects for r in theirs)})   ratio {ratio:5.2f} [{pairs}]   RSS {rss}   CPU {cpu}",
        flush=True,
    )


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aws", default="aws", help="awscli's executable")
    parser.add_argument("--server", choices=("ministack", "radosgw"), default="ministack")
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--large", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lossy-minutes", type=float, help="minutes a side behind the lossy link")
    parser.add_argument("--loss", type=float, default=5.0, help="percent of packets, each way")
    parser.add_argument("--rtt-ms", type=float, default=100.0)
    parser.add_argument("--both", action="store_true", help="also let awscli copy clips and sidecars")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    serving = ministack() if args.server == "ministack" else radosgw(memory_bytes=3 << 30)
    with tempfile.TemporaryDirectory(dir=args.folder) as name, serving as server, contextlib.ExitStack() as stack:
        folder, endpoint = Path(name), server.s3.endpoint_url or ""
        prefix: Sequence[str] = ()
        limit_s = None if args.lossy_minutes is None else args.lossy_minutes * 60
        if limit_s is not None:
            link = Link(loss=args.loss / 100, delay_s=args.rtt_ms / 2000)
            prefix, endpoint = stack.enter_context(lossy_link(server.port, link))
        sides = Sides(server, args.aws, folder, prefix, endpoint, limit_s)
        for what, n, n_bytes in (("small", args.small, SMALL_BYTES), ("large", args.large, LARGE_BYTES)):
            if not n:
                continue
            paths = clips(folder / what, n, n_bytes, seed=n)
            ours, theirs = list[Run](), list[Run]()
            for number in range(args.rounds):
                sequence = [(sides.ours, ours), (sides.theirs, theirs)]
                for act, runs in sequence if number % 2 == 0 else reversed(sequence):
                    runs.append(act(paths, f"{what}-{number}"))
            show(f"{args.server} {n} x {n_bytes / 1e6:g} MB", ours, theirs)
            if args.both and what == "small":
                with Spool(folder / "both") as spool:
                    beside = [spool.clips / path.name for path in paths]
                fill(folder / "both", paths)
                runs = [sides.theirs(beside, f"both-{number}") for number in range(args.rounds)]
                show(f"{args.server} both {n} x {n_bytes / 1e6:g} MB", ours, runs)


if __name__ == "__main__":
    main()
