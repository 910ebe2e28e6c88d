"""What a pass-through RTSP recording costs: CPU of the recorder's process, and bytes written a byte of clip.

    python -m tests.bench.passthrough [--seconds 120] [--video FILE] [--crf 16]      (as long as --seconds, three times)

GStreamer's server plays a real 720p film in a loop, in real time (with --crf: encoded anew, for more bits a second). A recorder
process of its own films it three ways: trigger `always` (nothing is decoded), a trigger that is shown keyframes, and one that
is shown every frame. CPU is the process's own user + system time, from /proc; bytes written are /proc/PID/io's write_bytes
(what went towards the disk), so the folder must not be a tmpfs. Both count from the first frame on and include finishing the
last clip.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from infra.remux import PacketWriter
from infra.video import Writer, decode, probe
from ingest.decoding import SmallPictures
from ingest.recorder import Recorder
from ingest.source import EncodedFrame
from ingest.spool import Spool
from ingest.stream import StreamCamera, open_rtsp
from tests.ingest.encoded import annex_b
from tests.ingest.rtsp_rig import serving

VIDEO = Path(__file__).resolve().parents[3] / "shared/data/videos/highway_traffic_720p.mp4"
KINDS = ("always", "keyframes", "all")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--segment-s", type=float, default=60)
    parser.add_argument("--video", type=Path, default=VIDEO)
    parser.add_argument("--crf", help="encode the film anew, for more bits a second")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--child", nargs=2, metavar=("URL", "KIND"))
    arguments = parser.parse_args()
    if arguments.child:
        record(*arguments.child, arguments.folder, arguments.seconds, arguments.segment_s)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        film = Path(folder) / "film.mp4"
        video = arguments.video if arguments.crf is None else encoded(arguments.video, Path(folder) / "made.mp4", arguments.crf)
        rate, bits = loop(video, film, arguments.seconds + 30)
        print(f"{arguments.video.name}, {rate:.1f} frames/s, {bits / 1e6:.2f} Mbit/s, {arguments.seconds:g} s each")
        print("| decoded | frames | CPU of a core | bar | written | clips | written / clips | bar |")
        print("|---|---|---|---|---|---|---|---|")
        for kind in KINDS:
            with serving("--file", str(film)) as server:
                command = [sys.executable, "-m", "tests.bench.passthrough", "--seconds", str(arguments.seconds)]
                command += ["--segment-s", str(arguments.segment_s), "--folder", f"{folder}/{kind}"]
                command += ["--child", server.url, kind]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(said)
            allowed = 1.10 + 2e6 * found["wall_s"] / 3600 / found["clip_bytes"]
            bar = "< 5 %" if kind == "always" else "-"
            print(
                f"| {kind} | {found['n_frames']} | {found['cpu_s'] / found['wall_s']:.2%} | {bar} | {found['written']:,} | "
                f"{found['clip_bytes']:,} | {found['written'] / found['clip_bytes']:.4f} | <= {allowed:.4f} |"
            )


def encoded(video: Path, out: Path, crf: str) -> Path:
    """Write a film again with another quality."""
    shape = probe(video)
    options = {"crf": crf, "preset": "ultrafast"}
    with Writer(out, shape.width_px, shape.height_px, Fraction(1, 90_000), options=options) as writer:
        for frames in decode(video):
            for rgb, pts in zip(frames.rgb, frames.pts, strict=True):
                writer.add(rgb, round(int(pts) * frames.time_base * 90_000))
    return out


def loop(video: Path, out: Path, seconds: float) -> tuple[float, float]:
    """Write an mp4 that repeats a film's packets for so long, and return its frames and bits a second."""
    packets = list(annex_b(video))
    times = sorted(pts for _, pts, *_ in packets)
    length = times[-1] + (times[-1] - times[0]) // (len(times) - 1)
    writer = PacketWriter(out, "h264", 1280, 720, Fraction(1, 90_000))
    n_times = int(seconds * 1e9 / length) + 1
    for number in range(n_times):
        for data, pts, dts, is_keyframe in packets:
            ticks = [(ns + number * length) * 9 // 100_000 for ns in (pts, dts)]
            writer.add(data, ticks[0], dts=ticks[1], is_keyframe=is_keyframe)
    writer.close()
    return len(packets) / (length / 1e9), sum(len(data) for data, *_ in packets) * 8 / (length / 1e9)


def record(url: str, kind: str, folder: Path, seconds: float, segment_s: float) -> None:
    """Film for so many seconds and print what it took as JSON: the measured process."""
    small = None if kind == "always" else SmallPictures((320, 180), of="keyframes" if kind == "keyframes" else "all")
    camera = open_rtsp(url, camera_id="bench", allow=["127.0.0.1"], small=small)
    began: dict[str, float] = {}
    with Spool(folder) as spool:
        recorded = Recorder(Timed(camera, seconds, began), spool, segment_s=segment_s).record()  # type: ignore[arg-type]
    found = {
        "n_frames": recorded.n_frames, "clip_bytes": recorded.n_bytes, "cpu_s": time.process_time() - began["cpu_s"],
        "wall_s": time.monotonic() - began["wall_s"], "written": written() - began["written"],
    }  # fmt: skip
    print(json.dumps(found))


def written() -> int:
    """Return how many bytes this process sent towards a disk."""
    lines = Path(f"/proc/{os.getpid()}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


class Timed:
    """A camera that films for so many seconds and notes what was spent before its first frame."""

    def __init__(self, camera: StreamCamera, seconds: float, began: dict[str, float]) -> None:
        self._camera, self._seconds, self._began = camera, seconds, began

    def __getattr__(self, name: str) -> object:
        return getattr(self._camera, name)

    def __iter__(self) -> Iterator[EncodedFrame]:
        for frame in self._camera:
            if not self._began:
                self._began |= {"cpu_s": time.process_time(), "wall_s": time.monotonic(), "written": written()}
            yield frame
            if time.monotonic() - self._began["wall_s"] >= self._seconds:
                return


if __name__ == "__main__":
    main()
