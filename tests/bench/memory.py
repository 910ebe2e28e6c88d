"""How much memory a decoding worker takes for large and long clips. Prints one table.

Usage: python tests/bench/memory.py

Each clip is scanned as a job does it: in a child of the decoder pool, one frame a second kept, a square of 640 px for a
detector and one of 224 px for an embedder. Peaks of resident memory are of the child and of the process that takes its
pictures, read while it works. Clips are made here: gradients that move, H.264 of libx264, drawn and encoded for one minute
of pictures at most; a longer clip repeats these packets with new times. Bar: below 1.5 GB a worker.
"""

from __future__ import annotations

import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil

from infra import video
from infra.decoder import DecoderPool

CLIPS = (("4K, 3840x2160", 3840, 2160, 60), ("8K, 7680x4320", 7680, 4320, 20), ("100,000 frames of 160x120", 160, 120, 100_000))
RATE = 15
GOP, PERIOD = 30, 960  # frames; both the GOPs and the moving gradient (64 frames) fit a whole number of times
SIZES_PX = {"detect_rgb": 640, "embed_rgb": 224}


def write(path: Path, width: int, height: int, n: int) -> None:
    """Write a clip of `n` frames; the packets of the first `PERIOD` come again and again."""
    base = np.indices((height, width)).sum(axis=0).astype(np.uint16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "g": str(GOP), "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, RATE)
        packets = []
        for number in range(min(n, PERIOD)):
            grey = ((base + 7 * (number % 64)) & 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="gray").reformat(format="yuv420p")
            frame.pts = number
            packets += stream.encode(frame)
        packets += stream.encode()
        for number in range(n):
            first = packets[number % PERIOD]
            packet = av.Packet(bytes(first))
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, RATE), first.is_keyframe
            packet.pts = packet.dts = number
            container.mux(packet)


def peak(stop: threading.Event, found: dict[str, int]) -> None:
    """Note the largest resident memory of this process and of its children."""
    me = psutil.Process()
    while not stop.is_set():
        found["worker"] = max(found["worker"], me.memory_info().rss)
        for child in me.children(recursive=True):
            try:
                found["child"] = max(found["child"], child.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)


def main() -> None:
    """Measure all clips."""
    print(f"{'clip':<28}{'frames':>9}{'s':>8}{'child MB':>10}{'worker MB':>11}")
    with tempfile.TemporaryDirectory() as folder:
        for name, width, height, n in CLIPS:
            path = Path(folder) / "clip.mp4"
            write(path, width, height, n)
            truth = video.probe(path)
            found, stop = {"worker": 0, "child": 0}, threading.Event()
            watching = threading.Thread(target=peak, args=(stop, found))
            watching.start()
            start_s = time.monotonic()
            with DecoderPool(cpu_s=900, wall_s=900) as pool:
                how = {"index": truth.index, "every_s": 1.0, "sizes_px": SIZES_PX}
                n_kept = sum(len(part["pts"]) for part in pool.stream("curate.scan:scan_clip", path, **how) if "pts" in part)
            seconds = time.monotonic() - start_s
            stop.set()
            watching.join()
            print(
                f"{name:<28}{n:>9,}{seconds:>8.1f}{found['child'] / 1e6:>10.0f}{found['worker'] / 1e6:>11.0f}   {n_kept} kept",
                flush=True,
            )


if __name__ == "__main__":
    main()
