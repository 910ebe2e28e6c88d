"""Both verdicts of the demo over several world seeds, as they fall: python tests/bench/demo_seeds.py 2 3 4

Each seed is a whole demo in a folder of its own under a temporary one; five minutes each on two cores. The table is for
docs/adr/0011; nothing is left out of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def line(seed: int, facts: dict[str, Any]) -> str:
    """Return one row: both rounds' verdicts with the figures behind them."""
    cells = [str(seed)]
    for name in ("judge", "judge-2"):
        if name not in facts:
            cells += ["-"] * 3
            continue
        gated = {c["slice"]: c for c in facts[name]["report"]["cells"] if c["threshold"] is not None}
        cells += [f"{c['value']:.2f} [{c['low']:.2f}, {c['high']:.2f}]" for c in (gated["day"], gated["night"])]
        cells.append(facts[name]["verdict"])
    cells.append(f"{sum(one['seconds'] for one in facts.values()):.0f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run the demo once per seed given on the command line."""
    print("| seed | day, round 1 | night, round 1 | verdict | day, round 2 | night, round 2 | verdict | s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for seed in map(int, sys.argv[1:] or range(2, 12)):
            folder = Path(scratch) / str(seed)
            command = [sys.executable, "-m", "infra.cli", "demo", "--folder", str(folder), "--seed", str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"| {seed} | the demo ended with exit code {done.returncode}: {done.stderr.strip()[-200:]} |")
            else:
                print(line(seed, json.loads((folder / "story.json").read_bytes())["facts"]), flush=True)


if __name__ == "__main__":
    main()
