"""What a camera host costs: memory, CPU, bytes written and log lines of a real agent over real RTSP streams. Prints tables.

Usage: python tests/bench/agent.py [--cameras 1 2] [--seconds 60] [--film highway_traffic_720p.mp4] [--model BUNDLE_DIR]

GStreamer's RTSP server (see tests/ingest/rtsp_rig.py) plays a film of ../shared/data again and again, at its own speed, with
traffic most of the time: what the motion trigger keeps is recorded as it comes, uploaded into a folder and deleted. Memory is
the proportional set size (/proc/PID/smaps_rollup), the highest of a sample every two seconds; other work on the machine that
shares libraries lowers it, so RSS stands beside it. Bar: recorder, trigger and watchdog together below 120 MB a camera.
Without --model the recipe gesture_gru with random weights is exported for the last table. CPU time is that of /proc/PID/stat.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.ingest.rtsp_rig import Rtsp, serving  # noqa: E402

DATA = ROOT.parent / "shared" / "data" / "videos"
BAR_MB = 120
WARM_UP_S = 8.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Cost:
    """One process: highest PSS and RSS in MB, CPU seconds, bytes written since it was first seen."""

    pss_mb: float = 0.0
    rss_mb: float = 0.0
    cpu_s: float = 0.0
    written_bytes: int = 0
    first_cpu_s: float | None = None
    first_bytes: int = 0


@dataclass(slots=True)
class Measured:
    """A run: costs by process name, seconds, what the log and the store grew by."""

    costs: dict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))
    seconds: float = 0.0
    log_bytes: int = 0
    clip_bytes: int = 0
    n_clips: int = 0


def number_after(name: str, path: Path) -> int:
    """Return the number after a name in one of the kernel's files."""
    found = re.search(rf"^{name}\s+(\d+)", path.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{path}: no {name}")
    return int(found.group(1))


def read(pid: int, cost: Cost) -> None:
    """Add what a process costs now."""
    with contextlib.suppress(OSError):
        cost.pss_mb = max(cost.pss_mb, number_after("Pss:", Path(f"/proc/{pid}/smaps_rollup")) * 1024 / 1e6)
        cost.rss_mb = max(cost.rss_mb, number_after("Rss:", Path(f"/proc/{pid}/smaps_rollup")) * 1024 / 1e6)
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        cpu_s = (int(words[11]) + int(words[12])) / _TICKS
        written = number_after("write_bytes:", Path(f"/proc/{pid}/io"))
        if cost.first_cpu_s is None:
            cost.first_cpu_s, cost.first_bytes = cpu_s, written
        cost.cpu_s, cost.written_bytes = cpu_s - cost.first_cpu_s, written - cost.first_bytes


def processes(agent: int) -> Iterator[tuple[int, str]]:
    """Yield (pid, name) of the agent and its children."""
    yield agent, "watchdog (agent)"
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            if "record" in words:
                yield int(child), f"recorder {words[words.index('--camera-table') + 1]}"
            elif "upload" in words:
                yield int(child), "uploader"


def loop(film: Path, target: Path, seconds: float) -> Path:
    """Write a film that is another again and again, packet by packet, of at least so many seconds."""
    import av

    with av.open(str(film)) as source, av.open(str(target), "w") as out:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.size and packet.pts is not None]
        made = out.add_stream_from_template(stream)
        start = min(packet.dts for packet in packets)
        length = max(packet.pts + (packet.duration or 0) for packet in packets) - min(packet.pts for packet in packets)
        for turn in range(int(seconds / float(length * stream.time_base)) + 1):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.time_base, copy.is_keyframe, copy.stream = stream.time_base, packet.is_keyframe, made
                copy.pts, copy.dts = packet.pts - start + turn * length, packet.dts - start + turn * length
                out.mux(copy)
    return target


def make_model(folder: Path) -> Path:
    """Export the recipe gesture_gru with random weights, in a process of its own (torch is large); return the folder."""
    code = (
        "import sys, torch; from pathlib import Path; from train.export import export; from train.models import build\n"
        "from train.recipes import gesture_gru\n"
        "torch.manual_seed(7); recipe, labels = gesture_gru(), ('first', 'second', 'third')\n"
        "weights = build(recipe.model, len(labels)).state_dict()\n"
        "export(weights, recipe, labels, name='random', lineage={}).write(Path(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


def measure(servers: list[Rtsp], seconds: float, trigger: str) -> Measured:
    """Run an agent over these streams."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = 'store = "store"\nhost_id = "bench"\n[agent]\nspool = "spool"\n'
        for number, server in enumerate(servers):
            text += f'[[camera]]\nid = "cam{number}"\nurl = "{server.url}"\nallow = ["127.0.0.1"]\nsegment_s = 10\n'
            text += f"trigger = {trigger}\n"
        (folder / "camloop.toml").write_text(text)
        made = Measured()
        with (folder / "log").open("wb") as log:
            argv = [sys.executable, "-m", "infra.cli", "agent"]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            agent = subprocess.Popen(argv, cwd=folder, env=environment, stderr=log)
        try:
            time.sleep(WARM_UP_S)
            start, log_bytes = time.monotonic(), (folder / "log").stat().st_size
            while time.monotonic() - start < seconds:
                for pid, process in processes(agent.pid):
                    read(pid, made.costs[process])
                time.sleep(2)
            made.seconds = time.monotonic() - start
            made.log_bytes = (folder / "log").stat().st_size - log_bytes
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(60)
        clips = list((folder / "store" / "clips").rglob("*.mp4"))
        made.n_clips, made.clip_bytes = len(clips), sum(path.stat().st_size for path in clips)
        if not clips:
            print((folder / "log").read_text()[-3000:])
        return made


def show(title: str, made: Measured, n_cameras: int) -> None:
    """Print one run."""
    print(f"\n### {title}: {n_cameras} camera(s), {made.seconds:.0f} s, {made.n_clips} clips, {made.clip_bytes / 1e6:.1f} MB\n")
    print("| process | highest PSS, MB | RSS, MB | CPU, % of a core | written to disk, MB/h |")
    print("|---|---|---|---|---|")
    for name, cost in sorted(made.costs.items()):
        hourly = cost.written_bytes / made.seconds * 3600 / 1e6
        print(f"| {name} | {cost.pss_mb:.1f} | {cost.rss_mb:.1f} | {100 * cost.cpu_s / made.seconds:.1f} | {hourly:.1f} |")
    pss_mb, rss_mb = (
        sum(getattr(cost, what) for name, cost in made.costs.items() if name != "uploader") / n_cameras
        for what in ("pss_mb", "rss_mb")
    )
    verdict = "below" if pss_mb < BAR_MB else "**NOT below**"
    print(
        f"\nrecorder, trigger and watchdog: {pss_mb:.1f} MB a camera, {verdict} {BAR_MB} MB (RSS, nothing shared: {rss_mb:.1f})"
    )
    print(f"log: {made.log_bytes} bytes in {made.seconds:.0f} s = {made.log_bytes / made.seconds * 3.6:.1f} kB an hour")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--film", default="highway_traffic_720p.mp4")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--label", default="first", help="of the model")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        film = loop(DATA / arguments.film, Path(scratch) / "film.mp4", arguments.seconds + 60)
        servers = [stack.enter_context(serving("--file", str(film))) for _ in range(max(arguments.cameras))]
        for n_cameras in arguments.cameras:
            show("motion trigger", measure(servers[:n_cameras], arguments.seconds, '{kind = "motion"}'), n_cameras)
        model = arguments.model or make_model(Path(scratch) / "bundle")
        trigger = f'{{kind = "model", model = "{model}", labels = ["{arguments.label}"], threshold = 0.0}}'
        show("with a model", measure(servers[:1], arguments.seconds, trigger), 1)


if __name__ == "__main__":
    main()
