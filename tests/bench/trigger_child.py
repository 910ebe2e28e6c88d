"""One process of tests/bench/trigger.py: a minute of ten pictures a second through a trigger; prints its PSS and CPU time.

Usage: python tests/bench/trigger_child.py bare|recorder|always|motion|model|privacy BUNDLE DETECTOR

It imports what such a process imports on a camera host, and nothing else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

NAMES = {
    "bare": "python alone",
    "recorder": "with the recorder's imports (av, numpy)",
    "always": "trigger always",
    "motion": "trigger motion",
    "model": "motion then model (a small random one)",
    "privacy": "motion after privacy with the demo's detector (batch 8)",
}


def run(kind: str, bundle: Path, detector: Path) -> float:
    """Lead drawn pictures through the stages of a kind and return the CPU seconds."""
    import numpy as np

    from ingest import recorder  # noqa: F401 - what every recorder has
    from ingest.gate import Gate
    from ingest.source import SourceFrame
    from ingest.trigger import DuePictures, TriggerSettings, open_trigger

    def drawn() -> Iterator[SourceFrame]:
        rng = np.random.default_rng(0)
        still = [rng.integers(100, 110, (240, 320, 3), dtype=np.uint8) for _ in range(20)]
        for number in range(600):
            rgb = still[number % 20].copy()
            if number % 200 > 150:
                rgb[60:160, number % 100 : number % 100 + 60] = 220
            yield SourceFrame(rgb, (number + 1) * 10**8, number)

    settings = TriggerSettings(kind="always" if kind == "always" else "motion")
    if kind == "model":
        settings = TriggerSettings(kind="motion then model", model=bundle, labels=("moves",))
    frames: Iterable[SourceFrame] = drawn()
    if kind == "privacy":
        from ingest.privacy import Privacy, PrivacySettings

        frames = Privacy(PrivacySettings(blur=("person",), detector=detector, simulated=True, timeout_s=60)).frames(frames)
    gate: Gate[SourceFrame] = Gate(open_trigger(settings), small=DuePictures((320, 240), 10.0), pre_roll_s=0.5)
    start = time.process_time()
    for event in gate.events(frames):
        for _ in event:
            pass
    return time.process_time() - start


def main() -> None:
    """Run and print: name, PSS in kB, CPU seconds, tab-separated."""
    kind, spent_s = sys.argv[1], 0.0
    if kind == "recorder":
        from ingest import recorder  # noqa: F401
    elif kind != "bare":
        spent_s = run(kind, Path(sys.argv[2]), Path(sys.argv[3]))
    pss = next(line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    print(NAMES[kind], pss.split()[1], round(spent_s, 2), sep="\t")


if __name__ == "__main__":
    main()
