"""How long a month of one quiet camera takes the packet gate: clips of ten minutes, as recorders write them. Prints a table.

Usage: python tests/bench/month.py [--cache DIR]

The 24 stretches of 60 s of the motion benchmark's day (motion_world.py, 1080p at 15 frames/s, 5 % moving, events known) are
put behind one another without encoding them again, two clips of ten minutes and what is left. Each clip is scanned as
`camloop curate --gate packets` does it, without models, on one core; CPU seconds. A month is 30 x 1,440 minutes of such
footage: the last lines say openly what that takes, and what reading its packets alone would.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import motion
import motion_world

from infra import video

MINUTES = 10
MONTH_S = 30 * 86_400


def join(parts: Sequence[Path], path: Path) -> Path:
    """Put clips of one kind behind one another: the packets as they are, with new times."""
    tick = Fraction(1, motion_world.FPS)
    with av.open(str(path), "w") as out:
        stream, number = None, 0
        for part in parts:
            with av.open(str(part)) as container:
                source = container.streams.video[0]
                stream = stream or out.add_stream_from_template(source)
                for packet in container.demux(source):
                    if packet.size:
                        packet.stream, packet.time_base = stream, tick
                        packet.pts = packet.dts = number
                        packet.duration, number = 1, number + 1
                        out.mux(packet)
    return path


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/motion_bench"), help="drawn clips of tests/bench/motion.py")
    cache = parser.parse_args().cache
    cache.mkdir(exist_ok=True)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    clips = motion.world_clips(motion_world.day(motion.SEEDS["final"]), cache)
    print("| clip | frames | CPU s | frames/s | GOPs decoded | events found | false s |\n" + "|---" * 7 + "|")
    n_all, cpu_all_s, packets_s = 0, 0.0, 0.0
    for first in range(0, len(clips), MINUTES):
        mine = clips[first : first + MINUTES]
        path = join([part for part, _, _ in mine], cache / f"joined{first:02}.mp4")
        events = [(a + 60 * n, b + 60 * n) for n, (_, found, _) in enumerate(mine) for a, b in found]
        start_s = time.process_time()
        n_frames = sum(1 for _ in video.packets(path))
        packets_s += time.process_time() - start_s
        row = motion.Row()
        motion.judge(
            row, motion.ours(path, "packets"), events, motion.still_between(events, 60.0 * len(mine)), n_frames, path.stem
        )
        n_all, cpu_all_s = n_all + n_frames, cpu_all_s + row.cpu_s
        print(
            f"| {len(mine)} min | {n_frames:,} | {row.cpu_s:.2f} | {n_frames / row.cpu_s:,.0f} | {row.decoded[0]:.1%} | "
            f"{row.n_found}/{row.n_events} | {row.false_s:.1f} |",
            flush=True,
        )
    month = MONTH_S * motion_world.FPS
    print(f"a month of {month / 1e6:.1f} M frames, extrapolated:")
    for what, cpu_s in (("gate, audit and looks", cpu_all_s), ("reading the packets alone", packets_s)):
        hours = month * cpu_s / n_all / 3600
        print(f"- {what}: {hours:.2f} h of one core, {30 * hours:.0f} min on two cores")


if __name__ == "__main__":
    main()
