"""How much does `infra.video` cost over bare PyAV? Prints one table; the same settings, the same run, in turns.

Usage: python tests/bench/decode.py [--rounds 5] [--data ../shared/data]

Each round decodes every clip whole in three ways, one after the other (the order changes from round to round), and the best
round of each counts, in CPU time, so that neighbours on the machine matter less. Same settings for all: one decoder thread,
swscale with the flags of `infra.picture.EXACT`, each frame as an RGB array (`to_ndarray` copies, `Picture.rgb` need not).
  bare      av.open, container.decode, reformat, to_ndarray; each frame is dropped after use
  pictures  `infra.video.pictures`, each frame dropped after use: like with like; the target is a ratio of at least 0.95
  decode    `infra.video.decode`, which gathers batches of 32: large pictures then leave the CPU's cache, which costs
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from infra.picture import EXACT
from infra.video import decode, pictures

CLIPS = (
    "highway_traffic_720p.mp4", "car_overhead_day.mp4", "bottles_indoor.mp4", "asl_gestures/book.mkv",
    "road_overhead_overlay.avi",
)
Size = tuple[int, int] | None
SIZES: tuple[Size, ...] = (None, (224, 126))


def bare(path: Path, size_px: Size) -> int:
    """Decode a clip with PyAV alone, as a careful user would write it; return the number of frames."""
    n, scaler = 0, VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        width, height = size_px or (stream.codec_context.width, stream.codec_context.height)
        for frame in container.decode(stream):
            picture = scaler.reformat(frame, width=width, height=height, format="rgb24", interpolation=EXACT, threads=1)
            n += len(picture.to_ndarray()) > 0
    return n


def ours(path: Path, size_px: Size) -> int:
    """Decode a clip with `pictures`, frame by frame; return the number of frames."""
    return sum(len(picture.rgb(size_px)) > 0 for picture in pictures(path))


def batched(path: Path, size_px: Size) -> int:
    """Decode a clip with `decode` in batches of 32; return the number of frames."""
    return sum(len(frames) for frames in decode(path, size_px=size_px))


def _timed(work: Callable[[Path, Size], int], path: Path, size_px: Size) -> tuple[float, int]:
    start = time.process_time()
    n = work(path, size_px)
    return time.process_time() - start, n


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    args = parser.parse_args()
    print(f"{'clip':28} {'size':>8} {'frames':>6} {'bare f/s':>9} {'pictures':>9} {'decode':>9} {'ratio':>6} {'batched':>8}")
    ways, ratios, gathered = (bare, ours, batched), [], []
    for name, size_px in itertools.product(CLIPS, SIZES):
        best, n = dict.fromkeys(ways, np.inf), 0
        for number in range(args.rounds):
            for work in ways[:: 1 if number % 2 else -1]:
                took_s, n = _timed(work, args.data / "videos" / name, size_px)
                best[work] = min(best[work], took_s)
        ratios.append(best[bare] / best[ours])
        gathered.append(best[bare] / best[batched])
        size = "as is" if size_px is None else f"{size_px[0]}x{size_px[1]}"
        rates = " ".join(f"{n / best[work]:9.0f}" for work in ways)
        print(f"{name[-28:]:28} {size:>8} {n:6} {rates} {ratios[-1]:6.2f} {gathered[-1]:8.2f}")
    print(f"pictures/bare: median {np.median(ratios):.2f}, lowest {min(ratios):.2f} (target 0.95); "
          f"decode/bare: median {np.median(gathered):.2f}, lowest {min(gathered):.2f}")


if __name__ == "__main__":
    main()
