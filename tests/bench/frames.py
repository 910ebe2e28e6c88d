"""What do the frame recorders cost? An hour of frames through recorder and spool, as fast as they go; prints one table.

Usage: python tests/bench/frames.py [--minutes 60] [--kind png jpeg raw features] [--live 60]

Each kind runs in a process of its own: a camera of 64 simulated pictures (with its noise) at the stated size and rate, one
frame in 97 lost, segments of a minute, forced to the disk and hashed as on a camera host; a finished clip is deleted.
CPU is the process's own time a frame, start and imports left out. RSS is read each minute of footage: growth is the most
after the tenth minute over the most before it. Sizes count sidecars.

A Pi 3's CPU share: one of its four cores. How it is limited here: in CPU time. By 7-zip, one core of this machine rates 3,850
to 4,050 MIPS (`7z b -mmt1`, rating per CPU), four Cortex-A53 cores at 1.2 GHz together 3,640 (sbc-bench, Results.md, Raspberry
Pi Zero 2 at 1200 MHz, the Pi 3's core and clock), so a core of a Pi 3 is 1/4.4 of one here. The bar is taken at 1/10: a second
of a Pi's core is 100 ms of this one. "fps of a Pi core" is what fits into that. `--live S` does it in real time instead: the
camera films by the clock, and the process is stopped whenever it has used more than a tenth of the time that has passed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PI_SHARE = 0.1
KINDS = {  # (width, height), frames a second, the bar
    "png": ((128, 128), 11.0, ">= 11 fps"),
    "jpeg": ((320, 240), 10.0, "10.0 fps, gaps listed"),
    "raw": ((128, 128), 8.0, "<= 1,500 MB/h"),
    "features": ((128, 128), 7.0, "<= 27 MB/h"),
}
LOST = 97


def one(kind: str, minutes: float, live: bool) -> dict[str, Any]:
    """Record one kind and return its figures."""
    sys.path.insert(0, str(ROOT))
    from infra.clock import SystemClock
    from infra.video import resize
    from ingest.features import Extractor
    from ingest.recording import Wish, record
    from ingest.source import SourceFrame, open_source
    from ingest.spool import Spool
    from ingest.take import Stop
    from tests.ingest.extractors import write_extractor

    (width_px, height_px), fps, _ = KINDS[kind]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        here = Path(folder)
        filmed = itertools.islice(open_source("sim://7/harbour1-yard?seconds=7"), 64)
        pictures = [np.ascontiguousarray(resize(frame.rgb, (width_px, height_px))) for frame in filmed]
        extractor = Extractor(write_extractor(here / "projection.onnx", side_px=32)) if kind == "features" else None
        rss: list[float] = []
        sizes: list[int] = []
        gaps = frames = 0

        class Camera:
            """The simulated pictures, over and over."""

            camera_id, host_id, boot_id, recording_id = "bench", "pi", "boot", "rec"
            site, clock = None, "sensor"

            def __init__(self) -> None:
                self.width_px, self.height_px = width_px, height_px

            def utc_ns(self, sensor_ns: int) -> int:
                return 1_764_000_000_000_000_000 + sensor_ns

            def __iter__(self) -> Iterator[SourceFrame]:
                for number in range(round(minutes * 60 * fps)):
                    if number % LOST != 5:
                        yield SourceFrame(pictures[number % 64], round(number / fps * 1e9), number)
                    if number % round(60 * fps) == 0:
                        rss.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6)

        wish = Wish(kind=kind, extractor=extractor, segment_s=60, realtime=live)  # type: ignore[arg-type]
        with Spool(here / "spool") as spool:

            def clip_done(sidecar: Any) -> None:
                nonlocal gaps, frames
                sizes.append(sidecar.n_bytes + len(sidecar.to_json()))
                gaps, frames = gaps + len(sidecar.gaps), frames + len(sidecar.sensor_ns)
                for clip in spool.pending():
                    spool.done(clip)

            if live:
                os.kill(os.getpid(), signal.SIGSTOP)
            seen_s: list[float] = []

            def see(frame: Any) -> None:
                seen_s[1:] = [time.monotonic()]  # of the first frame and of the last one

            start_s, start_wall = time.process_time(), time.monotonic()
            recorded = record(Camera(), spool, wish, stop=Stop(), clock=SystemClock(), on_clip=clip_done, see=see)  # type: ignore[arg-type]
            cpu_s, wall_s = time.process_time() - start_s, time.monotonic() - start_wall
    lost = sum(1 for number in range(round(minutes * 60 * fps)) if number % LOST == 5)
    return {
        "kind": kind, "size": f"{width_px}x{height_px}", "frames": frames, "cpu_ms": cpu_s / frames * 1e3,
        "pi_fps": PI_SHARE * frames / cpu_s, "bytes_a_frame": sum(sizes) / frames,
        "mb_per_hour": sum(sizes) / 1e6 / (frames + lost) * fps * 3600, "gaps": gaps, "lost": recorded.n_dropped,
        "really_lost": lost, "rss_mb": max(rss), "growth_mb": max(rss[10:], default=rss[-1]) - max(rss[:10]),
        "live_fps": (frames + lost - 1) / (seen_s[-1] - seen_s[0]) if live else None, "cpu_share": cpu_s / wall_s,
    }  # fmt: skip


def limited(argv: list[str]) -> str:
    """Run a command that gets a tenth of a core from its first stop on: stopped while it has used more. Return its output."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    os.waitpid(process.pid, os.WUNTRACED)  # it stops itself when it is ready to film
    start_s, start = _cpu_s(process.pid), time.monotonic()
    process.send_signal(signal.SIGCONT)
    while process.poll() is None:
        excess_s = (_cpu_s(process.pid) - start_s) - PI_SHARE * (time.monotonic() - start)
        if excess_s > 0:
            process.send_signal(signal.SIGSTOP)
            time.sleep(excess_s / PI_SHARE)
            process.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    return process.stdout.read()


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, of all its threads, to the microsecond (schedstat); 0 when it is gone."""
    try:
        return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def main() -> None:
    """Run all kinds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--live", type=float, metavar="S", help="film so many seconds by the clock, on a tenth of a core")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.minutes, arguments.live is not None)))
        return
    rows = []
    for kind in arguments.kind:
        argv = [sys.executable, __file__, "--one", kind, "--minutes", str(arguments.minutes)]
        if arguments.live is not None:
            argv[-1:] = [str(arguments.live / 60), "--live", str(arguments.live)]
            rows.append(json.loads(limited(argv)))
        else:
            rows.append(json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout))
    columns = ("kind", "size", "frames", "CPU ms a frame", "fps of a Pi core", "MB an hour", "bar", "gaps listed / lost")
    print(f"| {' | '.join(columns)} | RSS MB, growth |\n{'|---' * (len(columns) + 1)}|")
    for row in rows:
        live = "" if row["live_fps"] is None else f", live {row['live_fps']:.2f} fps at {row['cpu_share']:.1%} of a core"
        print(
            f"| {row['kind']} | {row['size']} | {row['frames']:,} | {row['cpu_ms']:.2f} | {row['pi_fps']:,.0f}{live} | "
            f"{row['mb_per_hour']:,.1f} | {KINDS[row['kind']][2]} | {row['lost']:,} / {row['really_lost']:,} | "
            f"{row['rss_mb']:.0f}, {row['growth_mb']:+.1f} |"
        )


if __name__ == "__main__":
    main()
