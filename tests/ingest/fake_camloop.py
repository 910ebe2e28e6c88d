"""Stands for `python -m infra.cli` under an agent: `record` beats as fake_recorder.py does, `upload --watch` waits.

The mode of a camera is its id up to the first dash (`stall-1`, `exits_-2` for always);
starts are counted in <spool>/<camera id>.starts.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

from ingest.watchdog import Heartbeat


def main() -> None:
    verb, *rest = sys.argv[1:]
    if verb == "upload":
        with Path(rest[0], "uploader.starts").open("a") as file:
            file.write("started\n")
        heartbeat = Heartbeat(int(rest[rest.index("--heartbeat-fd") + 1]))
        while not Path(rest[0], "uploader.hangs").exists():
            heartbeat.busy()
            time.sleep(0.1)
        time.sleep(1000)
    camera, spool, fd = (rest[rest.index(name) + 1] for name in ("--camera-table", "--spool", "--heartbeat-fd"))
    fake = Path(__file__).with_name("fake_recorder.py")
    sys.argv = [str(fake), fd, str(Path(spool, f"{camera}.starts")), camera.split("-")[0].replace("_", "!")]
    runpy.run_path(str(fake), run_name="__main__")


main()
