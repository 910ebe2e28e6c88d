"""A memory card to try things on: a few simulated recordings in folders by camera, and a person's labels beside them.

    python -m infra.demo.card card            # card/<camera>/<camera>_20260302_101500.mp4 ..., card/labels.csv
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import shutil
import tempfile
from pathlib import Path

from infra import durable
from infra.demo.annotator import Annotator
from infra.demo.film import film
from infra.demo.world import World
from infra.keys import new_id


def fill(folder: Path, n_recordings: int, seed: int) -> int:
    """Film recordings into `folder`, one folder per camera, named by camera and local time, without sidecars.

    Args:
        folder: of the card; made if it does not exist.
        n_recordings: how many, spread over four cameras, by day and at night.
        seed: of the world.

    Returns:
        How many labels `labels.csv` holds (source_name, start_s, end_s, label).
    """
    with tempfile.TemporaryDirectory() as scratch:
        annotator = Annotator(Path(scratch) / "truth")
        words = []
        for plan in World(seed).plan("live", n_recordings, batch="card", lightings=("day", "night"), duration_s=(8.0, 9.0)):
            filmed = film(plan, Path(scratch) / new_id(), Path(scratch) / "truth")
            started = datetime.datetime.fromtimestamp(plan.start_ns / 1e9, tz=datetime.UTC)
            name = f"{plan.camera.camera_id}/{plan.camera.camera_id}_{started:%Y%m%d_%H%M%S}.mp4"
            durable.make_dirs((folder / name).parent)
            shutil.move(filmed.path, folder / name)
            words += [(name, said.start_s, said.end_s, said.label) for said in annotator.watch(filmed.sidecar)]
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([("source_name", "start_s", "end_s", "label"), *words])
    durable.write(folder / "labels.csv", table.getvalue().encode())
    return len(words)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=16, help="recordings (default: 16)")
    parser.add_argument("--seed", type=int, default=3, help="of the world (default: 3)")
    given = parser.parse_args()
    fill(given.folder, given.n, given.seed)
